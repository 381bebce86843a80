"""A Hugging Face Hub on this machine, with one data set: what `huggingface_hub` and `datasets` ask of one."""

import contextlib
import hashlib
import http.server
import json
import re
import threading
from pathlib import Path

COMMIT = "1234567890abcdef1234567890abcdef12345678"


class _Handler(http.server.BaseHTTPRequestHandler):
    """Of a server with `folder`, `repository` and `asked`, a list of what it is asked for."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        self.server.asked.append(f"{self.command} {self.path}")
        repository = self.server.repository
        path = self.path.partition("?")[0]
        api, files = f"/api/datasets/{repository}", f"/datasets/{repository}/resolve/"
        if path in (api, f"{api}/revision/main", f"{api}/revision/{COMMIT}"):
            siblings = [{"rfilename": name} for name in self._names()]
            self._json({"id": repository, "sha": COMMIT, "private": False, "gated": False, "siblings": siblings})
        elif match := re.fullmatch(rf"{api}/tree/{COMMIT}/?(.*)", path):
            self._json(self._tree(match[1], "recursive=true" in self.path.lower()))
        elif match := re.fullmatch(rf"{files}(main|{COMMIT})/(.+)", path):
            self._file(match[2])
        elif path.startswith(f"{api}/revision/"):
            self._missing("RevisionNotFound")
        else:
            self._missing("EntryNotFound" if path.startswith((api, files)) else "RepoNotFound")

    do_HEAD = do_GET

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"] or 0)).decode()
        self.server.asked.append(f"POST {self.path} {body}")
        if self.path == f"/api/datasets/{self.server.repository}/paths-info/{COMMIT}":
            wanted = json.loads(body)["paths"]
            self._json([self._entry(name) for name in self._names() if name in wanted])
        else:
            self._missing("EntryNotFound")

    def _names(self):
        files = sorted(path for path in self.server.folder.rglob("*") if path.is_file())
        return [path.relative_to(self.server.folder).as_posix() for path in files]

    def _tree(self, folder, recursive):
        place = self.server.folder / folder
        below = sorted(place.rglob("*") if recursive else place.glob("*"))
        return [self._entry(path.relative_to(self.server.folder).as_posix()) for path in below]

    def _entry(self, name):
        if (self.server.folder / name).is_dir():
            return {"type": "directory", "path": name, "oid": "0" * 40, "size": 0}
        return {"type": "file", "path": name, "oid": "0" * 40, "size": (self.server.folder / name).stat().st_size}

    def _file(self, name):
        if name not in self._names():
            self._missing("EntryNotFound")
            return
        content = (self.server.folder / name).read_bytes()
        first, last, status = 0, len(content) - 1, 200
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            first, last, status = int(match[1]), min(last, int(match[2] or last)), 206
        tag = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if status == 206:
            tag["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        self._answer(status, content[first : last + 1], tag)

    def _json(self, value):
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _missing(self, code):
        self._answer(404, b"{}", {"X-Error-Code": code, "X-Repo-Commit": COMMIT, "Content-Type": "application/json"})

    def _answer(self, status, content, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@contextlib.contextmanager
def serving(folder: Path, repository: str):
    """Yields the server of a folder's files as a data set of that name; its address is `endpoint`."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.folder, server.repository, server.asked = folder, repository, []
    server.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
