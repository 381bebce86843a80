"""Docstrings as the site shows them, an extension of griffe (mkdocs.yml).

Ours name arguments in lines of their own, `mask: [B, L], true for real tokens`, whose continuation is indented.
Markdown would run such lines together: here they become a list. Lines that begin with `>>>` become code.
"""

import re
from typing import Any

from griffe import Extension, Object

ARGUMENT = re.compile(r"^([a-z]\w*(?:, [a-z]\w*)*): (?=\S)")


def fenced(text: str) -> str:
    """The docstring with examples, lines `>>> code`, as blocks of code."""
    lines: list[str] = []
    within = False
    for line in [*text.splitlines(), ""]:
        example = line.startswith((">>> ", "... ")) and (within or line.startswith(">>> "))
        if example and not within:
            lines.append("```python")
        if within and not example:
            lines.append("```")
        lines.append(line[4:] if example else line)
        within = example
    return "\n".join(lines).rstrip("\n")


def listed(text: str) -> str:
    """The docstring with a list in the place of lines `name: words`, the first line aside."""
    lines: list[str] = []
    within = False
    for i, line in enumerate(text.splitlines()):
        found = ARGUMENT.match(line) if i else None
        if found:
            if not within and lines and lines[-1]:
                lines.append("")
            names = ", ".join(f"`{name}`" for name in found[1].split(", "))
            lines.append(f"- {names}: {line[found.end() :]}")
            within = True
            continue
        if within and line and not line.startswith(" "):
            lines.append("")  # what follows is a paragraph again
            within = False
        lines.append(line)
    return "\n".join(lines)


class Listed(Extension):
    """Makes the lists when a docstring has been read."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = fenced(listed(obj.docstring.value))
