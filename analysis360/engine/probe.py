"""How fast a plan's bytes come: read some of them, and drop them."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import ExitStack

from analysis360.engine.plan import Plan
from analysis360.engine.schedule import Read
from analysis360.engine.stream import Buffers, Stream
from analysis360.engine.work import Works

__all__ = ["measure_rate"]

SECONDS = 2.0
"""About as long as a probe takes, if the link is not slower than a request in that time."""

READS = 200


def measure_rate(plan: Plan, seconds: float = SECONDS) -> float | None:
    """Bytes a second of the plan's own requests, from all over it; None if it reads nothing.

    The first request of each connection is left out of the figure: resolving an address and opening
    a connection happen once a file.

    Raises
    ------
    StorageError
        If the bytes cannot be had.
    """
    reads = list(itertools.islice(_sample(plan), READS))
    if not reads:
        return None
    places = {read.checkpoint for read in reads}
    with ExitStack() as stack:
        stores = {c: stack.enter_context(plan.store(c)) for c in places}
        buffers = Buffers(plan.budget)
        flow = stack.enter_context(Stream(iter(reads), stores, buffers))
        began, taken = time.perf_counter(), 0
        for count in range(len(reads)):
            read, buffer = flow.take()
            buffers.give(buffer)
            buffers.release(read.copied)
            taken += read.nbytes
            if count == 0 and len(reads) > 1:
                began, taken = time.perf_counter(), 0
            if time.perf_counter() - began > seconds:
                break
        return taken / max(time.perf_counter() - began, 1e-9) if taken else None


def _sample(plan: Plan) -> Iterator[Read]:
    """Reads of jobs spread over the plan."""
    works = Works(plan)
    for job in plan.jobs[:: max(1, len(plan.jobs) // 16)]:
        for _, reads in works.whole(job).steps(plan):
            yield from reads
