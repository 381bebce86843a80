"""What the documentation site does with the pages of docs/, as hooks of MkDocs (mkdocs.yml).

Pages link to files outside of docs/ as the repository's host wants it, `../CONTRIBUTING.md`. On the site these are
links to the repository, whose address stands in pyproject.toml. The theme's one script from elsewhere, which the search
needs where pages are read from a disk, is replaced by ours.
"""

import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

sys.path.insert(0, str(Path(__file__).parent))

from address import address

ROOT = Path(__file__).parents[2]
SHIM = '<script src="https://unpkg.com/iframe-worker/shim"></script>'
WORKER = (Path(__file__).parent / "worker.js").read_text()
LINK = re.compile(r"(\]\()((?:\.\./)+[^)\s]*)(\))")


def on_config(config: Any) -> Any:
    config.repo_url = address()
    config.repo_name = address().split("/", 3)[-1]
    config.edit_uri = "edit/main/docs/"
    return config


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """The page's text with links that leave docs/ turned into links to the repository."""
    if page.file.src_uri == "bad_inputs.md":  # it has every word, and is hardly what one looks for
        page.meta["search"] = {"boost": 0.2}
    folder, docs = Path(page.file.abs_src_path).parent, Path(config.docs_dir)

    def leaving(found: re.Match[str]) -> str:
        path, _, anchor = found[2].partition("#")
        target = (folder / path).resolve()
        if target.is_relative_to(docs) or not target.is_relative_to(ROOT):
            return found[0]
        if not target.exists():
            raise PluginError(f"{page.file.src_uri}: links to {found[2]}, which is not there")
        kind = "tree" if target.is_dir() else "blob"
        end = f"#{anchor}" if anchor else ""
        return f"{found[1]}{address()}/{kind}/main/{target.relative_to(ROOT).as_posix()}{end}{found[3]}"

    return LINK.sub(leaving, markdown)


def on_post_page(output: str, *, page: Any, **_: Any) -> str:
    return without_others(output, page.file.src_uri)


def on_post_template(output_content: str, *, template_name: str, **_: Any) -> str:
    return without_others(output_content, template_name)


def without_others(output: str, name: str) -> str:
    """A page's HTML without the script from elsewhere. Raises PluginError where there is another one."""
    # The theme would ask GitHub how many stars and forks the repository has, and its newest release.
    output = output.replace(' data-md-component="source"', "").replace(SHIM, f"<script>{WORKER}</script>")
    if found := re.search(r"""<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=["']?(?:https?:)?//[^>]*""", output):
        raise PluginError(f"{name}: loads from elsewhere: {found[0]}")
    return output
