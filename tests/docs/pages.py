"""The Markdown pages for users, what stands in them as code, and which commands that is."""

import functools
import re
import shlex
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "CONTRIBUTING.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md")))
# What a line of shell begins with, `VARIABLE=value` aside.
STARTS = re.compile(r"(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?(python|mom(?! step)|make|pip|bash|hf|git|tar|gcloud|srun)\b ")
OURS = re.compile(r"(?:\.venv/bin/)?python -m (train|configs|benchmarks|mom_jax_programs)\b|mom ")


class Block(NamedTuple):
    """language: the word after the fence, or nothing."""

    page: str
    line: int
    language: str
    text: str


class Command(NamedTuple):
    """A line of shell, continued lines joined and comments dropped. whole: in a block, not within a sentence."""

    page: str
    line: int
    text: str
    whole: bool

    @property
    def words(self) -> list[str]:
        """The program's name and its arguments, without variables and redirections."""
        words = [word for word in shlex.split(self.text) if not re.match(r"[A-Z_]+=\S", word)]
        end = next((i for i, word in enumerate(words) if word in (">", "|", "&&", ";")), len(words))
        return words[:end]


@functools.cache
def tokens(page):
    return MarkdownIt().enable("table").parse((ROOT / page).read_text("utf-8"))


@functools.cache
def blocks():
    """All blocks of code of all pages."""
    return [
        Block(page, token.map[0] + 1, token.info, token.content)
        for page in PAGES
        for token in tokens(page)
        if token.type in ("fence", "code_block")
    ]


@functools.cache
def commands():
    """All commands: lines of blocks of shell or of no language, and code within sentences that has an argument."""
    found = []
    for block in blocks():
        if block.language in ("sh", ""):
            found += [Command(block.page, block.line, line, True) for line in lines(block.text) if STARTS.match(line)]
    for page in PAGES:
        for token in tokens(page):
            for child in token.children or []:
                if child.type == "code_inline" and OURS.match(child.content) and is_whole(child.content):
                    found.append(Command(page, token.map[0] + 1, child.content, False))
    return found


def is_whole(text):
    """Whether code within a sentence is a command that could be run, and not a name or a part of one."""
    words = text.split()
    return not re.search(r"NAME|\.\.\.|FIELD", text) and len(words) > (3 if words[0].endswith("python") else 2)


def lines(text):
    """Lines of shell: what ends with a backslash or within a quotation goes on; comments are dropped."""
    result, pending = [], ""
    for line in text.splitlines():
        pending = f"{pending} {line}" if pending else line
        if pending.rstrip().endswith("\\"):
            pending = pending.rstrip()[:-1].rstrip()
            continue
        try:
            words = shlex.split(pending, comments=True)
        except ValueError:  # no closing quotation yet
            continue
        if words:
            result.append(re.sub(r"\s+", " ", re.sub(r"\s+#.*$", "", pending)).strip())
        pending = ""
    return result
