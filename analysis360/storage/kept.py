"""Byte ranges of remote files, kept in a folder so that no crash makes a later read wrong.

Each content has two files there: the bytes, at their own offsets in a sparse file, and a list of
records ``(offset, length, CRC-32 of the bytes, CRC-32 of the record)`` that only grows. The bytes
are written first and the record after them; whether both reached the disk in that order is not
relied upon, as each read checks the bytes against the record. So a kill, a power cut, a full disk
or damage leads to one more fetch.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import struct
import threading
import zlib
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from filelock import FileLock

from analysis360.errors import StorageError

__all__ = ["Folder", "Ranges"]

_CHUNK = 1 << 21  # bytes under one checksum: a read of less takes and checks them all
_PAGE = 4096  # bytes in which disks are given out
_RECORD = struct.Struct("<QIII")
_HEAD = b"analysis360 ranges 1"  # as long as a record
_USED = struct.Struct("<Q")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PATIENCE = 30.0  # seconds for which another process may hold the lock

_log = logging.getLogger(__name__)
_folders: dict[Path, Folder] = {}
_folders_lock = threading.Lock()


class Folder:
    """A folder of kept ranges; `at` gives all users in the process the same one.

    How much it holds is written into it, and brought up to date under a lock, so that processes
    share the limit; it is counted anew when a process opens the folder. If another process keeps
    something just then, the limit may be passed by what is on its way there.

    Attributes
    ----------
    path : Path
    on : bool
        Whether something may still be kept; no longer once the disk was full or broken.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.on = path, True
        self._ranges: dict[str, Ranges] = {}
        self._lock = threading.Lock()
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._across = FileLock(path / "lock", timeout=_PATIENCE, poll_interval=0.005)
            with self.locked():
                self._write_used(self._measured())
        except (OSError, NotImplementedError) as error:
            if getattr(error, "errno", None) not in _FULL:
                raise StorageError(f"{path}: ranges can't be kept there: {error}") from error
            self.give_up(error)

    @classmethod
    def at(cls, path: str | os.PathLike[str]) -> Folder:
        """The folder at a path, made if need be.

        Raises
        ------
        StorageError
            If it can't be made or written to.
        """
        place = Path(path).expanduser().resolve()
        with _folders_lock:
            if place not in _folders or not place.is_dir():  # removed: begun anew
                _folders[place] = cls(place)
            return _folders[place]

    def ranges(self, identity: str, path: str, size: int) -> Ranges:
        """What is kept of one file of one content."""
        key = hashlib.sha256(f"{identity}\n{path}\n{size}".encode()).hexdigest()[:40]
        with self._lock:
            if key not in self._ranges:
                self._ranges[key] = Ranges(self, key, size)
            return self._ranges[key]

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Let no other thread or process change records or the count."""
        with self._lock, self._across:
            yield

    def take(self, costs: list[int], limit: int) -> int:
        """Reserve room, within `locked`; how many of these bytes, from the first on, there is for.

        Parameters
        ----------
        costs : list of int
            Bytes of one thing after the other.
        limit : int
            Bytes that the folder may hold.
        """
        used, count = self._used(), 0
        while count < len(costs) and used + costs[count] <= limit:
            used += costs[count]
            count += 1
        if count:
            self._write_used(used)
        return count

    def give_up(self, error: BaseException) -> None:
        """Keep nothing more in this process; what is kept is still read."""
        was, self.on = self.on, False
        if was:
            _log.warning("%s: this process keeps no more ranges there: %s", self.path, error)

    def _used(self) -> int:
        try:
            return int(_USED.unpack((self.path / "used").read_bytes())[0])
        except (FileNotFoundError, struct.error):
            return self._measured()

    def _write_used(self, used: int) -> None:
        with open(self.path / "used", "wb") as file:
            file.write(_USED.pack(used))

    def _measured(self) -> int:
        """Bytes on disk of what is kept."""
        found = 0
        with os.scandir(self.path) as entries:
            for entry in entries:
                if entry.name.endswith((".data", ".ranges")):
                    stat = entry.stat()
                    blocks = getattr(stat, "st_blocks", None)
                    found += stat.st_size if blocks is None else 512 * blocks
        return found


class Ranges:
    """What a folder holds of one file; may be used from several threads."""

    def __init__(self, folder: Folder, key: str, size: int) -> None:
        self._folder, self._size = folder, size
        self._data = folder.path / f"{key}.data"
        self._list = folder.path / f"{key}.ranges"
        # Chunks that don't overlap, sorted. A terabyte has half a million of them: 20 bytes each.
        self._starts, self._stops, self._sums = array("Q"), array("Q"), array("I")
        self._seen = 0  # bytes of the list that were taken in
        self._lock = threading.Lock()

    def fill(self, offset: int, view: memoryview) -> list[tuple[int, int]]:
        """Put what is kept into a view of the file that begins at `offset`.

        Returns
        -------
        list of (int, int)
            First and behind-last byte of what was not there, or damaged, from the first on.
        """
        stop = offset + len(view)
        at, gaps = offset, list[tuple[int, int]]()
        for low, high in self._sound(offset, stop, view):
            if low > at:
                gaps.append((at, low))
            at = high
        if at < stop:
            gaps.append((at, stop))
        return gaps

    def _sound(self, offset: int, stop: int, view: memoryview) -> Iterator[tuple[int, int]]:
        """Ranges that were put into the view and are what was fetched once."""
        with self._lock:
            self._look()
            low, high = self._between(offset, stop)
            chunks = list(zip(self._starts[low:high], self._stops[low:high], self._sums[low:high]))
        if not chunks:
            return
        try:
            file = open(self._data, "rb", buffering=0)
        except OSError:
            for chunk in chunks:
                self._drop(*chunk)
            return
        with file:
            for start, end, checksum in chunks:
                first, last = max(start, offset), min(end, stop)
                part = view[first - offset : last - offset]
                whole = (
                    part if (first, last) == (start, end) else memoryview(bytearray(end - start))
                )
                if not _read(file, start, whole) or zlib.crc32(whole) != checksum:
                    self._drop(start, end, checksum)
                    continue
                if whole is not part:
                    part[:] = whole[first - start : last - start]
                yield first, last

    def keep(self, offset: int, view: memoryview, limit: int) -> None:
        """Keep bytes that were fetched, as far as there is room; never raises for want of it."""
        if not self._folder.on:
            return
        try:
            with self._folder.locked(), self._lock:
                self._look()
                chunks = self._missing(offset, offset + len(view))
                chunks = chunks[: self._folder.take([_cost(*chunk) for chunk in chunks], limit)]
            if not chunks:
                return
            with open(
                os.open(self._data, os.O_RDWR | os.O_CREAT | _BINARY, 0o666), "wb", 0
            ) as file:
                for start, stop in chunks:
                    _write(file, start, view[start - offset : stop - offset])
            sums = [zlib.crc32(view[a - offset : b - offset]) for a, b in chunks]
            with self._folder.locked(), self._lock:
                self._look()
                self._record(chunks, sums)
        except (OSError, NotImplementedError) as error:
            self._folder.give_up(error)
            self._trim()

    def _trim(self) -> None:
        """Give back what a write took that did not end: results may need that room."""
        with contextlib.suppress(OSError), self._lock:
            self._look()
            os.truncate(self._data, self._stops[-1] if self._stops else 0)

    def _record(self, chunks: list[tuple[int, int]], sums: list[int]) -> None:
        """Write down what was kept, unless another thread or process was faster."""
        said = bytearray()
        for (start, stop), checksum in zip(chunks, sums):
            low, high = self._between(start, stop)
            if low < high:
                continue
            record = _RECORD.pack(start, stop - start, checksum, 0)[:-4]
            said += record + struct.pack("<I", zlib.crc32(record))
        with open(os.open(self._list, os.O_RDWR | os.O_CREAT | _BINARY, 0o666), "r+b", 0) as file:
            size = os.fstat(file.fileno()).st_size
            if size < len(_HEAD) or file.read(len(_HEAD)) != _HEAD:
                file.truncate(0)
                _write(file, 0, memoryview(_HEAD))
                size = len(_HEAD)
            size -= size % len(_HEAD)  # behind a record that was cut
            _write(file, size, memoryview(said))
            file.truncate(size + len(said))
        self._look()

    def _look(self) -> None:
        """Take in what was recorded since, by this process or another."""
        try:
            size = os.stat(self._list).st_size
        except OSError:
            size = 0
        if size < self._seen:  # removed, and perhaps begun anew
            self._seen = 0
            for column in (self._starts, self._stops, self._sums):
                del column[:]
        if size < self._seen + _RECORD.size:
            return
        try:
            with open(self._list, "rb", buffering=0) as file:
                if file.read(len(_HEAD)) != _HEAD:
                    return
                first = max(self._seen, len(_HEAD))
                file.seek(first)
                said = file.read(size - first) or b""
        except OSError:
            return
        whole = len(said) - len(said) % _RECORD.size
        for at in range(0, whole, _RECORD.size):
            start, length, checksum, sound = _RECORD.unpack_from(said, at)
            good = zlib.crc32(said[at : at + _RECORD.size - 4]) == sound
            if good and 0 < length <= _CHUNK and start + length <= self._size:
                self._insert(start, start + length, checksum)
        self._seen = first + whole

    def _insert(self, start: int, stop: int, checksum: int) -> None:
        """Put a chunk in place of those that it overlaps: they were found damaged."""
        low, high = self._between(start, stop)
        self._starts[low:high] = array("Q", [start])
        self._stops[low:high] = array("Q", [stop])
        self._sums[low:high] = array("I", [checksum])

    def _drop(self, start: int, stop: int, checksum: int) -> None:
        with self._lock:
            low, high = self._between(start, stop)
            if high - low == 1 and self._sums[low] == checksum:
                for column in (self._starts, self._stops, self._sums):
                    del column[low]

    def _between(self, start: int, stop: int) -> tuple[int, int]:
        """Positions of the chunks that overlap a range."""
        return bisect_right(self._stops, start), bisect_left(self._starts, stop)

    def _missing(self, start: int, stop: int) -> list[tuple[int, int]]:
        """What of a range is not kept, in chunks."""
        low, high = self._between(start, stop)
        edges = [start, *(e for i in range(low, high) for e in (self._starts[i], self._stops[i]))]
        gaps = zip(edges[::2], [*edges[1::2], stop])
        return [(a, min(a + _CHUNK, hi)) for lo, hi in gaps for a in range(lo, hi, _CHUNK)]


_BINARY = getattr(os, "O_BINARY", 0)  # Windows


def _cost(start: int, stop: int) -> int:
    """Bytes on disk of a chunk and its record, at most."""
    return -(-stop // _PAGE) * _PAGE - start // _PAGE * _PAGE + _RECORD.size


def _read(file: FileIO, offset: int, view: memoryview) -> bool:
    """Fill a view from a file; False if that can't be."""
    done = 0
    try:
        file.seek(offset)
        while done < len(view):
            got = file.readinto(view[done:])
            if not got:
                return False
            done += got
    except OSError:
        return False
    return True


def _write(file: FileIO, offset: int, view: memoryview) -> None:
    file.seek(offset)
    done = 0
    while done < len(view):
        done += file.write(view[done:])
