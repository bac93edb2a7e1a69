"""A Hub of K2-shaped checkpoints on this machine, in a process of its own.

The files are sparse, with real headers; bodies are sent from template chunks in memory by
``sendfile``, so that terabytes can be served without storing or computing them. See `k2_content`
for what they hold. As a script it prints one JSON line with its endpoint and then answers commands
on its standard input, each a JSON line (`ServerProcess` speaks that):

``{"do": "report"}``, ``{"do": "clear"}`` (forget the log), ``{"do": "set", "rate": 1.25e9}``.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any, Self

from benchmarks.k2_content import Content, Shape, write_sparse
from tests.hub_server import HubServer, Request, _Handler

SLICE = 1 << 20  # bytes sent at once on a capped link
# Seconds of the rate that may be caught up after a pause, as a router's buffer does: the server has
# to wait for a core that the client is using, which a link does not.
BURST = 0.05
PAIR = "LLM360/K2=ckpt_159,ckpt_160"


class Link:
    """A cap on the sum of all connections: each slice waits for its turn on one time line."""

    def __init__(self, rate: float = 0.0) -> None:
        self.rate = rate
        self._free = 0.0
        self._lock = threading.Lock()

    def take(self, nbytes: int) -> None:
        """Wait until the link has carried what was taken before."""
        with self._lock:
            now = time.monotonic()
            self._free = max(self._free, now - BURST)
            wait = self._free - now
            self._free += nbytes / self.rate
        if wait > 0:
            time.sleep(wait)


class K2Server(HubServer):
    """Serves generated checkpoints; faults are not for this one.

    Parameters
    ----------
    root : path
        Empty folder; better in memory, for the templates lie there.
    repositories : mapping of str to (Shape, list of str)
        Model and branches of each repository.
    content : Content
    """

    def __init__(
        self, root: Path | str, repositories: dict[str, tuple[Shape, list[str]]], content: Content
    ) -> None:
        super().__init__(root)
        self.content, self.link = content, Link()
        self.shapes = {repo: shape for repo, (shape, _) in repositories.items()}
        self.most = self._open = 0  # bodies under way at once
        for repo, (shape, branches) in repositories.items():
            for branch in branches:
                write_sparse(self.root / repo / branch, shape)
        templates = self.root / "templates"
        templates.write_bytes(content.templates.tobytes())
        self._found: dict[tuple[str, str], tuple[str, Path] | None] = {}
        self._fds = {templates: os.open(templates, os.O_RDONLY)}
        self.templates = self._fds[templates]

    def __enter__(self) -> Self:
        super().__enter__()
        for server in self._servers:
            server.RequestHandlerClass = _Generated
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        for fd in self._fds.values():
            os.close(fd)

    def hashes(self, path: Path) -> tuple[str, str]:
        """Told by the name: what is stored is sparse, and the same for every branch."""
        named = str(path).encode()
        return hashlib.sha256(named).hexdigest(), hashlib.sha1(named).hexdigest()

    def find(self, repo: str, rev: str) -> tuple[str, Path] | None:
        """As inherited; what was found stays, since nothing changes."""
        if (repo, rev) not in self._found:
            self._found[repo, rev] = super().find(repo, rev)
        return self._found[repo, rev]

    def fd(self, full: Path) -> int:
        with self._lock:
            if full not in self._fds:
                self._fds[full] = os.open(full, os.O_RDONLY)
            return self._fds[full]

    def body(self, change: int) -> None:
        with self._lock:
            self._open += change
            self.most = max(self.most, self._open)

    def clear(self) -> None:
        with self._lock:
            self._log.clear()
            self.most = self._open

    def report(self) -> dict[str, Any]:
        """The log so far, in numbers.

        ``ranges``: (revision, file, offset, bytes) of each range served to its end, in order of
        arrival; ``cut``: bytes of others; ``listed``: bytes of listings and small files;
        ``resolves``: how often each file's address was asked for; ``requests``: all, by host;
        ``connections``: bodies under way at once, at most; ``cpu``: seconds of this process.
        """
        log = list(self.log)
        bodies = [r for r in log if r.host == "cdn"]
        ranges = [
            (r.rev, r.file, r.start or 0, r.sent)
            for r in bodies
            if r.stop is None or r.sent == r.stop - (r.start or 0)
        ]
        resolves = Counter(f"{r.rev}/{r.file}" for r in log if "/resolve/" in r.path)
        return {
            "ranges": ranges,
            "cut": sum(r.sent for r in bodies) - sum(r[3] for r in ranges),
            "listed": sum(r.sent for r in log if r.host == "api"),
            "resolves": resolves,
            "requests": Counter(r.host for r in log),
            "connections": self.most,
            "cpu": time.process_time(),
        }


class _Generated(_Handler):
    """Sends bodies that are made of templates."""

    request_: Request

    def send_body(self, full: Path, start: int, stop: int) -> None:
        hub = self.server.hub
        assert isinstance(hub, K2Server)
        if full.suffix != ".safetensors":
            super().send_body(full, start, stop)
            return
        owner, name, branch, file = full.relative_to(hub.root).parts
        self.wfile.flush()
        hub.body(+1)
        try:
            shape = hub.shapes[f"{owner}/{name}"]
            for template, inside, count in hub.content.pieces(shape, branch, file, start, stop):
                if template < 0:
                    self.pump(hub, hub.fd(full), inside, count)
                else:
                    offset = template * hub.content.chunk + inside
                    self.pump(hub, hub.templates, offset, count)
        finally:
            hub.body(-1)

    def pump(self, hub: K2Server, fd: int, offset: int, count: int) -> None:
        while count:
            size = count
            if hub.link.rate:
                size = min(SLICE, count)
                hub.link.take(size)
            while size:
                sent = os.sendfile(self.connection.fileno(), fd, offset, size)
                if sent == 0:
                    raise ConnectionResetError
                offset, size, count = offset + sent, size - sent, count - sent
                self.request_.sent += sent


class ServerProcess:
    """The server as a process, ended with the ``with`` block or with this process.

    Parameters
    ----------
    *arguments : str
        Of the script, for example ``"--layers", "4"``.
    """

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "benchmarks.k2_server", *arguments]
        root = Path(__file__).parents[1]
        self._process = subprocess.Popen(
            command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        said = self._answer()
        self.endpoint: str = said["endpoint"]
        self.pid: int = said["pid"]

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the server ended with status {self._process.wait()}")
        said: dict[str, Any] = json.loads(line)
        return said

    def tell(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Give a command and wait for what it says."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def repositories_of(said: list[str], layers: int) -> dict[str, tuple[Shape, list[str]]]:
    """Read ``owner/name[:layers]=branch,branch``."""
    found = {}
    for text in said:
        name, _, branches = text.partition("=")
        repo, _, own = name.partition(":")
        found[repo] = (Shape(layers=int(own or layers)), branches.split(","))
    return found


def _serve(server: K2Server) -> None:
    """Answer commands until there are no more."""
    for line in sys.stdin:
        said = json.loads(line)
        do, answer = said.pop("do"), {}
        if do == "report":
            answer = server.report()
        elif do == "clear":
            server.clear()
        else:
            server.link.rate = said.get("rate", server.link.rate)
            server.latency = said.get("latency", server.latency)
        print(json.dumps(answer), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--repo", action="append", metavar="OWNER/NAME[:LAYERS]=BRANCH,…", help=f"default {PAIR}"
    )
    parser.add_argument("--layers", type=int, default=80)
    parser.add_argument("--rate", type=float, default=0.0, help="bytes/s of all connections")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds, of each request")
    parser.add_argument("--chunk", type=int, default=1 << 20, help="bytes of a template")
    parser.add_argument("--folder", default="/dev/shm", help="where templates and headers lie")
    parser.add_argument(
        "--port-file", help="write the endpoint there, and serve until SIGTERM, not by commands"
    )
    parser.add_argument("--log-file", help="write the report there at the end")
    given = parser.parse_args()
    folder = given.folder if Path(given.folder).is_dir() else None
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(dir=folder, prefix="k2-server-") as root:
        repositories = repositories_of(given.repo or [PAIR], given.layers)
        with (
            K2Server(root, repositories, Content(given.chunk)) as server,
            contextlib.suppress(KeyboardInterrupt),
        ):
            server.link.rate, server.latency = given.rate, given.latency
            print(json.dumps({"endpoint": server.endpoint, "pid": os.getpid()}), flush=True)
            if given.port_file:
                aside = Path(given.port_file + ".aside")
                aside.write_text(server.endpoint)
                aside.replace(given.port_file)
                signal.pause()
            else:
                _serve(server)
        if given.log_file:
            Path(given.log_file).write_text(json.dumps(server.report()))


if __name__ == "__main__":
    main()
