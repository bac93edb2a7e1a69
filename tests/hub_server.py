"""A test double of the Hugging Face Hub: a real HTTP server, with a second one for file contents.

Repositories are folders: ``root/<owner>/<name>/<branch>/files…`` and, for tags,
``root/<owner>/<name>/tags/<tag>/files…``. Every request is logged. Faults can be queued.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import select
import shutil
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, quote, unquote, urlsplit


@dataclass
class Request:
    """One request as the server saw it; `start` and `stop` bound the bytes that were asked for.

    `fault` is what was in fact done to it, `at` when it came (seconds, monotonic), `asked` its
    ``Range``.
    """

    method: str
    host: str  # "api" or "cdn"
    path: str
    repo: str = ""
    rev: str = ""
    file: str = ""
    start: int | None = None
    stop: int | None = None
    status: int = 0
    sent: int = 0
    authorized: bool = False
    fault: Fault | None = None
    asked: str = ""
    at: float = field(default_factory=time.monotonic)


@dataclass
class Fault:
    """Something to go wrong, once per `times`, for requests that match.

    Kinds: ``status`` (with `status`, `headers`), ``cut`` (close the connection after `after` bytes
    of body), ``ignore_range`` (200 with the whole file), ``wrong_range`` (a shifted Content-Range),
    ``expired`` (403 from the content host), ``expire`` (every address signed so far answers 403),
    ``reset`` (TCP reset before the answer, or after `after` bytes of body), ``stall`` (wait
    `seconds` first), ``hang`` (nothing after `after` bytes of body until the client hangs up, or
    `seconds`). To `after`, `share` (0 … 1) of the body's length is added.
    """

    kind: str
    host: str = "cdn"
    method: str = "GET"
    file: str = ""
    times: int = 1
    status: int = 503
    headers: dict[str, str] = field(default_factory=dict)
    after: int = 0
    share: float = 0.0
    seconds: float = 0.0

    def meets(self, request: Request) -> bool:
        same = request.host == self.host and request.method == self.method
        return same and self.times > 0 and self.file in request.path


class HubServer:
    """Serves `root` as a Hub until the ``with`` block ends.

    Attributes
    ----------
    endpoint, cdn : str
        Addresses of the two hosts.
    log : list of Request
        In order of arrival; looking at it waits until requests under way are answered.
    faults : list of Fault or of callables Request -> Fault | None
    gated, private : set of str
        Repositories that need the token ``"hf_good"``.
    renamed : dict of str to str
        Old to new name of a repository.
    page : int
        Entries per page of a listing.
    latency : float
        Seconds that each request waits first.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        self._log: list[Request] = []
        self._busy = 0
        self.faults: list[Fault | Callable[[Request], Fault | None]] = []
        self.gated: set[str] = set()
        self.private: set[str] = set()
        self.renamed: dict[str, str] = {}
        self.page, self.latency = 1000, 0.0
        self.plain = (".json", ".txt", ".md")  # small files: served by the API host itself
        self._expired: set[str] = set()
        self._hashes: dict[tuple[str, int, int], tuple[str, str]] = {}
        self._signed = 0
        self._lock = threading.Condition()

    def __enter__(self) -> Self:
        self._servers = [_Server(("127.0.0.1", 0), _Handler) for _ in range(2)]
        for server, kind in zip(self._servers, ("api", "cdn"), strict=True):
            server.hub, server.kind = self, kind
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        self.endpoint, self.cdn = (f"http://127.0.0.1:{s.server_port}" for s in self._servers)
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    # What is in the folders

    def refs(self, repo: str) -> dict[str, Path]:
        """Branch (``name``) and tag (``tags/name``) folders of a repository."""
        folder = self.root / repo
        if not folder.is_dir():
            return {}
        found = {p.name: p for p in sorted(folder.iterdir()) if p.is_dir() and p.name != "tags"}
        tags = folder / "tags"
        if tags.is_dir():
            found |= {f"tags/{p.name}": p for p in sorted(tags.iterdir()) if p.is_dir()}
        return found

    def listing(self, folder: Path) -> dict[str, int]:
        """Path to size of every file of one revision."""
        return {
            p.relative_to(folder).as_posix(): p.stat().st_size
            for p in sorted(folder.rglob("*"))
            if p.is_file()
        }

    def commit(self, ref: str, folder: Path) -> str:
        """Hash that changes with the branch's name and its files."""
        said = [(k, v, (folder / k).stat().st_mtime_ns) for k, v in self.listing(folder).items()]
        return hashlib.sha1(f"{ref}{said}".encode()).hexdigest()

    def hashes(self, path: Path) -> tuple[str, str]:
        """SHA-256 of a file's content and the hash of its blob; names stand for what is large."""
        stat = path.stat()
        key = (str(path), stat.st_size, stat.st_mtime_ns)
        if key not in self._hashes:
            sparse = stat.st_size > 1 << 20
            data = repr(key).encode() if sparse else path.read_bytes()
            blob = hashlib.sha1(b"blob %d\0" % len(data) + data)
            self._hashes[key] = hashlib.sha256(data).hexdigest(), blob.hexdigest()
        return self._hashes[key]

    def find(self, repo: str, rev: str) -> tuple[str, Path] | None:
        """Commit hash and folder of a branch, tag or commit."""
        for ref, folder in self.refs(repo).items():
            commit = self.commit(ref, folder)
            if rev in (commit, ref, ref.removeprefix("tags/"), f"refs/heads/{ref}"):
                return commit, folder
        return None

    # Signed addresses

    def sign(self, repo: str, commit: str, file: str) -> str:
        with self._lock:
            self._signed += 1
            token = f"{self._signed:06d}"
        return f"{self.cdn}/{repo}/{commit}/{quote(file)}?X-Signature={token}&Expires=3600"

    def expire_all(self) -> None:
        """Make every address signed so far answer 403."""
        with self._lock:
            self._expired |= {f"{i:06d}" for i in range(self._signed + 1)}

    def is_good(self, token: str) -> bool:
        with self._lock:
            return token.isdecimal() and int(token) <= self._signed and token not in self._expired

    def fault(self, request: Request) -> Fault | None:
        """Take the first queued fault that meets this request."""
        with self._lock:
            for entry in self.faults:
                found = entry(request) if callable(entry) else entry
                if found is not None and found.meets(request):
                    found.times -= 1
                    return found
        return None

    @property
    def log(self) -> list[Request]:
        with self._lock:
            self._lock.wait_for(lambda: self._busy == 0, timeout=5.0)
            return self._log

    def begin(self, request: Request) -> None:
        with self._lock:
            self._log.append(request)
            self._busy += 1

    def end(self) -> None:
        with self._lock:
            self._busy -= 1
            self._lock.notify_all()

    # What tests ask of the log

    def ranges(self, repo: str = "") -> Iterator[tuple[str, str, int, int]]:
        """Revision, file, offset and bytes of every answered range, in order."""
        for r in self.log:
            if r.status == 206 and r.start is not None and r.stop is not None and repo in r.repo:
                yield r.rev, r.file, r.start, r.stop - r.start

    def count(self, method: str, host: str = "api", path: str = "") -> int:
        """Number of logged requests of this kind."""
        return sum(r.method == method and r.host == host and path in r.path for r in self.log)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    hub: HubServer
    kind: str

    def handle_error(self, *_: object) -> None:
        """Say nothing of clients that hang up."""


class _Cut(Exception):
    """The connection was broken on purpose."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else every small answer takes 45 ms
    server: _Server

    def do_GET(self) -> None:
        self.answer()

    def do_HEAD(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.answer()

    def log_message(self, *_: Any) -> None:
        pass

    @property
    def hub(self) -> HubServer:
        return self.server.hub

    def answer(self) -> None:
        authorized = "Authorization" in self.headers
        self.request_ = Request(
            self.command, self.server.kind, self.path,
            authorized=authorized, asked=self.headers.get("Range", ""),
        )  # fmt: skip
        self.hub.begin(self.request_)
        try:
            time.sleep(self.hub.latency)
            self.fault = self.hub.fault(self.request_)
            if not self.broken():
                url = urlsplit(self.path)
                if self.server.kind == "cdn":
                    self.content(unquote(url.path), parse_qs(url.query))
                elif url.path.startswith("/api/"):
                    self.api(url.path, parse_qs(url.query))
                else:
                    self.resolve(url.path)
        except (_Cut, BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            self.hub.end()

    def broken(self) -> bool:
        """Do what the fault says before an answer; True if that was all."""
        fault = self.fault
        if fault is None:
            return False
        if fault.kind == "stall":
            self.request_.fault = fault
            time.sleep(fault.seconds)
        elif fault.kind == "reset" and not fault.after and not fault.share:
            self.reset()
        elif fault.kind == "hang" and self.command == "HEAD":
            self.hang()
        elif fault.kind == "expire":
            self.request_.fault = fault
            self.hub.expire_all()
        elif fault.kind in ("status", "expired"):
            self.request_.fault = fault
            self.send(403 if fault.kind == "expired" else fault.status, fault.headers, b"no")
            return True
        return False

    def reset(self) -> None:
        """End the connection with a TCP reset."""
        self.request_.fault = self.fault
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.connection.shutdown(socket.SHUT_RD)
        self.close_connection = True
        self.connection.close()
        raise _Cut

    def hang(self) -> None:
        """Send nothing more until the client hangs up."""
        assert self.fault is not None
        self.request_.fault = self.fault
        select.select([self.connection], [], [], self.fault.seconds)
        raise _Cut

    def send(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.request_.status = status
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
            self.request_.sent += len(body)

    def send_json(self, value: Any, headers: dict[str, str] | None = None) -> None:
        said = {"Content-Type": "application/json"} | (headers or {})
        self.send(200, said, json.dumps(value).encode())

    def refuse(self, status: int, code: str, message: str) -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": message}
        self.send(status, headers, json.dumps({"error": message}).encode())

    # Who may read what

    def may(self, repo: str) -> bool:
        """Whether the repository can be read; says why not if it can't."""
        good = self.headers.get("Authorization") == "Bearer hf_good"
        moved = self.hub.renamed.get(repo)
        if moved is not None:
            there = f"{self.hub.endpoint}{self.path.replace(repo, moved, 1)}"
            self.send(307, {"Location": there.removeprefix(self.hub.endpoint)})
        elif not self.hub.refs(repo) or (repo in self.hub.private and not good):
            self.refuse(401, "RepoNotFound", "Repository not found")
        elif repo in self.hub.gated and not good and "/resolve/" in self.path:
            self.refuse(403, "GatedRepo", f"Access to model {repo} is restricted")
        elif repo in self.hub.gated and not good and "/refs" in self.path:
            self.refuse(403, "GatedRepo", f"Access to model {repo} is restricted")
        else:
            return True
        return False

    def found(self, repo: str, rev: str) -> tuple[str, Path] | None:
        self.request_.repo, self.request_.rev = repo, rev
        if not self.may(repo):
            return None
        found = self.hub.find(repo, rev)
        if found is None:
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {rev}")
        return found

    # The routes

    def api(self, path: str, query: dict[str, list[str]]) -> None:
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(refs|revision|tree)(?:/(.+))?)?", path)
        if match is None:
            self.refuse(404, "EntryNotFound", "no such route")
            return
        repo, what, rest = match[1], match[2] or "revision", match[3] or "main"
        if what == "refs":
            self.request_.repo = repo
            if self.may(repo):
                self.send_refs(repo)
            return
        rev, _, folder = rest.partition("/")
        found = self.found(repo, unquote(rev))
        if found is None:
            return
        commit, root = found
        if what == "tree":
            self.send_tree(repo, rev, root, unquote(folder), query)
        else:
            files = [{"rfilename": f, "size": n} for f, n in self.hub.listing(root).items()]
            said = {"id": repo, "modelId": repo, "sha": commit, "siblings": files}
            self.send_json(said | {"private": False, "gated": False, "tags": [], "downloads": 0})

    def send_refs(self, repo: str) -> None:
        branches, tags = [], []
        for ref, folder in self.hub.refs(repo).items():
            name = ref.removeprefix("tags/")
            commit = self.hub.commit(ref, folder)
            kind = "tags" if ref.startswith("tags/") else "heads"
            entry = {"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": commit}
            (tags if kind == "tags" else branches).append(entry)
        self.send_json({"branches": branches, "tags": tags, "converts": [], "pullRequests": []})

    def send_tree(
        self, repo: str, rev: str, root: Path, below: str, query: dict[str, list[str]]
    ) -> None:
        files = self.hub.listing(root)
        folders = {str(Path(f).parent) for f in files} - {"."}
        entries = [{"type": "directory", "oid": "0" * 40, "size": 0, "path": p} for p in folders]
        for file, size in files.items():
            sha256, blob = self.hub.hashes(root / file)
            entry: dict[str, Any] = {"type": "file", "oid": blob, "size": size, "path": file}
            if not file.endswith(self.hub.plain):
                entry["lfs"] = {"oid": sha256, "size": size, "pointerSize": 134}
            entries.append(entry)
        entries = sorted(
            (e for e in entries if e["path"].startswith(below)), key=lambda e: e["path"]
        )
        if not query.get("recursive", ["false"])[0].lower() == "true":
            depth = below.count("/") + bool(below)
            entries = [e for e in entries if e["path"].count("/") == depth]
        start = int(query.get("cursor", ["0"])[0])
        stop = start + self.hub.page
        headers = {}
        if stop < len(entries):
            rest = "&".join(f"{k}={v[0]}" for k, v in query.items() if k != "cursor")
            url = f"{self.hub.endpoint}/api/models/{repo}/tree/{rev}?{rest}&cursor={stop}"
            headers["Link"] = f'<{url}>; rel="next"'
        self.send_json(entries[start:stop], headers)

    def resolve(self, path: str) -> None:
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if match is None:
            self.refuse(404, "EntryNotFound", "no such route")
            return
        repo, rev, file = match[1], unquote(match[2]), unquote(match[3])
        self.request_.file = file
        found = self.found(repo, rev)
        if found is None:
            return
        commit, root = found
        full = root / file
        if ".." in file.split("/") or not full.is_file():
            self.refuse(404, "EntryNotFound", f"{file} does not exist on {rev}")
            return
        size = full.stat().st_size
        sha256, blob = self.hub.hashes(full)
        etag = blob if file.endswith(self.hub.plain) else sha256  # as in the listing
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if file.endswith(self.hub.plain):
            self.send_file(full, headers | {"ETag": f'"{etag}"'})
            return
        headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(size)}
        self.send(302, headers | {"Location": self.hub.sign(repo, commit, file)})

    def content(self, path: str, query: dict[str, list[str]]) -> None:
        owner, name, rev, file = path.lstrip("/").split("/", 3)
        self.request_.repo, self.request_.rev, self.request_.file = f"{owner}/{name}", rev, file
        if not self.hub.is_good(query.get("X-Signature", [""])[0]):
            self.send(403, {}, b"<Error><Code>AccessDenied</Code></Error>")
            return
        found = self.hub.find(self.request_.repo, rev)
        if found is None:
            self.send(404, {}, b"gone")
            return
        self.send_file(found[1] / file, {"ETag": f'"{rev}"', "Accept-Ranges": "bytes"})

    def send_file(self, full: Path, headers: dict[str, str]) -> None:
        """Send the file or the range of it that is asked for; sparse files are no burden."""
        size = full.stat().st_size
        start, stop, status = 0, size, 200
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        kind = self.fault.kind if self.fault else ""
        if asked:
            start = int(asked[1])
            stop = min(int(asked[2]) + 1 if asked[2] else size, size)
            self.request_.start, self.request_.stop = start, stop
            if start >= size:
                self.send(416, {"Content-Range": f"bytes */{size}"})
                return
            if kind == "ignore_range":
                if (start, stop) != (0, size):
                    self.request_.fault = self.fault
                start, stop = 0, size
            else:
                if kind == "wrong_range":
                    self.request_.fault = self.fault
                status = 206
                shift = 1 if kind == "wrong_range" else 0
                span = f"bytes {start + shift}-{stop - 1 + shift}/{size}"
                headers = headers | {"Content-Range": span}
        self.request_.status = status
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(stop - start)}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.send_body(full, start, stop)

    def send_body(self, full: Path, start: int, stop: int) -> None:
        fault, end = self.fault, stop
        if fault is not None and fault.kind in ("cut", "hang", "reset"):
            end = min(stop, start + fault.after + int(fault.share * (stop - start)))
        self.wfile.flush()
        with full.open("rb") as file:
            while start < end:
                sent = os.sendfile(self.connection.fileno(), file.fileno(), start, end - start)
                if sent == 0:
                    raise _Cut
                start += sent
                self.request_.sent += sent
        if fault is None or end == stop:
            return
        if fault.kind == "reset":
            self.reset()
        if fault.kind == "hang":
            self.hang()
        self.request_.fault = fault
        self.connection.shutdown(socket.SHUT_RDWR)
        raise _Cut


def serve_run(folder: Path, root: Path, repo: str) -> None:
    """Make a repository of a folder of checkpoints: each becomes a branch."""
    for source in sorted(p for p in folder.iterdir() if p.is_dir()):
        shutil.copytree(source, root / repo / source.name, copy_function=_link)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)
