"""A hub on this machine: as much of its HTTP as huggingface_hub needs to fetch a snapshot and to commit a folder."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


@dataclass
class HubServer:
    """{id: {revision: {path: content}}}, and what was asked for."""

    repositories: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    address: str = ""

    def commit_of(self, hub_id: str, revision: str) -> str | None:
        """The hash of a revision, or of itself; None if there is none."""
        known = self.repositories.get(hub_id, {})
        hashes = {name: hashlib.sha1(f"{hub_id} {name}".encode()).hexdigest() for name in known}
        return hashes.get(revision) or next((h for h in hashes.values() if h == revision), None)

    def files(self, hub_id: str, revision: str) -> dict[str, bytes]:
        wanted = self.commit_of(hub_id, revision)
        return next(f for name, f in self.repositories[hub_id].items() if self.commit_of(hub_id, name) == wanted)


@contextmanager
def running() -> Iterator[HubServer]:
    hub = HubServer()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *given: Any) -> None:
        pass

    def _answer(self, content: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, data: Any, status: int = 200, **headers: str) -> None:
        self._answer(json.dumps(data).encode(), status, Content_Type="application/json", **headers)

    def _get(self) -> None:
        path = self.path.partition("?")[0]
        self.hub.asked.append(path)
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path)
        if api:
            hub_id, what, revision = api[1], api[2], api[3] or "main"
            commit = self.hub.commit_of(hub_id, revision)
            if hub_id not in self.hub.repositories:
                self._json({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
            elif commit is None:
                self._json({"error": "Invalid rev id"}, 404, X_Error_Code="RevisionNotFound")
            elif what == "tree":
                files = self.hub.files(hub_id, revision)
                self._json([{"type": "file", "path": p, "size": len(c), "oid": _etag(c)} for p, c in files.items()])
            else:
                self._json({"id": hub_id, "sha": commit, "siblings": []})
            return
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        assert match, path
        content = self.hub.files(match[1], match[2])[match[3]]
        commit = self.hub.commit_of(match[1], match[2])
        self._answer(content, ETag=f'"{_etag(content)}"', X_Repo_Commit=str(commit))

    do_GET = do_HEAD = _get  # noqa: N815

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.hub.asked.append(self.path)
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit|branch)/([^/?]+).*", self.path)
        if self.path == "/api/repos/create":
            given = json.loads(body)
            hub_id = f"{given['organization']}/{given['name']}"
            self.hub.repositories.setdefault(hub_id, {"main": {}})
            self._json({"url": f"{self.hub.address}/{hub_id}", "id": hub_id})
        elif match and match[2] == "preupload":
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            self._json({"files": files})
        elif match and match[2] == "branch":
            self.hub.repositories[match[1]].setdefault(match[3], {})
            self._json({})
        elif match:
            files = self.hub.repositories[match[1]][match[3]]
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            commit = self.hub.commit_of(match[1], match[3])
            url = f"{self.hub.address}/{match[1]}/commit/{commit}"
            self._json({"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""})
        else:  # the card's front matter
            self._json({"warnings": [], "errors": []})


def _etag(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
