"""Writes the repository's address into every file that has it: `python docs/tools/address.py`.

It stands in pyproject.toml, as the project's URL `Source`; whoever moves or forks the repository changes it there and
runs this. Notebooks, badges, the citation and the templates of issues need it in full.
"""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "notebooks" / "mom_in_ten_minutes.ipynb"  # what it has is the address until now


def address() -> str:
    """The repository's address."""
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["urls"]
    return str(urls["Source"])


def short(url: str) -> str:
    """OWNER/NAME of an address."""
    return "/".join(url.rstrip("/").split("/")[-2:])


def until_now() -> str:
    found = re.search(r'REPOSITORY = \\"([^"\\]+)\\"', NOTEBOOK.read_text("utf-8"))
    assert found is not None
    return found[1]


def elsewhere() -> list[Path]:
    """Files that name another repository where they should name this one."""
    new, old = short(address()), short(until_now())
    names = "|".join(re.escape(name.split("/")[1]) for name in {new, old})
    pattern = re.compile(rf"github(?:\.com)?/(?P<whole>[\w.-]+/(?:{names}))(?![\w-])")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    found = []
    for name in filter(None, listed.split("\0")):
        path = ROOT / name
        if path.suffix not in (".md", ".ipynb", ".toml", ".yml", ".cff", ".py", ".txt") or not path.is_file():
            continue
        if any(match["whole"] != new for match in pattern.finditer(path.read_text("utf-8"))):
            found.append(path)
    return found


def main() -> None:
    old, new = short(until_now()), short(address())
    for path in elsewhere():
        path.write_text(path.read_text("utf-8").replace(old, new), "utf-8")
        sys.stdout.write(f"{path.relative_to(ROOT)}\n")


if __name__ == "__main__":
    main()
