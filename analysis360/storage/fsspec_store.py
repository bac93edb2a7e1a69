"""Object stores (``s3://``, ``gs://``, …) through fsspec, by exact ranges and nothing beside them.

``fs.open`` reads ahead, megabytes for an eight-byte header; so file systems that have a ranged
``cat_file`` of their own are asked by that, and the others with ``cache_type="none"``.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from analysis360.errors import RunNotFound, StorageError
from analysis360.storage.base import Store
from analysis360.storage.local import holds_tensors
from analysis360.storage.transport import Patience, Tally

__all__ = ["FsspecStore", "fingerprint", "is_known"]

_PIECE = 1 << 24  # bytes of one request; fsspec hands over bytes, so twice this is held per read
_EXTRA = ("s3", "s3a", "gs", "gcs")  # what analysis360[remote] brings
_STRONG = ("ETag", "etag", "generation", "md5Hash", "content_md5")
_WEAK = ("LastModified", "last_modified", "mtime", "updated", "modified", "created")
# What trying again does not mend
_FINAL = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError)
_FINAL_OTHER = (ImportError, NotImplementedError, TypeError, ValueError)


def is_known(protocol: str) -> bool:
    """Whether fsspec has a file system of this name, installed or not."""
    from fsspec.registry import (  # type: ignore[import-untyped]
        known_implementations,
        registry,
    )

    return protocol in registry or protocol in known_implementations


def fingerprint(uri: str) -> str:
    """Tell one state of a remote folder from another, by one listing and without reading it.

    Returns
    -------
    str
        ``"remote:"`` and 16 hexadecimal digits of the SHA-256 of sorted paths, sizes and what the
        listing tells of the content (ETag, generation, MD5, time of change), which serves as the
        revision of a checkpoint there. Counted are files as in the `fingerprint` of a local folder.
        A file system that lists sizes only is told apart by sizes only.

    Raises
    ------
    RunNotFound
        If there are no such files.
    StorageError
        If the listing can't be had.
    """
    with FsspecStore(uri) as store:
        return store.fingerprint()


class FsspecStore(Store):
    """Files below an address that fsspec knows, or one file.

    Credentials and endpoints are those of the file system's package: ``AWS_PROFILE``,
    ``AWS_ENDPOINT_URL``, ``GOOGLE_APPLICATION_CREDENTIALS``…, and of fsspec's own configuration:
    ``FSSPEC_S3='{"anon": true}'`` reads public buckets without any.

    Parameters
    ----------
    uri : str
        ``s3://bucket/folder``, ``gs://bucket/folder``, ``abfs://…``
    files : mapping of str to int, optional
        Paths and sizes if known; listed otherwise.
    attempts, backoff
        See `HttpRanges`.
    revision : str, optional
        A `fingerprint` that the files must have: looked up by `check`, and before the first read
        after the store was opened or closed.
    timeout : float
        Seconds after which a request of 16 MiB or a listing counts as failed, where the file system
        is an asynchronous one, as those of object stores are.
    options : mapping of str to object, optional
        For the file system's class.

    Raises
    ------
    StorageError
        If there is no file system of that name, or its package is not installed.
    """

    def __init__(
        self,
        uri: str,
        *,
        files: Mapping[str, int] | None = None,
        revision: str | None = None,
        attempts: int = 6,
        backoff: float = 0.5,
        timeout: float = 120.0,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.uri = uri
        self.attempts, self.backoff, self.timeout = attempts, backoff, timeout
        self._fs, self._root = _file_system(uri, dict(options or {}))
        self._files = dict(files) if files is not None else None
        self._infos: dict[str, Mapping[str, Any]] | None = None
        self._is_file: bool | None = None
        self._root_is_file = False
        self._revision, self._checked = revision, revision is None
        self._listed, self._checking = threading.Lock(), threading.Lock()
        self._interrupted = threading.Event()
        self._waited = _Waited()
        self._retried = Tally()

    @property
    def retries(self) -> int:  # noqa: D102 - inherited
        return self._retried.value

    def files(self) -> Mapping[str, int]:  # noqa: D102 - inherited
        if self._files is None:
            self._files = {path: int(info["size"]) for path, info in self._listing().items()}
        return self._files

    def fingerprint(self) -> str:
        """See the function of this name; the listing is made once."""
        told = sorted((path, _told(info, _STRONG, _WEAK)) for path, info in self._listing().items())
        told = [entry for entry in told if holds_tensors(entry[0])] or told
        return f"remote:{hashlib.sha256(repr(told).encode()).hexdigest()[:16]}"

    @property
    def is_file(self) -> bool:
        """Whether the address is that of one file."""
        self._listing()
        return self._root_is_file

    def check(self) -> None:
        """See that the files are those of the revision; asked once until `close`.

        Raises
        ------
        StorageError
            If they were changed, or the listing can't be had.
        """
        with self._checking:
            if self._checked:
                return
            self._infos = None
            now = self.fingerprint()
            if now != self._revision:
                raise StorageError(
                    f"{self.uri}: files were changed since it was opened as {self._revision}; "
                    f"now it is {now}"
                )
            self._checked = True

    def identity(self, path: str) -> str | None:
        """Address and ETag (generation, MD5) as listed; None where the listing tells none."""
        info = self._listing().get(path)
        return None if info is None else self._identity(path, info)

    def confirms(self, path: str, identity: str) -> bool:
        """Ask again: a range does not tell of which content it is."""
        try:
            info = self._asked(f"{path}: asking for its ETag", "info", self._place(path))
        except RunNotFound:  # removed
            return False
        return self._identity(path, info) == identity

    def _identity(self, path: str, info: Mapping[str, Any]) -> str | None:
        told = _told(info, _STRONG)
        return f"{self.uri}/{path} {told}" if len(told) > 1 else None

    def _listing(self) -> Mapping[str, Mapping[str, Any]]:
        with self._listed:
            if self._infos is None:
                found = self._asked("listing", "find", self._root, detail=True)
                self._infos = dict(sorted(self._relative(found)))
                if not self._infos:
                    raise RunNotFound(f"{self.uri}: no files there")
            return self._infos

    def _relative(self, found: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        self._root_is_file = False
        for full, info in found.items():
            name = full.rstrip("/")
            if info.get("type") != "file" or full.endswith("/") or info.get("size") is None:
                continue  # markers of folders
            if name == self._root:
                self._root_is_file = True
                yield name.rpartition("/")[2], info
            elif name.startswith(f"{self._root}/"):
                yield name.removeprefix(f"{self._root}/"), info

    def _place(self, path: str) -> str:
        """Address of a file; the root may itself be the only one."""
        if self._is_file is None:
            alone = list(self.files()) == [path] and self._root.rpartition("/")[2] == path
            self._is_file = alone and path in self._listing() and self._root_is_file
        return self._root if self._is_file else f"{self._root}/{path}"

    def read_into(self, path: str, offset: int, buffer: memoryview) -> None:  # noqa: D102
        self.check_range(path, offset, len(buffer))
        self.check()
        place = self._place(path)
        for low in range(0, len(buffer), _PIECE):
            piece = buffer[low : low + _PIECE]
            start, stop = offset + low, offset + low + len(piece)
            what = f"{path}: bytes {start}…{stop}"
            piece[:] = self._asked(
                what, "cat_file", place, expected=len(piece), start=start, end=stop
            )

    def _asked(self, what: str, method: str, *args: Any, expected: int = -1, **options: Any) -> Any:
        """Call the file system, again if need be; of bytes exactly as many as are expected."""
        patience = Patience(
            f"{self.uri}: {what}", self.attempts, self.backoff, self._interrupted,
            self._retried.add,
        )  # fmt: skip
        while True:
            patience.check()
            try:
                found = self._call(method, *args, **options)
            except FileNotFoundError as error:
                kind = StorageError if expected >= 0 else RunNotFound
                raise kind(f"{patience.what}: no such file: {error}") from error
            except (*_FINAL, *_FINAL_OTHER) as error:
                raise StorageError(f"{patience.what}: {type(error).__name__}: {error}") from error
            except Exception as error:  # each package has classes of its own
                patience.failed(f"{type(error).__name__}: {error}")
                continue
            if expected < 0 or len(found) == expected:
                return found
            if len(found) > expected:
                raise StorageError(
                    f"{patience.what}: got {len(found)} bytes instead of {expected}: the range was "
                    "ignored"
                )
            patience.failed(f"got {len(found)} bytes instead of {expected}")

    def _call(self, method: str, *args: Any, **options: Any) -> Any:
        if not getattr(self._fs, "async_impl", False):
            if method == "cat_file":
                options["cache_type"] = "none"
            return getattr(self._fs, method)(*args, **options)
        future = asyncio.run_coroutine_threadsafe(
            getattr(self._fs, f"_{method}")(*args, **options), self._fs.loop
        )
        with self._waited.on(future):
            if self._interrupted.is_set():  # just before it was noted
                future.cancel()
            return future.result(self.timeout)

    def interrupt(self) -> None:
        """See `Store.interrupt`; a file system that is not asynchronous ends its request first."""
        self._interrupted.set()
        self._waited.cancel()

    def close(self) -> None:
        """See `Store.close`; connections are fsspec's, which shares them among its users."""
        self._interrupted = threading.Event()
        self._checked = self._revision is None


class _Waited:
    """Calls that threads wait for, so that another can end them."""

    def __init__(self) -> None:
        self._futures: set[Future[Any]] = set()
        self._lock = threading.Lock()

    @contextmanager
    def on(self, future: Future[Any]) -> Iterator[None]:
        with self._lock:
            self._futures.add(future)
        try:
            yield
        finally:
            with self._lock:
                self._futures.discard(future)
            future.cancel()  # where the wait was given up

    def cancel(self) -> None:
        with self._lock:
            futures = list(self._futures)
        for future in futures:
            future.cancel()


def _told(info: Mapping[str, Any], *kinds: tuple[str, ...]) -> tuple[str, ...]:
    """Size, and of each kind of mark the first that a file system tells."""
    marks = (next((str(info[key]) for key in keys if info.get(key)), "") for keys in kinds)
    return (str(info.get("size")), *(mark for mark in marks if mark))


def _file_system(uri: str, options: dict[str, Any]) -> tuple[Any, str]:
    """File system and the path in it."""
    import fsspec  # type: ignore[import-untyped]

    protocol = uri.partition("://")[0]
    try:
        kind = fsspec.get_filesystem_class(protocol)
        if getattr(kind, "async_impl", False):  # a listing must be of now, not of an hour ago
            options.setdefault("use_listings_cache", False)
        found, root = fsspec.core.url_to_fs(uri, **options)
    except ImportError as error:
        extra = "; pip install 'analysis360[remote]'" if protocol in _EXTRA else ""
        raise StorageError(f"{uri}: {error}{extra}") from error
    except Exception as error:  # each package has classes of its own
        raise StorageError(f"{uri}: {type(error).__name__}: {error}") from error
    return found, str(root).rstrip("/")
