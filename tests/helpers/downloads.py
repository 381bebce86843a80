"""What TFDS downloads, from a table instead of the internet."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def tar(files: dict[str, bytes], mode: str) -> bytes:
    """A tar with `files` by name, in order; a name that ends with '/' is a folder."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode=mode) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return content.getvalue()


def from_table(content: dict[str, bytes]) -> Callable:
    """`DownloadManager.download` for the URLs in `content`."""

    def fetch(manager: Any, urls: Any) -> Any:
        if isinstance(urls, dict):
            return {key: fetch(manager, url) for key, url in urls.items()}
        if isinstance(urls, list):
            return [fetch(manager, url) for url in urls]
        path = Path(manager.download_dir) / urls.partition("?")[0].rpartition("/")[2]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content[urls])
        Path(f"{path}.INFO").write_text(json.dumps({"original_fname": path.name, "urls": [urls]}))
        return path

    return fetch


def openwebtext_files(document: Callable[[int, int], str]) -> dict[str, bytes]:
    """The 21 tars of OpenWebText by URL, with few documents: `document(subset, number)`."""
    from train.data.sources.builders import openwebtext

    files = {}
    for subset, url in enumerate(openwebtext.URLS):
        texts = {f"{number:07d}-0.txt": document(subset, number).encode() for number in range(3)}
        name = f"openwebtext/urlsf_subset{subset:02d}-1_data.xz"
        files[url] = tar({"openwebtext/": b"", name: tar(texts, "w:xz")}, "w")
    return files
