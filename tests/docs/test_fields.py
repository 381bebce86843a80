"""The reference of all fields, the pictures and the examples in the pages are what their sources say."""

import functools
import re
import sys
from pathlib import Path

import pytest
from pages import PAGES, ROOT, blocks, tokens

sys.path.insert(0, str(ROOT / "docs" / "tools"))
import itertools

import address
import fields
import pictures


def test_every_field_is_described():
    assert fields.undescribed() == []


def test_the_page_is_up_to_date():
    assert fields.PAGE.read_text("utf-8") == fields.page(), "python docs/tools/fields.py"


def test_limits_are_what_fields_say():
    page = fields.page()
    row = {line.split("|")[1].strip(): line for line in page.splitlines() if line.startswith("| `")}
    assert row["`validation_fraction`"].rstrip(" |").endswith("*Allowed: between 0 and 1.*")
    assert row["`learning_rate`"].rstrip(" |").endswith("*Allowed: positive.*")
    assert "`gelu_new`, `gelu`, `relu` | `'gelu_new'`" in row["`activation`"]


def test_pictures_are_what_their_program_draws():
    for name, draw in pictures.PICTURES.items():
        assert (ROOT / "docs" / f"{name}.svg").read_text("utf-8") == draw(), "python docs/tools/pictures.py"


def test_the_example_of_a_loop_stands_in_its_page():
    [shown] = [
        block.text for block in blocks() if block.page == "docs/guides/own_loop.md" and block.language == "python"
    ]
    assert shown == (ROOT / "examples" / "own_loop.py").read_text()


def test_the_repository_has_one_address():
    assert address.elsewhere() == [], "python docs/tools/address.py"


@functools.cache
def anchors(page):
    """As the host and the site make them of a page's headings."""
    rows, found = tokens(page), set()
    for before, token in itertools.pairwise(rows):
        if before.type == "heading_open":
            text = "".join(child.content for child in token.children if child.type in ("text", "code_inline"))
            found.add(re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", text.lower())))
    return found


@pytest.mark.parametrize("page", [*PAGES, "CHANGELOG.md"])
def test_links_on_the_repositorys_host(page):
    """mkdocs checks those of the site; here are those that leave it, and the README's."""
    for token in tokens(page):
        for child in token.children or []:
            target = child.attrs.get("href") or child.attrs.get("src")
            if target is None or re.match(r"https?://", target):
                continue
            path, _, anchor = target.partition("#")
            file = ((ROOT / page).parent / path).resolve() if path else ROOT / page
            assert file.exists(), f"{page}: {target}"
            if anchor and file.suffix == ".md":
                assert anchor in anchors(str(Path(file).relative_to(ROOT))), f"{page}: {target}"
