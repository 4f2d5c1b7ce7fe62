"""A local stand-in of the Hub's HTTP API: as much of it as huggingface_hub's own client asks for."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "hf_" + "standinsecret" * 3


class StandIn(ThreadingHTTPServer):
    """Repositories in memory, each ``{"private": bool, "files": {name: bytes}}`` by ``models/org/name``."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, dict] = {}
        self.objects: dict[str, bytes] = {}
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def stand_in():
    server = StandIn()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def point_at(server: StandIn, cache, monkeypatch) -> None:
    """Lets the client of this process talk to the stand-in, with a token and a cache of its own."""
    import datasets.config
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)


class _Handler(BaseHTTPRequestHandler):
    server: StandIn
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def _answer(self, status=200, value=None, content=None, **headers):
        body = content if content is not None else json.dumps(value if value is not None else {}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, each in headers.items():
            self.send_header(name.replace("_", "-"), each)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _ask(self):
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(f"{self.command} {path}")
        if path.startswith("/lfs/"):  # the store, which knows no token
            return self._store(path)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer(401, X_Error_Message="Invalid credentials")
        parts = path.strip("/").split("/")
        if path == "/api/repos/create":
            return self._create()
        if path == "/api/validate-yaml":
            head = json.loads(self.body)["content"].split("---")[1]
            return self._answer(
                value={"errors": [], "warnings": []} if yaml.safe_load(head) else {}, status=200
            )
        if parts[0] == "api":
            kind, org, name, *rest = parts[1:]
            return self._api(f"{kind}/{org}/{name}", rest)
        kind = "datasets" if parts[0] == "datasets" else "models"
        org, name, *rest = parts[1:] if kind == "datasets" else parts
        if name.endswith(".git"):
            return self._batch()
        return self._resolve(f"{kind}/{org}/{name}", "/".join(rest[2:]))

    do_GET = do_HEAD = do_POST = do_PUT = _ask

    def _store(self, path):
        assert hashlib.sha256(self.body).hexdigest() == path.removeprefix("/lfs/")
        self.server.objects[path.removeprefix("/lfs/")] = self.body
        self._answer()

    def _create(self):
        asked = json.loads(self.body)
        kind = {"dataset": "datasets"}.get(asked.get("type"), "models")
        name = f"{asked['organization']}/{asked['name']}"
        exists = f"{kind}/{name}" in self.server.repos
        private = asked.get("private") or asked.get("visibility") == "private"
        self.server.repos.setdefault(f"{kind}/{name}", {"private": bool(private), "files": {}})
        self._answer(409 if exists else 200, {"url": f"{self.server.url}/{name}"})

    def _sha(self, repo):
        files = self.server.repos[repo]["files"]
        return hashlib.sha1(repr([(n, _oid(c)) for n, c in sorted(files.items())]).encode()).hexdigest()

    def _api(self, repo, rest):
        if repo not in self.server.repos:
            return self._answer(404, X_Error_Code="RepoNotFound")
        files = self.server.repos[repo]["files"]
        match rest:
            case [] | ["revision", _]:
                about = {
                    "id": repo.partition("/")[2],
                    "sha": self._sha(repo),
                    "siblings": [{"rfilename": n} for n in files],
                }
                self._answer(
                    value=about | {"private": self.server.repos[repo]["private"], "tags": [], "downloads": 0}
                )
            case ["tree", *_]:
                self._answer(
                    value=[
                        {"type": "file", "path": name, "size": len(content), "oid": _oid(content)}
                        for name, content in files.items()
                    ]
                )
            case ["preupload", _]:
                asked = json.loads(self.body)["files"]
                found = [
                    {
                        "path": each["path"],
                        "uploadMode": "lfs"
                        if each["path"].endswith((".safetensors", ".parquet"))
                        else "regular",
                        "shouldIgnore": False,
                    }
                    for each in asked
                ]
                self._answer(value={"files": found})
            case ["commit", _]:
                for line in self.body.splitlines():
                    operation = json.loads(line)
                    value = operation["value"]
                    if operation["key"] == "file":
                        files[value["path"]] = base64.b64decode(value["content"])
                    elif operation["key"] == "lfsFile":
                        files[value["path"]] = self.server.objects[value["oid"]]
                    elif operation["key"] == "deletedFile":
                        del files[value["path"]]
                self._answer(
                    value={"commitUrl": f"{self.server.url}/{repo}/commit/0", "commitOid": self._sha(repo)}
                )
            case _:
                self._answer(404)

    def _batch(self):
        objects = [
            {
                "oid": each["oid"],
                "size": each["size"],
                "actions": {"upload": {"href": f"{self.server.url}/lfs/{each['oid']}", "header": {}}},
            }
            for each in json.loads(self.body)["objects"]
        ]
        self._answer(value={"transfer": "basic", "objects": objects})

    def _resolve(self, repo, name):
        if repo not in self.server.repos:
            return self._answer(404, X_Error_Code="RepoNotFound")
        sha, files = self._sha(repo), self.server.repos[repo]["files"]
        if name not in files:
            return self._answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=sha)
        content = files[name]
        self._answer(content=content, X_Repo_Commit=sha, ETag=f'"{_oid(content)}"')


def _oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
