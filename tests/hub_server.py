"""A stand-in for the Hugging Face hub on this machine, with the requests that huggingface_hub makes for models."""

import base64
import hashlib
import http.server
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest

TOKEN = "hf_token"
_INFO = re.compile(r"/api/models/(?P<name>[^/]+/[^/]+)(?:/revision/(?P<revision>[^/]+))?")
_FILE = re.compile(r"/(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")
_WRITE = re.compile(r"/api/models/(?P<name>[^/]+/[^/]+)/(?P<what>preupload|commit)/(?P<revision>[^/]+)")


class Hub:
    """Repositories by name, each with commits and branches.

    Attributes:
      repositories: `{name: {"commits": {hash: {file: bytes}}, "refs": {name: hash}}}`.
      gated: names of repositories whose files need terms to be accepted.
      downloads: the files that were downloaded, in order.
      cut: name of a file whose download ends in the middle.
    """

    def __init__(self):
        self.repositories, self.gated, self.downloads, self.cut = {}, set(), [], None
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def commit(self, name: str, files: dict[str, bytes], branch: str = "main") -> str:
        """Add a commit with these files, and return its hash."""
        repository = self.repositories.setdefault(name, {"commits": {}, "refs": {}})
        digest = hashlib.sha1(repr((len(repository["commits"]), sorted(files.items()))).encode()).hexdigest()
        repository["commits"][digest] = dict(files)
        repository["refs"][branch] = digest
        return digest

    def upload(self, name: str, folder: Path, branch: str = "main") -> str:
        """Add a commit with the files of a local folder, and return its hash."""
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        return self.commit(name, files, branch)

    def found(self, name, revision):
        """Return `(commit, files)`; the first is the error's code if there is no such revision."""
        repository = self.repositories.get(name)
        if repository is None:
            return "RepoNotFound", None
        commit = repository["refs"].get(revision, revision)
        return (
            (commit, repository["commits"][commit]) if commit in repository["commits"] else ("RevisionNotFound", None)
        )

    def stop(self):
        """Refuse connections from now on."""
        self._server.shutdown()
        self._server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"  # without it, connections of before outlive `Hub.stop`

    def do_HEAD(self):
        self._read()

    def do_GET(self):
        self._read()

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = urllib.parse.urlsplit(self.path).path
        if path == "/api/validate-yaml":
            return self._answer({"errors": [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer({"error": "Invalid credentials"}, 401)
        if path == "/api/repos/create":
            given = json.loads(body)
            name = f"{given['organization']}/{given['name']}"
            status = 409 if name in self.hub.repositories else 200
            if status == 200:
                self.hub.commit(name, {".gitattributes": b""})
                self.hub.repositories[name]["private"] = "private" in (
                    given.get("private") and "private",
                    given.get("visibility"),
                )
            return self._answer({"url": f"{self.hub.url}/{name}", "name": name}, status)
        name, what, revision = _WRITE.fullmatch(path).groups()
        if what == "preupload":
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return self._answer({"files": files, "commitOid": self.hub.found(name, revision)[0]})
        files = dict(self.hub.found(name, revision)[1])
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "deletedFile":
                del files[line["value"]["path"]]
        commit = self.hub.commit(name, files, revision)
        return self._answer({"commitUrl": f"{self.hub.url}/{name}/commit/{commit}", "commitOid": commit})

    def _read(self):
        path = urllib.parse.urlsplit(self.path).path
        file = _FILE.fullmatch(path)
        match = file or _INFO.fullmatch(path)
        if match is None:
            return self._answer({}, 404)
        name, revision = match["name"], urllib.parse.unquote(match["revision"] or "main")
        commit, files = self.hub.found(name, revision)
        if files is None:
            # As the hub does, which does not tell strangers whether a private repository exists.
            return self._answer({}, 401 if commit == "RepoNotFound" else 404, {"X-Error-Code": commit})
        if file is None:
            siblings = [{"rfilename": name} for name in sorted(files)]
            return self._answer({"id": name, "modelId": name, "sha": commit, "siblings": siblings, "tags": []})
        if name in self.hub.gated:
            return self._answer({}, 403, {"X-Error-Code": "GatedRepo"})
        inner = urllib.parse.unquote(file["file"])
        if inner not in files:
            return self._answer({}, 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        content = files[inner]
        headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
        if self.command == "GET":
            self.hub.downloads.append(inner)
            if inner == self.hub.cut:
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: 0 if "Range" in self.headers else len(content) // 2])
                self.close_connection = True
                return None
        return self._answer(content, headers=headers)

    def _answer(self, content, status=200, headers=None):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch, tmp_path_factory) -> Iterator[Hub]:
    """A hub without repositories, an empty cache, and the settings to reach it by `hf://` URLs."""
    constants = pytest.importorskip("huggingface_hub.constants", reason="needs huggingface_hub, of audiovae-jax[hub]")
    server, cache = Hub(), tmp_path_factory.mktemp("cache")
    # The package reads its settings at import, and commands in other processes read the environment.
    for name, value in {
        "ENDPOINT": server.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(cache),
        "HF_TOKEN_PATH": str(cache / "none"),
        "HF_HUB_OFFLINE": False,
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    yield server
    server.stop()
