"""Run a plan: take each job through the checkpoints, measure, and keep what is finished."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import pandas as pd
import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

from analysis360._version import __version__
from analysis360.engine.compute import Step
from analysis360.engine.held import Held
from analysis360.engine.plan import Plan
from analysis360.engine.planner import nbytes, workers
from analysis360.engine.schedule import Read
from analysis360.engine.stream import Buffers, Stream
from analysis360.engine.work import Done, Work, Works
from analysis360.errors import StorageError
from analysis360.results import Parts, measure_key, tabulate, write_json
from analysis360.storage import Store
from analysis360.storage.cache import CachedStore

__all__ = ["run_plan"]


def run_plan(
    plan: Plan,
    path: str | os.PathLike[str] | None,
    *,
    progress: bool,
    cache_dir: str | os.PathLike[str] | None,
    cache_size: float | str,
) -> pd.DataFrame:
    """Do what `Plan.run` says."""
    cache = None if cache_dir is None else (cache_dir, nbytes(cache_size, "cache_size"))
    folder = None if path is None else Path(path)
    with ExitStack() as stack:
        if folder is not None:
            _make(folder)
            stack.enter_context(_alone(folder))
            write_json(folder / "plan.json", plan.to_json())
        parts = Parts(folder)
        parts.clean()
        session = _Session(plan, folder)
        try:
            _work(plan, parts, session, cache, progress)
            session.finished = True
        finally:
            parts.flush()
            session.write()
        table, missing = tabulate(plan, parts, plan.statistics)
    if missing:
        raise StorageError(f"{folder}: sums of {sorted(missing)[:3]} are not there any more")
    return table


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be used as a results folder: {error}") from error


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One writer per folder; the lock goes with the process, also when it is killed."""
    lock = FileLock(folder / "lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise StorageError(f"{folder}: another process is writing this results folder") from None
    except OSError as error:
        raise StorageError(f"{folder}: cannot be written: {error}") from error
    try:
        yield
    finally:
        lock.release()


Cache = tuple[str | os.PathLike[str], int] | None
"""Folder in which fetched ranges are kept, and how many bytes of them."""


def _work(plan: Plan, parts: Parts, session: _Session, cache: Cache, progress: bool) -> None:
    """Measure what is left."""
    done = parts.done()
    total = sum(read.nbytes for work in _left(plan, done) for read in _reads(plan, work))
    if not total:
        return
    with ExitStack() as stack:
        stores = {
            c: stack.enter_context(_store(plan, c, cache)) for c in range(len(plan.checkpoints))
        }
        pool = stack.enter_context(_workers())
        bar = stack.enter_context(_Bar(total, stores, progress))
        buffers = Buffers(plan.budget, pinned=plan.device != "cpu")
        reads = (read for work in _left(plan, done) for read in _reads(plan, work))
        flow = stack.enter_context(Stream(reads, stores, buffers))
        under_way = _UnderWay(parts)
        for work in _left(plan, done):
            _job(plan, work, flow, buffers, under_way, pool, session, bar)
        under_way.finish()


def _left(plan: Plan, done: Done) -> Iterator[Work]:
    """What is left, job by job; at K2's size there is too much of it for a list."""
    works = Works(plan, done)
    for job in plan.jobs:
        work = works.left(job)
        if work is not None:
            yield work


def _reads(plan: Plan, work: Work) -> Iterator[Read]:
    for _, reads in work.steps(plan):
        yield from reads


def _store(plan: Plan, position: int, cache: Cache) -> Store:
    store = plan.store(position)
    return store if cache is None else CachedStore(store, *cache)


class _Bar:
    """Bytes, rate, time left, the tensor under way, and how often a read was tried again."""

    def __init__(self, total: int, stores: Mapping[int, Store], shown: bool) -> None:
        self._bar = tqdm(total=total, unit="B", unit_scale=True, desc="measure", disable=not shown)
        self._stores = stores

    def add(self, nbytes: int, name: str) -> None:
        retries = sum(store.retries for store in self._stores.values())
        self._bar.set_postfix_str(f"{name}, {retries} retries" if retries else name, refresh=False)
        self._bar.update(nbytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()


class _UnderWay:
    """The step that is being computed while the next one is read; at most one."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self.steps: dict[tuple[int, str], float] = {}  # of the optimizer, by checkpoint and name
        self._step: Step | None = None
        self._last = False

    def put(self, step: Step, last: bool) -> None:
        """Take a step that has begun; the one before it is finished first."""
        before, was_last = self._step, self._last
        self._step, self._last = step, last
        _finish(before, was_last, self._parts)

    def finish(self) -> None:
        """Wait for the step, keep its rows, and let go of what nothing needs any more."""
        before, self._step = self._step, None
        _finish(before, self._last, self._parts)


def _finish(step: Step | None, last: bool, parts: Parts) -> None:
    if step is None:
        return
    parts.add(step.rows())
    if last:
        step.held.close()
    else:
        step.held.release(step.position)


@contextmanager
def _workers() -> Iterator[ThreadPoolExecutor]:
    """One thread a core, each with its own single-threaded arithmetic.

    OpenMP threads inside torch spin at barriers: on a machine that does anything else they make
    tiles five to ten times slower. Setting the number of threads inside a worker changes a
    process-wide default too, which is put back.
    """
    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(
            workers(), "analysis360-measure", initializer=torch.set_num_threads, initargs=(1,)
        ) as pool:
            yield pool
    finally:
        torch.set_num_threads(before)


def _job(
    plan: Plan,
    work: Work,
    flow: Stream,
    buffers: Buffers,
    under_way: _UnderWay,
    pool: ThreadPoolExecutor,
    session: _Session,
    bar: _Bar,
) -> None:
    """Take one job through its checkpoints: each is read while the one before is computed."""
    held = Held(plan, work.job, work.until, buffers, under_way.steps)
    steps, besides = list(work.steps(plan)), work.needs_besides
    for position, reads in steps:
        for _ in reads:
            if not flow.start():  # no room: what is being computed has to go first
                under_way.finish()
            read, buffer = flow.take()
            held.add(read, buffer)
            session.read += read.nbytes
            bar.add(read.nbytes, read.pieces[0].name)
        if besides:  # the plan counted that memory for one step
            under_way.finish()
        held.complete(position)
        step = Step(plan, held, position, work.tasks.get(position, ()), pool)
        under_way.put(step, last=position == steps[-1][0])


class _Session:
    """What provenance says of one time that a plan was run."""

    def __init__(self, plan: Plan, folder: Path | None) -> None:
        self.plan, self.folder, self.began = plan, folder, time.time()
        self.read, self.finished = 0, False

    def write(self) -> None:
        """Add this session to those before it; one that found nothing left to do is not told."""
        if self.folder is None:
            return
        path = self.folder / "provenance.json"
        said = _told(path)
        mine = {
            "finished": _now() if self.finished else None,
            "seconds": round(time.time() - self.began, 1),
            "bytes_read": self.read,
        }
        if self.read or not said:
            said = _provenance(self.plan) | mine | {"sessions": [*said.get("sessions", []), mine]}
        write_json(path, said | {"plan": self.plan.fingerprint, "finished": mine["finished"]})


def _told(path: Path) -> dict[str, Any]:
    """What provenance says so far; nothing if the file was damaged."""
    try:
        said: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return said


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _provenance(plan: Plan) -> dict[str, Any]:
    packages = ("torch", "numpy", "pandas", "safetensors", "huggingface_hub")
    return {
        "analysis360": __version__,
        "versions": {name: version(name) for name in packages},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": plan.device,
        "arithmetic": "compiled" if plan.compiled else "torch",
        "definitions": [measure_key(m.name, m.version) for m in plan.measures],
    }
