"""A Hugging Face Hub on loopback: the part of its HTTP interface that data sets are downloaded by.

It answers what `huggingface_hub` and `datasets` ask, with the Hub's status codes and headers, and can be told
to refuse, to limit and to break off. `requests` lists what was asked.
"""

import hashlib
import json
import re
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = (".parquet", ".arrow")  # files that the Hub keeps apart and redirects to
API = re.compile(r"/api/datasets/(?P<repo>[\w.-]+/[\w.-]+)(?:/(?P<verb>[\w-]+)(?:/(?P<rest>.*))?)?")
RESOLVE = re.compile(r"/datasets/(?P<repo>[\w.-]+/[\w.-]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")


@dataclass
class Repository:
    """A data set. files: path → content, at the revisions.

    token: the only one that may read it; None: everyone may. gated: whether it says so when it refuses.
    limits: how many requests are answered with 429 first. broken: how many downloads break off in the middle.
    fault: a status that every request gets.
    """

    files: Mapping[str, bytes]
    revisions: tuple[str, ...] = ("main",)
    token: str | None = None
    gated: bool = False
    limits: int = 0
    broken: int = 0
    fault: int = 0
    commit: str = field(init=False)

    def __post_init__(self) -> None:
        content = "".join(f"{path}{_sha(data)}" for path, data in self.files.items())
        self.commit = hashlib.sha1(content.encode()).hexdigest()


class Hub:
    """Serves repositories by their names while the block lasts. Its address belongs into HF_ENDPOINT."""

    def __init__(self, repositories: Mapping[str, Repository]) -> None:
        self.repositories = dict(repositories)
        self.requests: list[tuple[str, str, str]] = []  # method, path, range
        hub = self

        class Handler(_Handler):
            served = hub

        # The second is the store of large files. Clients treat a redirection to another host differently.
        self._servers = [ThreadingHTTPServer(("127.0.0.1", 0), Handler) for _ in range(2)]
        self.address, self.store = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)

    def asked(self, part: str, method: str = "GET") -> list[str]:
        """Return the ranges of the requests whose path has a part."""
        return [wanted for name, path, wanted in self.requests if name == method and part in path]

    def __enter__(self) -> Self:
        for server in self._servers:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()


class _Refusal(Exception):
    def __init__(self, status: int, code: str = "", **headers: str) -> None:
        self.status = status
        self.headers = (
            {"X-Error-Code": code, "X-Error-Message": f"refused: {code}", **headers} if code else headers
        )


class _Handler(BaseHTTPRequestHandler):
    served: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        self.served.requests.append((self.command, url.path, self.headers.get("Range", "")))
        try:
            self._answer(unquote(url.path))
        except _Refusal as refusal:
            self._send(refusal.status, b'{"error": "refused"}', refusal.headers)

    do_HEAD = do_GET
    do_POST = do_GET

    def _answer(self, path: str) -> None:
        if found := RESOLVE.fullmatch(path):
            self._file(self._repository(found["repo"]), found["revision"], found["path"])
        elif found := API.fullmatch(path):
            self._api(found["repo"], self._repository(found["repo"]), found["verb"], found["rest"] or "")
        elif path.startswith("/stored/"):
            self._stored(path.removeprefix("/stored/"))
        else:
            raise _Refusal(404)

    def _repository(self, name: str) -> Repository:
        found = self.served.repositories.get(name)
        if found is None:
            raise _Refusal(401, "RepoNotFound")
        if found.fault:
            raise _Refusal(found.fault)
        if found.limits:
            found.limits -= 1
            raise _Refusal(429, **{"Retry-After": "0"})
        sent = self.headers.get("Authorization", "").removeprefix("Bearer ")
        describes = self.path.startswith("/api/") and "auth-check" not in self.path
        if found.token in (None, sent) or (found.gated and describes):  # a gate is before the files alone
            return found
        if found.gated:
            raise _Refusal(403 if sent else 401, "GatedRepo")
        raise _Refusal(401, "RepoNotFound")

    def _commit(self, repository: Repository, revision: str) -> str:
        if revision not in (*repository.revisions, repository.commit):
            raise _Refusal(404, "RevisionNotFound")
        return repository.commit

    def _api(self, name: str, repository: Repository, verb: str | None, rest: str) -> None:
        if verb == "auth-check":
            self._json({})
        elif verb in (None, "revision"):
            sha = self._commit(repository, rest or "main")
            siblings = [{"rfilename": path} for path in repository.files]
            self._json({"id": name, "sha": sha, "siblings": siblings, "private": False, "gated": False})
        elif verb == "tree":
            revision, _, folder = rest.partition("/")
            self._commit(repository, revision)
            deep = parse_qs(urlsplit(self.path).query).get("recursive") == ["true"]
            self._json(list(_tree(repository.files, folder, deep)))
        elif verb == "paths-info":
            self._commit(repository, rest)
            body = self.rfile.read(int(self.headers.get("Content-Length", "0"))).decode()
            asked = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body).get("paths", [])
            entries = {entry["path"]: entry for entry in _tree(repository.files, "", True)}
            self._json([entries[path] for path in asked if path in entries])
        else:
            raise _Refusal(404)

    def _file(self, repository: Repository, revision: str, path: str) -> None:
        commit = self._commit(repository, revision)
        if path not in repository.files:
            raise _Refusal(404, "EntryNotFound", **{"X-Repo-Commit": commit})
        data = repository.files[path]
        headers = {"X-Repo-Commit": commit, "ETag": f'"{_sha(data)}"', "Accept-Ranges": "bytes"}
        if path.endswith(LARGE):
            linked = {"X-Linked-Size": str(len(data)), "X-Linked-Etag": f'"{_sha(data)}"'}
            place = f"{self.served.store}/stored/{_sha(data)}"
            self._send(302, b"", {**headers, **linked, "Location": place})
        else:
            self._send(200, data, headers)

    def _stored(self, sha: str) -> None:
        """Send a large file from where a range begins, or half of it and no more."""
        owner, data = next(
            (repository, data)
            for repository in self.served.repositories.values()
            for data in repository.files.values()
            if _sha(data) == sha
        )
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        begin = int(wanted[1]) if wanted else 0
        left = data[begin:]
        headers = {"ETag": f'"{sha}"', "Accept-Ranges": "bytes"}
        if wanted:
            headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
        if owner.broken and self.command == "GET":
            owner.broken -= 1
            self._send(206 if wanted else 200, left, headers, only=len(left) // 2)
        else:
            self._send(206 if wanted else 200, left, headers)

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str], only: int | None = None) -> None:
        """Send an answer. only: bytes of the body after which the connection is cut."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            with suppress(ConnectionError):
                self.wfile.write(body[:only])
        if only is not None:
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _tree(files: Mapping[str, bytes], folder: str, deep: bool) -> list[dict[str, Any]]:
    """Return the entries of a folder, as the Hub's tree has them."""
    found: dict[str, dict[str, Any]] = {}
    for path, data in files.items():
        inside = path.removeprefix(f"{folder}/") if folder else path
        if folder and inside == path:
            continue
        parts = path.split("/")
        for depth in range(1, len(parts)):
            above = "/".join(parts[:depth])
            if above != folder and (deep or "/" not in above.removeprefix(f"{folder}/")):
                found[above] = {"type": "directory", "path": above, "size": 0, "oid": "d" * 40}
        if deep or "/" not in inside:
            entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": _sha(data)[:40]}
            if path.endswith(LARGE):
                entry["lfs"] = {"oid": _sha(data), "size": len(data), "pointerSize": 130}
            found[path] = entry
    return list(found.values())


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
