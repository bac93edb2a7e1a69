"""Read ahead under one byte budget: requests in order, answers in order, buffers reused."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from analysis360.engine.schedule import Read
from analysis360.storage import Store

if TYPE_CHECKING:
    import torch

__all__ = ["Buffers", "stream"]

THREADS = 4
"""Requests under way at once. Against real latency more help a little; a local disk needs two."""


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
        import torch

        self.out += size
        if self._idle.get(size):
            self._idle_bytes -= size
            return self._idle[size].pop()
        if self.out + self._idle_bytes > self.budget:
            self._idle, self._idle_bytes = {}, 0
        return torch.empty(size, dtype=torch.uint8, pin_memory=self.pinned)

    def give(self, buffer: torch.Tensor) -> None:
        """Take a buffer back; nobody may look at it any more."""
        size = buffer.numel()
        self.out -= size
        self._idle.setdefault(size, []).append(buffer)
        self._idle_bytes += size


def stream(
    reads: Iterable[Read], stores: Mapping[int, Store], buffers: Buffers
) -> Generator[tuple[Read, torch.Tensor], None, None]:
    """Yield each read with its filled buffer, in order, with others under way.

    A read is started when the budget has room for it, or when nothing else is under way: then what
    is held is what the plan counted, and the budget, which the plan checked, has room. The caller
    gives the buffer back.
    """
    waiting: deque[tuple[Read, torch.Tensor, Future[None]]] = deque()
    upcoming = iter(reads)
    following = next(upcoming, None)
    stopped = threading.Event()
    with ThreadPoolExecutor(THREADS, thread_name_prefix="analysis360-read") as pool:
        try:
            while following is not None or waiting:
                while following is not None and len(waiting) < 2 * THREADS:
                    if waiting and not buffers.fits(following.held):
                        break
                    buffer = buffers.take(following.held)
                    future = pool.submit(
                        _fill, stores[following.checkpoint], following, buffer, stopped
                    )
                    waiting.append((following, buffer, future))
                    following = next(upcoming, None)
                read, buffer, future = waiting.popleft()
                future.result()
                yield read, buffer
        finally:
            stopped.set()  # for a read that Ctrl-C caught between its start and this list
            for _, _, future in waiting:
                future.cancel()
            for store in stores.values():  # whoever is in a back-off need not wait it out
                store.interrupt()


def _fill(store: Store, read: Read, buffer: torch.Tensor, stopped: threading.Event) -> None:
    if stopped.is_set():
        return
    view = memoryview(buffer.numpy())  # type: ignore[arg-type]  # numpy's stubs lack the protocol
    store.read_into(read.file, read.offset, view[: read.nbytes])
