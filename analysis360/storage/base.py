"""What a place where checkpoint files lie must be able to do: list them, and read byte ranges."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from analysis360.errors import StorageError

__all__ = ["Store"]


class Store(ABC):
    """The files of one checkpoint, readable by byte range.

    A subclass lists its files once and reads ranges into memory that the caller owns, so that
    buffers are allocated once and reused. `read_into` may be called from several threads.

    Attributes
    ----------
    uri : str
        Where the files are, for error messages.
    """

    uri: str

    @abstractmethod
    def files(self) -> Mapping[str, int]:
        """Path of every file below the root, with forward slashes, to its size in bytes."""

    @abstractmethod
    def read_into(self, path: str, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes of `path` from `offset` on.

        Parameters
        ----------
        path : str
            A key of `files()`.
        offset : int
            First byte, from 0.
        buffer : memoryview
            Writable, contiguous, of bytes (format ``"B"``); its length is what is read.

        Raises
        ------
        StorageError
            If not exactly ``len(buffer)`` bytes can be had. The content of `buffer` is then
            undefined.
        """

    @property
    def retries(self) -> int:
        """Failures so far after which the same was tried again; 0 where nothing is retried."""
        return 0

    def interrupt(self) -> None:  # noqa: B027 - a store that never waits has nothing to end
        """End waiting: until `close`, reads under way and new ones raise at once.

        For whoever stops while other threads still read, as Ctrl-C does. May be called from any
        thread. A read that needn't wait may still succeed.
        """

    def close(self) -> None:  # noqa: B027 - a store with nothing to let go of need not say so
        """Let go of connections and open files; reading afterwards opens them again."""

    def identity(self, path: str) -> str | None:
        """What tells this content of a file from any other, for who keeps ranges of it.

        Returns
        -------
        str or None
            The same only for the same bytes, in any process: a commit, an ETag. None where
            nothing certain is known, or keeping is of no use; nothing is kept then.

        Raises
        ------
        StorageError
            If it had to be asked for and could not be.
        """
        return None

    def confirms(self, path: str, identity: str) -> bool:
        """Whether what was read of `path` until now was of this identity; asked before keeping.

        Raises
        ------
        StorageError
            If it had to be asked for and could not be.
        """
        return self.identity(path) == identity

    def read(self, path: str, offset: int, nbytes: int) -> bytes:
        """Read `nbytes` bytes of `path` from `offset` on.

        Raises
        ------
        StorageError
            As `read_into`.
        """
        data = bytearray(nbytes)
        self.read_into(path, offset, memoryview(data))
        return bytes(data)

    def check_range(self, path: str, offset: int, nbytes: int) -> int:
        """Check that a range lies within a listed file, and return the file's size.

        Raises
        ------
        StorageError
            If there is no such file, or the range is not inside it.
        """
        files = self.files()
        if path not in files:
            near = ", ".join(sorted(files)[:5]) or "none"
            raise StorageError(f"{self.uri}: no file {path!r}; of {len(files)} files: {near}")
        size = files[path]
        if offset < 0 or nbytes < 0 or offset + nbytes > size:
            raise StorageError(
                f"{self.uri}: {path}: bytes {offset}…{offset + nbytes} "
                f"are not in a file of {size} bytes"
            )
        return size

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.uri!r})"
