"""Byte ranges over HTTP that either arrive exactly or raise: redirects, retries, resumption.

Written on urllib3 for its connection pool, proxies and TLS roots; a range goes from the socket
into the caller's buffer piece by piece, so memory stays bounded. A server that ignores ``Range``
answers 200 with the whole file: that is refused here, as taking it for the range would give wrong
numbers in silence.
"""

from __future__ import annotations

import http.client
import threading
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

import urllib3

from analysis360.errors import StorageError
from analysis360.storage.base import Store
from analysis360.storage.transport import Patience, Pools, Tally, is_transient, wait_asked

__all__ = ["HttpRanges", "HttpStore", "Target", "origin"]

_PIECE = 1 << 19  # bytes taken at once of a body without a length
_HOPS = 5
BUSY = {408, 429, 500, 502, 503, 504}
_REFUSED = {401, 403, 410}
_MOVED = {301, 302, 303, 307, 308}
_OTHER = (OSError, ValueError)  # of the connection; of an address that is none
_PROGRESS = 65_536  # bytes after which earlier failures are forgotten


@dataclass(frozen=True)
class Target:
    """Where a file is read from.

    Attributes
    ----------
    url : str
    headers : mapping of str to str
        Sent with every request to it, so the token only where it belongs.
    signed : bool
        The address was given by a redirect: it can expire, and then the file is resolved again.
    """

    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    signed: bool = False


class _Address:
    """The target of one file, found once for all threads."""

    def __init__(self, find: Callable[[], Target]) -> None:
        self._find = find
        self._lock = threading.Lock()
        self._target: Target | None = None

    def get(self) -> Target:
        with self._lock:
            if self._target is None:
                self._target = self._find()
            return self._target

    def replace(self, old: Target, new: Target | None) -> None:
        """Put `new` (None: find it again) in place of `old`, unless another thread did already."""
        with self._lock:
            if self._target is old:
                self._target = new


class HttpRanges(Store):
    """Base of the stores that read by HTTP range requests.

    Parameters
    ----------
    uri : str
    token : str, optional
        Sent as a bearer token to the origin of `root` and nowhere else.
    root : str
        Address whose origin the token belongs to.
    attempts : int
        Requests in a row without progress after which a read is given up.
    backoff : float
        Seconds before the first repetition; doubled each time, with jitter, 30 at most. A
        ``Retry-After`` of up to 300 s is honoured instead.
    timeout : float
        Seconds without a byte after which a connection counts as broken.
    """

    def __init__(
        self,
        uri: str,
        root: str,
        *,
        token: str | None = None,
        attempts: int = 6,
        backoff: float = 0.5,
        timeout: float = 60.0,
    ) -> None:
        self.uri = uri
        self.attempts, self.backoff = attempts, backoff
        self._origin = origin(root)
        self._token = token
        self._pools = Pools(timeout)
        self._addresses: dict[str, _Address] = {}
        self._tags: dict[str, str] = {}  # strong ETags that answers must have, where asked for
        self._lock = threading.Lock()
        self._interrupted = threading.Event()
        self._retried = Tally()

    @property
    def retries(self) -> int:  # noqa: D102 - inherited
        return self._retried.value

    @abstractmethod
    def locate(self, path: str) -> Target:
        """Find where a file is read from; called once per file, and again if that expired."""

    def headers_for(self, url: str) -> dict[str, str]:
        """Headers of a request to `url`: the token only if it is of the token's own origin."""
        headers = {"Accept-Encoding": "identity", "User-Agent": "analysis360"}
        if self._token and origin(url) == self._origin:
            headers["Authorization"] = f"Bearer {self._token}"
        return headers

    def patience(self, what: str) -> Patience:
        """Make a counter of failures for one task, named for the error message."""
        return Patience(
            f"{self.uri}: {what}", self.attempts, self.backoff, self._interrupted,
            self._retried.add,
        )  # fmt: skip

    def request(
        self, method: str, url: str, headers: Mapping[str, str]
    ) -> urllib3.BaseHTTPResponse:
        """Send one request; neither redirects nor failures are followed up here."""
        return self._pools.of(url).request(
            method, url, headers=dict(headers), redirect=False, retries=False,
            preload_content=False, decode_content=False,
        )  # fmt: skip

    def head(self, path: str, url: str) -> urllib3.BaseHTTPResponse:
        """Ask for the headers of `url`, patiently; any status but "come back later" is an answer.

        Raises
        ------
        StorageError
            If there was no answer.
        """
        patience = self.patience(f"{path}: resolving its address")
        while True:
            patience.check()
            try:
                response = self.request("HEAD", url, self.headers_for(url))
            except (urllib3.exceptions.HTTPError, OSError) as error:
                if not is_transient(error):
                    raise StorageError(f"{patience.what}: {error}") from error
                patience.failed(f"{type(error).__name__}: {error}")
                continue
            response.drain_conn()
            if response.status not in BUSY:
                return response
            patience.failed(f"status {response.status}", wait_asked(response.headers))

    def read_into(self, path: str, offset: int, buffer: memoryview) -> None:  # noqa: D102
        size = self.check_range(path, offset, len(buffer))
        with self._lock:
            address = self._addresses.get(path)
            if address is None:
                address = self._addresses[path] = _Address(lambda: self.locate(path))
        _Range(self, path, size, offset, buffer, address).run()

    def interrupt(self) -> None:  # noqa: D102 - inherited
        self._interrupted.set()
        self._pools.interrupt()

    def close(self) -> None:  # noqa: D102
        self._pools.close()
        # a new one: a reader that has not noticed the old one yet must not miss it
        self._interrupted = threading.Event()


class _Range:
    """One range on its way into a buffer, over as many requests as it takes."""

    def __init__(
        self,
        store: HttpRanges,
        path: str,
        size: int,
        offset: int,
        buffer: memoryview,
        address: _Address,
    ) -> None:
        self.store, self.path, self.size, self.address = store, path, size, address
        self.offset, self.buffer, self.done = offset, buffer, 0
        self.what = f"{path}: bytes {offset}…{offset + len(buffer)}"
        self.patience = store.patience(self.what)
        self.hops, self.renewed = 0, False

    def run(self) -> None:
        while self.done < len(self.buffer):
            self.patience.check()
            target = self.address.get()
            before = self.done
            try:
                self.once(target)
                wait = None
                reason = f"body cut short after {self.done - before} bytes"
            except _Busy as busy:
                reason, wait = str(busy), busy.wait
            except _Again:
                continue
            except StorageError:  # says it all already
                raise
            except (urllib3.exceptions.HTTPError, http.client.HTTPException, *_OTHER) as error:
                if not is_transient(error):
                    raise self.wrong(f"{error}") from error
                reason, wait = f"{type(error).__name__}: {error}", None
            if self.done - before >= _PROGRESS:
                self.patience.progress()
                self.hops, self.renewed = 0, False
            if self.done < len(self.buffer):
                self.patience.failed(reason, wait)

    def once(self, target: Target) -> None:
        """Ask for what is still missing and take what comes."""
        start, stop = self.offset + self.done, self.offset + len(self.buffer)
        headers = {**target.headers, "Range": f"bytes={start}-{stop - 1}"}
        response = self.store.request("GET", target.url, headers)
        try:
            self.check(response, target, start, stop)
            self.take(response)
        finally:
            # A body that was not read to its end leaves bytes on the wire: never reuse that one.
            if self.done == len(self.buffer) and response.length_remaining == 0:
                response.release_conn()
            else:
                response.close()

    def take(self, response: urllib3.BaseHTTPResponse) -> None:
        # urllib3's own readinto copies once more. The response of http.client below it receives
        # into the buffer, and its file tells after every single receipt how far that got.
        body: Any = getattr(response, "_original_response", None) or response
        plain = getattr(body, "length", None) is not None and hasattr(body, "fp")
        while self.done < len(self.buffer):
            self.patience.check()
            if plain and body.length:
                got = body.fp.readinto1(self.buffer[self.done : self.done + body.length])
                body.length -= got
            else:
                got = body.readinto(self.buffer[self.done : self.done + _PIECE])
            if got == 0:
                return
            self.done += got
        if plain and body.length == 0:
            body.readinto(bytearray())  # it lets go of the connection
        if response.status == 200 and body.read(1):  # a body without a length may be any length
            raise self.wrong(f"listed with {self.size} bytes, has more")
        if body is not response and body.isclosed():
            response.length_remaining = 0

    def check(
        self, response: urllib3.BaseHTTPResponse, target: Target, start: int, stop: int
    ) -> None:
        """Accept exactly the range that was asked for; tell what to do about anything else."""
        status, said = response.status, response.headers
        if status in BUSY:
            raise _Busy(f"status {status}", wait_asked(said))
        if status in _MOVED and said.get("Location"):
            self.move(target, urljoin(target.url, said["Location"]))
        if status in _REFUSED and target.signed and not self.renewed:
            self.renewed = True
            self.address.replace(target, None)
            raise _Again
        if said.get("Content-Encoding", "identity") != "identity":
            raise self.wrong(f"the server encoded the body as {said['Content-Encoding']}")
        tag = self.store._tags.get(self.path)
        if tag and status in (200, 206) and said.get("ETag") != tag:
            raise self.wrong(f"its ETag was {tag}, now {said.get('ETag')}; the file was changed")
        if status == 200 and start == 0 and stop == self.size:
            if said.get("Content-Length") not in (None, str(stop)):
                raise self.wrong(f"listed with {self.size} bytes, has {said['Content-Length']}")
            return
        if status == 200:
            raise self.wrong("the server ignored the range (status 200)")
        if status != 206:
            raise self.wrong(f"status {status}{reason(said)}")
        found, _, total = said.get("Content-Range", "").removeprefix("bytes ").partition("/")
        if found != f"{start}-{stop - 1}":
            raise self.wrong(f"asked for {start}-{stop - 1}, got Content-Range {found!r}")
        if total not in ("*", str(self.size)):
            raise self.wrong(f"listed with {self.size} bytes, the server says {total}")

    def move(self, target: Target, url: str) -> None:
        self.hops += 1
        if self.hops > _HOPS:
            raise self.wrong(f"more than {_HOPS} redirects")
        self.address.replace(target, Target(url, self.store.headers_for(url), signed=True))
        raise _Again

    def wrong(self, what: str) -> StorageError:
        tried = self.patience.failures + 1
        return StorageError(f"{self.store.uri}: {self.what}: {what} (attempt {tried})")


class _Busy(Exception):
    """The server asks to come back later."""

    def __init__(self, said: str, wait: float | None) -> None:
        super().__init__(said)
        self.wait = wait


class _Again(Exception):
    """The address was replaced: ask there."""


def origin(url: str) -> tuple[str, str | None, int | None]:
    """Scheme, host and port of an address: what a token may be sent to."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def reason(headers: Mapping[str, str]) -> str:
    """Say what the Hub tells of an error in its headers, ready to be put behind a status."""
    told = [headers.get("X-Error-Code"), headers.get("X-Error-Message")]
    return "".join(f", {text}" for text in told if text)


class HttpStore(HttpRanges):
    """Files below an address of a plain HTTP server that answers range requests.

    Parameters
    ----------
    root : str
        Address of the folder, with or without a slash at its end.
    files : mapping of str to int
        Paths below it and their sizes, as a plain server has no listing.
    token : str, optional
        Bearer token for that server.

    Raises
    ------
    StorageError
        If `files` is not given.
    """

    def __init__(
        self,
        root: str,
        *,
        files: Mapping[str, int] | None,
        token: str | None = None,
        attempts: int = 6,
        backoff: float = 0.5,
        timeout: float = 60.0,
    ) -> None:
        if files is None:
            raise StorageError(f"{root}: an HTTP server has no listing; give files={{path: size}}")
        super().__init__(
            root, root, token=token, attempts=attempts, backoff=backoff, timeout=timeout
        )
        self._root = root.rstrip("/") + "/"
        self._files = dict(files)
        self._asking = threading.Lock()

    def files(self) -> Mapping[str, int]:  # noqa: D102 - inherited
        return self._files

    def identity(self, path: str) -> str | None:
        """Address and strong ``ETag``, asked for once; None where the server gives none.

        Each answer must then have that tag. A time of change tells whole seconds only, and a weak
        tag not every byte: with these nothing is kept.
        """
        if path not in self._files:
            return None
        with self._asking:
            if path not in self._tags:
                self._tags[path] = self._tag(path)
            tag = self._tags[path]
        return f"{self._root}{path} {tag}" if tag else None

    def _tag(self, path: str) -> str:
        response = self._asked(path)
        tag = response.headers.get("ETag", "") if response.status == 200 else ""
        return tag if tag.startswith('"') else ""

    def _asked(self, path: str) -> urllib3.BaseHTTPResponse:
        """Headers of a file, wherever the server keeps it."""
        target = self.locate(path)
        for _ in range(_HOPS):
            response = self.head(path, target.url)
            if response.status not in _MOVED or not response.headers.get("Location"):
                return response
            url = urljoin(target.url, response.headers["Location"])
            target = Target(url, self.headers_for(url))
        return response

    def ask_size(self, path: str) -> int:
        """Size of a file that need not be listed, by one request for its headers.

        Raises
        ------
        StorageError
            If there is no such file, or the server doesn't tell.
        """
        response = self._asked(path)
        size = response.headers.get("Content-Length", "")
        if response.status == 200 and size.isdecimal():
            return int(size)
        told = f"status {response.status}" if response.status != 200 else "no Content-Length"
        raise StorageError(f"{self._root}{path}: asking for its size: {told}")

    def locate(self, path: str) -> Target:  # noqa: D102 - inherited
        url = self._root + quote(path)
        return Target(url, self.headers_for(url))
