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

__all__ = ["LocalStore", "fingerprint", "holds_tensors"]

_OPEN_FILES = 32  # a 70B checkpoint has about this many shards; the usual limit is 1024 per process
_ENDS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".tar", ".index.json")
# Sub-folders that the formats look into
_FOLDERS = {"model", "weights", "optimizer", "optim", "optimizer_state", "model_state"}
_RESULTS = "plan.json"  # in a folder that `Plan.run` wrote


_RANKS = ("mp_rank_", "iter_", "global_step")
"""Folders of Megatron and DeepSpeed begin so; the latter's universal form has one called zero."""


def _walk(root: Path) -> Iterator[tuple[str, os.stat_result]]:
    """List paths below `root`, with their stat; file links are followed, as Hub caches need.

    Folders of results are left out: they may be written beside the files that were measured.
    """
    if root.is_file():
        yield root.name, root.stat()
        return
    for folder, below, names in os.walk(root):
        if _RESULTS in names and Path(folder) != root:
            below.clear()
            continue
        for name in names:
            full = Path(folder, name)
            try:
                stat = full.stat()
            except OSError:  # a dangling link, or a file removed while listing
                continue
            yield full.relative_to(root).as_posix(), stat


def holds_tensors(path: str) -> bool:
    """Whether a file is one that the formats look into: logs beside it may grow."""
    *folders, name = path.split("/")
    if name.endswith(".distcp") or name == ".metadata":  # of torch's distributed checkpoints
        return len(folders) <= 1
    known = "zero" in folders or all(f in _FOLDERS or f.startswith(_RANKS) for f in folders)
    return name.endswith(_ENDS) and not name.startswith(".") and known


def fingerprint(folder: str | os.PathLike[str]) -> str:
    """Tell one state of a checkpoint's folder (or file) from another without reading it.

    Returns
    -------
    str
        ``"local:"`` and 16 hexadecimal digits of the SHA-256 of sorted paths, sizes and times of
        change, which serves as the revision of a local checkpoint. Counted are files that can hold
        tensors or their index, so that logs and results may be written into the folder; if none
        has a known ending, all files.

    Raises
    ------
    RunNotFound
        If there is no such folder or file.
    """
    root = Path(folder)
    if not root.exists():
        raise RunNotFound(f"{root}: no such folder or file")
    listing = sorted((path, stat.st_size, stat.st_mtime_ns) for path, stat in _walk(root))
    listing = [entry for entry in listing if holds_tensors(entry[0])] or listing
    return f"local:{hashlib.sha256(repr(listing).encode()).hexdigest()[:16]}"


class _File:
    """An open file, closed when the last thread lets go of it: eviction can't cut a read short."""

    def __init__(self, path: Path) -> None:
        self._raw = open(path, "rb", buffering=0)
        self._lock = threading.Lock()

    def read_at(self, offset: int, buffer: memoryview) -> int:
        """Read up to ``len(buffer)`` bytes; 0 at the end of the file."""
        if hasattr(os, "preadv"):
            return os.preadv(self._raw.fileno(), [buffer], offset)
        with self._lock:  # Windows: its files have one position for all threads
            self._raw.seek(offset)
            return self._raw.readinto(buffer) or 0

    def __del__(self) -> None:
        if hasattr(self, "_raw"):
            self._raw.close()


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
        self._open: OrderedDict[str, _File] = OrderedDict()
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
        # preadv rather than mmap: into page-aligned buffers, as the engine's are, it is as fast or
        # faster than a copy from a map (into others the kernel may be four times slower). A map
        # could do without the copy, but then a file that is cut, or a network disk that fails,
        # kills the process (SIGBUS) where this returns short or raises, and a page fault stops
        # all threads that need the interpreter. Of advice to the kernel, SEQUENTIAL changes
        # nothing and WILLNEED costs. See benchmarks/local_reads.py.
        file = self._file(path)
        done = 0
        while done < len(buffer):
            got = file.read_at(offset + done, buffer[done:])
            if got == 0:
                break
            done += got
        return done

    def _file(self, path: str) -> _File:
        with self._lock:
            held = self._open.get(path)
            if held is None:
                held = _File(self.root if self._single else self.root / path)
                self._open[path] = held
                if len(self._open) > _OPEN_FILES:
                    self._open.popitem(last=False)
            self._open.move_to_end(path)
            return held

    def close(self) -> None:  # noqa: D102
        with self._lock:
            self._open.clear()
