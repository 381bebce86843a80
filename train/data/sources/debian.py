"""Files of a Debian package, read without unpacking it: a .deb is an ar archive with a tar archive inside."""

import gzip
import io
import re
import subprocess
import tarfile
from pathlib import Path

from mom_jax.fields import ConfigError, require
from train.data.sources.text_files import DAMAGED, decompressed
from train.files import read_bytes

# A package is anybody's file: bytes of it, of one file in it, of all that are kept, and of all that are passed over.
_PACKAGE, _ONE, _KEPT, _PASSED = 2**30, 2**24, 2**28, 2**32

_MAGIC, _HEADER = b"!<arch>\n", 60


def download(package: str, folder: Path) -> Path:
    """The newest version of a package, from where apt is configured to have it; nothing is installed. Raises
    ConfigError where apt does not get it."""
    advice = f"give the file itself with --deb {package}_VERSION_ARCHITECTURE.deb"
    try:
        done = subprocess.run(["apt-get", "-q", "download", package], cwd=folder, capture_output=True, text=True)
    except FileNotFoundError:
        raise ConfigError(f"package={package!r}: there is no apt-get here to download it; {advice}") from None
    found = sorted(folder.glob(f"{package}_*.deb"))
    if done.returncode or not found:
        lines = [line for line in done.stderr.splitlines() if line.startswith("E: ")]
        why = lines[0].removeprefix("E: ") if lines else f"exit code {done.returncode}"
        raise ConfigError(f"package={package!r}: apt-get cannot download it ({why}); {advice}")
    return found[0]


def read_files(deb: Path, wanted: re.Pattern[str]) -> dict[str, bytes]:
    """The regular files of the package whose whole paths (`usr/share/...`) match, those ending in .gz uncompressed.

    Nothing is written anywhere. Raises ConfigError for a file that is no package, is damaged or is too large.
    """
    name, content = _data(deb)
    found: dict[str, bytes] = {}
    passed = 0
    try:
        with tarfile.open(fileobj=decompressed(Path(name), io.BytesIO(content)), mode="r|") as archive:
            for member in archive:
                passed += member.size
                require(passed <= _PASSED, "deb", str(deb), f"has more than {_PASSED:,} bytes")
                path = member.name.removeprefix("./")
                if not member.isreg() or not wanted.fullmatch(path):
                    continue
                require(member.size <= _ONE, "deb", str(deb), f"{path} has more than {_ONE:,} bytes")
                file = archive.extractfile(member)
                assert file is not None
                text = file.read()
                if path.endswith(".gz"):
                    text = gzip.GzipFile(fileobj=io.BytesIO(text)).read(_ONE + 1)
                    require(len(text) <= _ONE, "deb", str(deb), f"{path} has more than {_ONE:,} bytes")
                found[path] = text
                require(
                    sum(map(len, found.values())) <= _KEPT, "deb", str(deb), f"has more than {_KEPT:,} bytes of text"
                )
    except (tarfile.TarError, *DAMAGED) as error:
        raise ConfigError(f"deb={str(deb)!r}: is damaged ({error})") from None
    return found


def _data(deb: Path) -> tuple[str, bytes]:
    """(name, content) of the ar archive's member that has the package's files."""
    content = read_bytes(deb, f"deb={str(deb)!r}", _PACKAGE)
    file = io.BytesIO(content)
    good = file.read(len(_MAGIC)) == _MAGIC
    while good and (header := file.read(_HEADER)):
        size = header[48:58].strip()
        good = len(header) == _HEADER and header.endswith(b"`\n") and size.isdigit()
        if not good:
            break
        name = header[:16].decode("ascii", "replace").strip().rstrip("/")
        if name.startswith("data.tar"):
            data = file.read(int(size))
            require(len(data) == int(size), "deb", str(deb), "is damaged (it is cut off)")
            return name, data
        file.seek(int(size) + int(size) % 2, io.SEEK_CUR)
    raise ConfigError(f"deb={str(deb)!r}: is no Debian package")
