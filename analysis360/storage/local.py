"""Checkpoints in a folder, or in one file, of this machine."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path

from analysis360.errors import RunNotFound, StorageError
from analysis360.storage.base import Store

__all__ = ["LocalStore", "fingerprint"]

_OPEN_FILES = 32  # a 70B checkpoint has about this many shards; the usual limit is 1024 per process


def _walk(root: Path) -> Iterator[tuple[str, os.stat_result]]:
    """List paths below `root`, with their stat; file links are followed, as Hub caches need."""
    if root.is_file():
        yield root.name, root.stat()
        return
    for folder, _, names in os.walk(root):
        for name in names:
            full = Path(folder, name)
            try:
                stat = full.stat()
            except OSError:  # a dangling link, or a file removed while listing
                continue
            yield full.relative_to(root).as_posix(), stat


def fingerprint(folder: str | os.PathLike[str]) -> str:
    """Tell one state of a folder (or file) from another without reading it.

    Returns
    -------
    str
        ``"local:"`` and 16 hexadecimal digits of the SHA-256 of sorted paths, sizes and times of
        change, which serves as the revision of a local checkpoint.

    Raises
    ------
    RunNotFound
        If there is no such folder or file.
    """
    root = Path(folder)
    if not root.exists():
        raise RunNotFound(f"{root}: no such folder or file")
    listing = sorted((path, stat.st_size, stat.st_mtime_ns) for path, stat in _walk(root))
    return f"local:{hashlib.sha256(repr(listing).encode()).hexdigest()[:16]}"


class _Descriptor:
    """An open file, closed when the last thread lets go of it: eviction can't cut a read short."""

    def __init__(self, path: Path) -> None:
        self.number = -1
        self.number = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)


class LocalStore(Store):
    """Files below a folder, or one file as a store of its own.

    Parameters
    ----------
    path : str or path-like
        Folder, or file.
    files : mapping of str to int, optional
        Paths and sizes if already known; the folder is not walked then.

    Raises
    ------
    RunNotFound
        If there is no such folder or file.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = pathlib.Path(folder, "a.bin").write_bytes(b"0123456789")
    ...     store = LocalStore(folder)
    ...     dict(store.files()), store.read("a.bin", 2, 3)
    ({'a.bin': 10}, b'234')
    """

    def __init__(
        self, path: str | os.PathLike[str], *, files: Mapping[str, int] | None = None
    ) -> None:
        self.root = Path(path)
        self.uri = str(path)
        if not self.root.exists():
            raise RunNotFound(f"{self.uri}: no such folder or file")
        self._single = self.root.is_file()
        self._files = dict(files) if files is not None else None
        self._open: OrderedDict[str, _Descriptor] = OrderedDict()
        self._lock = threading.Lock()

    def files(self) -> Mapping[str, int]:  # noqa: D102 - inherited
        if self._files is None:
            self._files = {path: stat.st_size for path, stat in sorted(_walk(self.root))}
        return self._files

    def read_into(self, path: str, offset: int, buffer: memoryview) -> None:  # noqa: D102
        self.check_range(path, offset, len(buffer))
        try:
            done = self._fill(path, offset, buffer)
        except OSError as error:
            raise StorageError(
                f"{self.uri}: {path}: bytes {offset}…{offset + len(buffer)}: {error.strerror}"
            ) from error
        if done < len(buffer):
            raise StorageError(
                f"{self.uri}: {path}: asked for bytes {offset}…{offset + len(buffer)}, "
                f"but the file ends at {offset + done}; it was cut since it was listed"
            )

    def _fill(self, path: str, offset: int, buffer: memoryview) -> int:
        # preadv rather than mmap: both were measured at memory speed (8 GB/s in pieces of 8 MiB,
        # one to four threads, cached or not), but preadv lets other threads run while a disk is
        # waited for, and where a file is cut while it is read it returns short: a map would kill
        # the process (SIGBUS).
        descriptor = self._descriptor(path)
        done = 0
        while done < len(buffer):
            got = os.preadv(descriptor.number, [buffer[done:]], offset + done)
            if got == 0:
                break
            done += got
        return done

    def _descriptor(self, path: str) -> _Descriptor:
        with self._lock:
            held = self._open.get(path)
            if held is None:
                held = _Descriptor(self.root if self._single else self.root / path)
                self._open[path] = held
                if len(self._open) > _OPEN_FILES:
                    self._open.popitem(last=False)
            self._open.move_to_end(path)
            return held

    def close(self) -> None:  # noqa: D102
        with self._lock:
            self._open.clear()
