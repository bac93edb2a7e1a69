"""Read ahead under one byte budget: requests in order, answers in order, buffers reused."""

from __future__ import annotations

import mmap
import threading
from collections import deque
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Self

from analysis360.engine.schedule import Read
from analysis360.storage import Store

if TYPE_CHECKING:
    import torch

__all__ = ["Buffers", "Stream"]

THREADS = 4
"""Requests under way at once. Against real latency more help a little; a local disk needs two."""

PAGES = 1 << 20
"""Bytes from which a buffer has pages of its own: going back it leaves no hole in the heap."""


class Buffers:
    """Byte buffers under a budget, given out and taken back by one thread.

    New memory costs page faults (half a second a gigabyte), so a buffer that comes back is kept for
    the next read of the same size: the same block in the next checkpoint. What is kept idle counts,
    and goes first when the budget is reached.

    Parameters
    ----------
    budget : int
        Bytes that may be out and idle together.
    pinned : bool
        Page-locked, for copies to a CUDA device.
    """

    def __init__(self, budget: int, pinned: bool = False) -> None:
        self.budget = budget
        self.pinned = pinned
        self.out = 0
        self._idle: dict[int, list[torch.Tensor]] = {}
        self._idle_bytes = 0

    def fits(self, size: int) -> bool:
        """Whether `size` more bytes are within the budget, idle ones being dropped if need be."""
        return self.out + size <= self.budget

    def take(self, size: int) -> torch.Tensor:
        """A buffer of exactly `size` bytes with undefined content."""
        self.out += size
        if self._idle.get(size):
            self._idle_bytes -= size
            return self._idle[size].pop()
        if self.out + self._idle_bytes > self.budget:
            self._idle, self._idle_bytes = {}, 0
        return self._new(size)

    def _new(self, size: int) -> torch.Tensor:
        import torch

        if self.pinned or size < PAGES or not hasattr(mmap, "MAP_PRIVATE"):
            return torch.empty(size, dtype=torch.uint8, pin_memory=self.pinned)
        pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            pages.madvise(mmap.MADV_HUGEPAGE)  # a fault for every 2 MiB, not for every 4 KiB
        return torch.frombuffer(pages, dtype=torch.uint8)

    def reserve(self, size: int) -> None:
        """Count `size` bytes as out, for buffers that will be taken later."""
        self.out += size

    def release(self, size: int) -> None:
        """Count what was reserved no longer."""
        self.out -= size

    def give(self, buffer: torch.Tensor) -> None:
        """Take a buffer back; nobody may look at it any more."""
        size = buffer.numel()
        self.out -= size
        self._idle.setdefault(size, []).append(buffer)
        self._idle_bytes += size


class Stream:
    """Reads in order, each with its filled buffer, while others are under way.

    Use it in a ``with`` block: at its end whatever is under way is called off.

    Parameters
    ----------
    reads : iterable of Read
    stores : mapping of int to Store
        By position of the checkpoint.
    buffers : Buffers
        The caller gives the buffers back there, and releases what reads have reserved.
    """

    def __init__(
        self, reads: Iterable[Read], stores: Mapping[int, Store], buffers: Buffers
    ) -> None:
        self._upcoming = iter(reads)
        self._following = next(self._upcoming, None)
        self._stores, self._buffers = stores, buffers
        self._waiting: deque[tuple[Read, torch.Tensor, Future[None]]] = deque()
        self._stopped = threading.Event()
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="analysis360-read")

    def start(self) -> bool:
        """Start as many reads as the budget has room for; False if none is under way then."""
        while self._following is not None and len(self._waiting) < 2 * THREADS:
            if not self._buffers.fits(self._following.held + self._following.copied):
                break
            self._start()
        return bool(self._waiting)

    def take(self) -> tuple[Read, torch.Tensor]:
        """Wait for the next read.

        One is started whatever the budget says if none is under way: what is held then is what the
        plan counted, and the budget, which the plan checked, has room.

        Raises
        ------
        StorageError
            If its bytes cannot be had.
        """
        if not self.start():
            self._start()
        read, buffer, future = self._waiting.popleft()
        future.result()
        self.start()
        return read, buffer

    def _start(self) -> None:
        read = self._following
        assert read is not None
        self._buffers.reserve(read.copied)  # what it brings will be needed there before it goes
        buffer = self._buffers.take(read.held)
        store = self._stores[read.checkpoint]
        future = self._pool.submit(_fill, store, read, buffer, self._stopped)
        self._waiting.append((read, buffer, future))
        self._following = next(self._upcoming, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopped.set()  # for a read that Ctrl-C caught between its start and this list
        for _, _, future in self._waiting:
            future.cancel()
        if kind is not None or self._waiting:
            for store in self._stores.values():  # whoever is in a back-off need not wait it out
                store.interrupt()
        self._pool.shutdown()


def _fill(store: Store, read: Read, buffer: torch.Tensor, stopped: threading.Event) -> None:
    if stopped.is_set():
        return
    view = memoryview(buffer.numpy())  # type: ignore[arg-type]  # numpy's stubs lack the protocol
    store.read_into(read.file, read.offset, view[read.lead : read.lead + read.nbytes])
