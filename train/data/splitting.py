"""Cutting long texts where no token goes on, so that the parts have the ids of the whole."""

import re
from collections.abc import Iterator


def safe_cut(text: str, limit: int) -> int:
    """Where to cut a text of more than `limit` characters, so that the ids of both parts are those of the whole.

    The last place up to `limit` where a space follows what is no white space. There no token of GPT-2's goes on, nor a
    piece of the SentencePiece models that are trained here. Without such a place it is `limit`: nothing is lost, but
    the ids may be others.
    """
    cut = text.rfind(" ", 1, limit + 1)
    while cut > 0 and text[cut - 1].isspace():
        cut = text.rfind(" ", 1, cut)
    return cut if cut > 0 else limit


def pieces(text: str, places: re.Pattern[str], size: int) -> Iterator[str]:
    """The text, cut at the first of the `places` after every `size` characters."""
    start = 0
    while (cut := places.search(text, start + size)) is not None:
        yield text[start : cut.start()]
        start = cut.start()
    yield text[start:]
