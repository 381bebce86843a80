"""The explorer as HTML: data, style and script in one piece that loads nothing."""

import html
import json
from collections.abc import Mapping
from importlib import resources
from typing import Any

SCRIPTS = ("routes.js", "path.js", "explorer.js")  # in the order in which they use each other

# Whatever a text contains, the page asks nobody for anything.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def fragment(models: Mapping[str, Mapping[str, Any]]) -> str:
    """The explorer for the body of a page: style, an element, data and script. Once in a page.

    models: by the name that readers see, what `explorer_data` returns. Where several have the same text, a token's
    paths can be seen side by side.
    """
    # In a script's text only `<` could end it or begin a comment.
    listed = [{"name": name, "data": data} for name, data in models.items()]
    data = json.dumps(listed, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return (
        f"<style>{_file('explorer.css')}</style>"
        '<div class="mom-explorer" id="mom-explorer"><noscript>The routing explorer needs JavaScript.</noscript></div>'
        f'<script type="application/json" id="mom-explorer-data">{data}</script>'
        f'<script type="module">\n{"".join(_file(name) for name in SCRIPTS)}</script>'
    )


def _file(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


class Explorer:
    """The routing explorer of one or several models, drawn where a notebook shows it.

    >>> Explorer({"mom": explorer_data(routes, pieces, model.config)})  # in a notebook: drawn below the cell

    models: as for `fragment`. height: of a notebook's frame, CSS pixels.
    """

    def __init__(self, models: Mapping[str, Mapping[str, Any]], *, height: int = 900) -> None:
        self.models, self.height = dict(models), height

    def page(self) -> str:
        """A whole HTML page, to be written to a file."""
        head = (
            f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
            '<meta name="viewport" content="width=device-width"><title>Routing explorer</title>'
            "<style>:root { color-scheme: light dark } body { margin: 1rem; font-family: sans-serif }</style>"
        )
        body = f"<h1>Routing explorer</h1>{fragment(self.models)}"
        return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'

    def _repr_html_(self) -> str:
        # In a frame: neither the notebook's style nor the page's reaches the other.
        page = html.escape(self.page())
        style = f"width:100%;height:{self.height}px;border:0"
        return f'<iframe title="Routing explorer" style="{style}" srcdoc="{page}"></iframe>'
