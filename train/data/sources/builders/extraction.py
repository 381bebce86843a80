"""TFDS's builders without TensorFlow: TFDS itself unpacks archives with it."""

import gzip
import os
import tarfile
import tempfile
import types
import zipfile
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

# An archive may unpack to so many times its size and so many bytes more, and have so many members: text takes a tenth
# when it is packed, and not even a file of one letter less than a thousandth.
RATIO, ROOM, MEMBERS = 200, 2**30, 50_000_000
_TARS = ("TAR", "TAR_STREAM", "TAR_GZ", "TAR_GZ_STREAM")


class Downloads:
    """A `DownloadManager` that unpacks archives with Python's own library; the rest is left to TFDS's `manager`."""

    def __init__(self, manager: tfds.download.DownloadManager):
        self._manager = manager

    def __getattr__(self, name: str) -> Any:
        return getattr(self._manager, name)

    def download_and_extract(self, urls: Any) -> Any:
        """Downloads a URL, or a nest of lists and tables of them, and returns the nest of what is unpacked."""
        return self.extract(self.download(urls))

    def extract(self, paths: Any) -> Any:
        """Unpacks an archive, or a nest of them; returns folders, or the path itself of what is no archive."""
        if isinstance(paths, dict):
            return {key: self.extract(path) for key, path in paths.items()}
        if isinstance(paths, list | tuple):
            return [self.extract(path) for path in paths]
        if isinstance(paths, tfds.download.Resource):
            return self._extract(paths)
        return self._extract(tfds.download.Resource(path=paths))

    def _extract(self, resource: tfds.download.Resource) -> Path:
        path, method = Path(resource.path), resource.extract_method.name
        if method not in (*_TARS, "ZIP", "GZIP"):
            return Path(self._manager.extract(resource))
        root = Path(self._manager.download_dir) / "extracted"
        whole = root / f"{method}.{path.name}"
        if not whole.exists():
            root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix="incomplete.", dir=root) as folder:
                os.replace(_unpack(path, method, Path(folder) / "content"), whole)
        return whole


def _unpack(path: Path, method: str, target: Path) -> Path:
    """Raises `tarfile.TarError` or `zipfile.BadZipFile` for members that would lie outside of `target`, for links that
    lead there, and for far more than such an archive can hold of honest data."""
    room = RATIO * path.stat().st_size + ROOM
    if method == "GZIP":
        with gzip.open(path) as source, open(target, "wb") as copy:
            while block := source.read(2**20):
                room -= len(block)
                if room < 0:
                    raise gzip.BadGzipFile(f"{path.name} unpacks to more than {RATIO} times its size")
                copy.write(block)
    elif method == "ZIP":
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            for member in members:
                if member.filename.startswith(("/", "\\")) or ".." in Path(member.filename).parts:
                    raise zipfile.BadZipFile(f"{member.filename[:100]!r} lies outside of the archive's folder")
            # Python reads no more of a member than it says that it has.
            if sum(member.file_size for member in members) > room or len(members) > MEMBERS:
                raise zipfile.BadZipFile(f"{path.name} unpacks to more than {RATIO} times its size")
            archive.extractall(target)
    else:
        with tarfile.open(path) as tar:
            tar.extractall(target, filter=_Bounded(path.name, room))
    return target


class _Bounded:
    """A filter of tarfile's: its own for data, as far as there is room."""

    def __init__(self, name: str, room: int) -> None:
        self._name, self._room, self._members = name, room, 0

    def __call__(self, member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
        self._room, self._members = self._room - member.size, self._members + 1
        if self._room < 0 or self._members > MEMBERS:
            raise tarfile.ReadError(f"{self._name} unpacks to more than {RATIO} times its size")
        return tarfile.data_filter(member, folder)


class _WithoutTensorFlow:
    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> Any:
        return super()._split_generators(Downloads(dl_manager))  # type: ignore[misc]


def without_tensorflow(builder: type[tfds.core.DatasetBuilder]) -> type[tfds.core.DatasetBuilder]:
    """The same builder, of the same name, unpacking archives without TensorFlow."""
    if not issubclass(builder, tfds.core.GeneratorBasedBuilder):
        return builder
    members = {"__module__": builder.__module__, "__doc__": builder.__doc__, "name": builder.name}
    bases = (_WithoutTensorFlow, builder)
    return types.new_class(builder.__name__, bases, {"skip_registration": True}, lambda body: body.update(members))
