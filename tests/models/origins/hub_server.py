"""A hub on this machine, with the part of its protocol that lists and downloads files."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]


@dataclass
class Hub:
    """The files by repository and revision, and the requests."""

    repos: dict[str, dict[str, Files]]
    asked: list[str] = field(default_factory=list)
    url: str = ""

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and content for a path."""
        parts = [unquote(part) for part in path.strip("/").split("/")]
        if parts[:2] == ["api", "models"] and parts[4:5] in ([], ["revision"]):
            repo, revision = "/".join(parts[2:4]), (parts[5:] or ["main"])[0]
            files, missing = self._files(repo, revision)
            info = {
                "id": repo,
                "sha": commit_of(files or {}),
                "siblings": [{"rfilename": name} for name in files or {}],
            }
            return (200, {}, json.dumps(info).encode()) if files is not None else (404, missing, b"")
        if parts[:2] == ["api", "models"] and parts[4:5] == ["tree"]:
            files, missing = self._files("/".join(parts[2:4]), parts[5])
            rows = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in (files or {}).items()
            ]
            return (200, {}, json.dumps(rows).encode()) if files is not None else (404, missing, b"")
        if parts[2:3] == ["resolve"]:
            files, missing = self._files("/".join(parts[:2]), parts[3])
            name = "/".join(parts[4:])
            if files is None or name not in files:
                return 404, missing or {"X-Error-Code": "EntryNotFound"}, b""
            etag = f'"{hashlib.sha1(files[name]).hexdigest()}"'
            return 200, {"ETag": etag, "X-Repo-Commit": commit_of(files)}, files[name]
        return 404, {"X-Error-Code": "EntryNotFound"}, b""

    def _files(self, repo: str, revision: str) -> tuple[Files | None, dict[str, str]]:
        if repo not in self.repos:
            return None, {"X-Error-Code": "RepoNotFound"}
        revisions = self.repos[repo]
        known = {**{commit_of(files): files for files in revisions.values()}, **revisions}
        return known.get(revision), {} if revision in known else {"X-Error-Code": "RevisionNotFound"}

    def downloads(self) -> set[str]:
        """Return the names of the files that were downloaded."""
        paths = [one.removeprefix("GET ") for one in self.asked if one.startswith("GET ") and "/resolve/" in one]
        return {unquote(path.split("/", 5)[5]) for path in paths}


def commit_of(files: Files) -> str:
    """Return the commit hash of a revision."""
    return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()


@contextlib.contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Serve a hub on a free port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(with_content=True)

        def do_HEAD(self) -> None:
            self._answer(with_content=False)

        def _answer(self, *, with_content: bool) -> None:
            path = urlsplit(self.path).path
            hub.asked.append(f"{self.command} {path}")
            status, headers, content = hub.answer(path)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if with_content:
                self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
