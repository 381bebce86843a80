"""Manual pages as plain text, by groff."""

import os
import re
import shutil
import subprocess
import tempfile

from mom_jax.fields import ConfigError

# `-man` would load its macros with the first line of the page, after `mso` has gone.
_LOAD = """\
.if !d RI .rm TH
.if !d RI .do mso an-old.tmac
.if !d RI .do mso an.tmac
"""
# Left-aligned and without hyphens, whatever the page asks for. And a page is anybody's program: groff runs nothing and
# writes nothing by itself, but these requests would read other files into the text.
_FIRST = ".ad l\n.nh\n.de ad\n..\n.de hy\n..\n" + "".join(
    f".rm {request}\n" for request in ("so", "mso", "soquiet", "msoquiet", "cf", "trf", "nx", "hpf", "hpfa", "psbb")
)
# UTF-8, with tables; lines of 100 characters that begin at the left; no bold, italics or escapes.
_OPTIONS = ("-Kutf8", "-t", "-Tutf8", "-rLL=100n", "-rIN=0n", "-P-c", "-P-b", "-P-o", "-P-u")
_SECONDS = 20  # of processor time, for a page
# And 2 MiB of text, in the blocks of 512 bytes that `ulimit -f` counts; and KiB of memory, where that can be limited.
_LIMITS = "ulimit -f 4096; ulimit -v 1048576 2>/dev/null"


def check_groff() -> None:
    """Raises ConfigError where there is no groff."""
    if shutil.which("groff") is None:
        raise ConfigError("groff: is not here, which makes text of manual pages; install it (Debian's groff-base)")


def plain_text(page: bytes) -> str | None:
    """The text of a page in the man or mdoc language, UTF-8; None where groff makes nothing of it."""
    is_mdoc = re.search(rb"^\.Dd\b", page, re.MULTILINE) is not None
    first = _FIRST if is_mdoc else _LOAD + _FIRST
    command = f'ulimit -t {_SECONDS}; {_LIMITS}; exec groff "$@"'
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as text, tempfile.TemporaryFile() as source:
        source.write(first.encode() + page)
        source.seek(0)
        done = subprocess.run(
            ["sh", "-c", command, "sh", *_OPTIONS, "-mdoc" if is_mdoc else "-man"],
            cwd=folder,
            stdin=source,
            stdout=text,
            stderr=subprocess.DEVNULL,
            env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C"},
        )
        text.seek(0)
        content = text.read()
    try:
        lines = content.decode()
    except UnicodeDecodeError:
        return None
    return re.sub(r"\n{3,}", "\n\n", lines).strip() + "\n" if done.returncode == 0 else None
