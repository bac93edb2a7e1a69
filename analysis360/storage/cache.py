"""A store that keeps what it fetched in a folder, so that later statistics need not fetch again."""

from __future__ import annotations

import os
from collections.abc import Mapping

from analysis360.errors import StorageError
from analysis360.storage.base import Store
from analysis360.storage.kept import Folder
from analysis360.storage.transport import Tally

__all__ = ["CACHE_SIZE", "CachedStore"]

CACHE_SIZE = 100_000_000_000
"""Bytes that a folder of kept ranges may hold, if nothing else is said."""


class CachedStore(Store):
    """Keeps the ranges that were fetched from another store, within a limit.

    A range that overlaps kept ones is fetched only where it has to be. Each kept piece is checked
    against its CRC-32 when it is read; a damaged one is fetched again. Several stores, threads and
    processes may use one folder. Nothing is kept of a store that has no `identity` of its content:
    a folder of this machine, or a server that tells no ETag.

    When the folder holds `limit` bytes nothing more is kept, and nothing is thrown out: a run goes
    through its bytes in one order, so of a run larger than the folder each piece would be thrown
    out before it is asked for again. To begin anew remove the folder. When the disk is full a
    warning is logged, once, and reading goes on without keeping.

    Parameters
    ----------
    store : Store
        Closed and interrupted with this one.
    folder : str or path-like
        Made if it is not there. It should be on a disk of this machine.
    limit : int
        Bytes on disk of everything kept in the folder.

    Attributes
    ----------
    store : Store

    Raises
    ------
    StorageError
        If the folder can't be made or written to, or the limit is negative.

    Examples
    --------
    >>> import tempfile
    >>> from analysis360.storage.local import LocalStore
    >>> class Far(LocalStore):
    ...     fetched = 0
    ...     def identity(self, path):
    ...         return "far@1"
    ...     def read_into(self, path, offset, buffer):
    ...         self.fetched += len(buffer)
    ...         super().read_into(path, offset, buffer)
    >>> with tempfile.TemporaryDirectory() as place, tempfile.TemporaryDirectory() as folder:
    ...     with open(f"{place}/a.bin", "wb") as file:
    ...         _ = file.write(b"0123456789")
    ...     far = Far(place)
    ...     store = CachedStore(far, folder, 10**6)
    ...     store.read("a.bin", 2, 4), store.read("a.bin", 0, 8), far.fetched, store.saved
    (b'2345', b'01234567', 8, 4)
    """

    def __init__(
        self, store: Store, folder: str | os.PathLike[str], limit: int = CACHE_SIZE
    ) -> None:
        if limit < 0:
            raise StorageError(f"{folder}: a limit of {limit} bytes; it can't be negative")
        self.store, self.uri, self._limit = store, store.uri, limit
        self._folder = Folder.at(folder)
        self._saved = Tally()

    @property
    def retries(self) -> int:  # noqa: D102 - inherited
        return self.store.retries

    @property
    def saved(self) -> int:
        """Bytes so far that were read from the folder and not fetched."""
        return self._saved.value

    def files(self) -> Mapping[str, int]:  # noqa: D102 - inherited
        return self.store.files()

    def identity(self, path: str) -> str | None:  # noqa: D102 - inherited
        return self.store.identity(path)

    def confirms(self, path: str, identity: str) -> bool:  # noqa: D102 - inherited
        return self.store.confirms(path, identity)

    def read_into(self, path: str, offset: int, buffer: memoryview) -> None:  # noqa: D102
        size = self.check_range(path, offset, len(buffer))
        identity = self.store.identity(path)
        if identity is None:
            self.store.read_into(path, offset, buffer)
            return
        ranges = self._folder.ranges(identity, path, size)
        gaps = ranges.fill(offset, buffer)
        self._saved.add(len(buffer) - sum(high - low for low, high in gaps))
        for low, high in gaps:
            part = buffer[low - offset : high - offset]
            self.store.read_into(path, low, part)
            if not self.store.confirms(path, identity):  # perhaps half of it is old
                raise StorageError(
                    f"{self.uri}: {path}: bytes {low}…{high}: the file was changed since it was "
                    "listed; open it again"
                )
            ranges.keep(low, part, self._limit)

    def interrupt(self) -> None:  # noqa: D102 - inherited
        self.store.interrupt()

    def close(self) -> None:  # noqa: D102 - inherited
        self.store.close()
