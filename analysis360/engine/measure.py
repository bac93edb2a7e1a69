"""Run a plan: take each job through the checkpoints, measure, and keep what is finished."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

from analysis360._version import __version__
from analysis360.engine.held import Held
from analysis360.engine.plan import Plan
from analysis360.engine.planner import workers
from analysis360.engine.schedule import Job, Read
from analysis360.engine.stream import Buffers, stream
from analysis360.engine.tasks import Task, rows_of, tasks_of
from analysis360.errors import StorageError
from analysis360.results import Parts, measure_key, tabulate, write_json
from analysis360.stats.base import Measure
from analysis360.storage import Store, open_store

__all__ = ["run_plan"]

Todo = list[tuple[Job, tuple[Measure, ...]]]


def run_plan(plan: Plan, path: str | os.PathLike[str] | None, *, progress: bool) -> pd.DataFrame:
    """Do what `Plan.run` says."""
    folder = None if path is None else Path(path)
    with ExitStack() as stack:
        if folder is not None:
            _make(folder)
            stack.enter_context(_alone(folder))
            write_json(folder / "plan.json", plan.to_json())
        parts = Parts(folder)
        parts.clean()
        done = parts.done()
        todo = [(job, _missing(plan, done.get(job.key, set()))) for job in plan.jobs]
        todo = [(job, measures) for job, measures in todo if measures]
        began = time.time()
        try:
            read = _work(plan, todo, parts, progress)
        finally:
            parts.flush()
        if folder is not None and todo:
            write_json(folder / "provenance.json", _provenance(plan, began, read))
        rows = parts.rows(job.key for job in plan.jobs)
    return tabulate(rows, plan.statistics)


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
    try:
        yield
    finally:
        lock.release()


def _missing(plan: Plan, done: set[str]) -> tuple[Measure, ...]:
    return tuple(m for m in plan.measures if measure_key(m.name, m.version) not in done)


def _work(plan: Plan, todo: Todo, parts: Parts, progress: bool) -> int:
    """Measure the jobs that are left; return the bytes that were read."""
    if not todo:
        return 0
    total = sum(read.nbytes for read in _reads(plan, todo))
    with ExitStack() as stack:
        stores = {c: stack.enter_context(_store(plan, c)) for c in range(len(plan.checkpoints))}
        pool = stack.enter_context(_workers())
        bar = stack.enter_context(
            tqdm(total=total, unit="B", unit_scale=True, desc="measure", disable=not progress)
        )
        buffers = Buffers(plan.budget, pinned=plan.device != "cpu")
        flow = stream(_reads(plan, todo), stores, buffers)
        stack.callback(flow.close)
        for job, measures in todo:
            bar.set_postfix_str(job.blocks[0].name, refresh=False)
            parts.add(_job(plan, job, measures, flow, buffers, pool, bar))
    return total


def _reads(plan: Plan, todo: Todo) -> Iterator[Read]:
    """Requests in the order in which they are taken; there are too many at K2's size for a list."""
    for job, measures in todo:
        for _, reads in plan.steps(job, measures):
            yield from reads


def _store(plan: Plan, position: int) -> Store:
    if position in plan.opened:
        return plan.opened[position]
    checkpoint = plan.checkpoints[position]
    return open_store(checkpoint.uri, checkpoint.revision, files=checkpoint.files)


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
    job: Job,
    measures: Sequence[Measure],
    flow: Iterator[tuple[Read, torch.Tensor]],
    buffers: Buffers,
    pool: ThreadPoolExecutor,
    bar: Any,
) -> list[dict[str, Any]]:
    """Take one job through its checkpoints."""
    held = Held(plan, job, plan.held_until(job, measures), buffers)
    rows: list[dict[str, Any]] = []
    for position, reads in plan.steps(job, measures):
        for _ in reads:
            read, buffer = next(flow)
            held.add(read, buffer)
            bar.update(read.nbytes)
        held.complete(position)
        tasks: list[Task] = tasks_of(plan, job, position, measures, held)
        rows += rows_of(plan, job, position, tasks, held, pool)
        held.release(position)
    for measure in measures:  # so that a job without a matrix counts as done for spectra
        name = measure_key(measure.name, measure.version)
        rows.append({"job": job.key, "name": "", "measure": name, "block": -2, "values": []})
    held.close()
    return rows


def _provenance(plan: Plan, began: float, read: int) -> dict[str, Any]:
    packages = ("torch", "numpy", "pandas", "safetensors", "huggingface_hub")
    return {
        "plan": plan.key,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": round(time.time() - began, 1),
        "bytes_read": read,
        "analysis360": __version__,
        "versions": {name: version(name) for name in packages},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": plan.device,
        "definitions": [measure_key(m.name, m.version) for m in plan.measures],
    }
