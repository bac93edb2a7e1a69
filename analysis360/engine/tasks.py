"""What to compute for one checkpoint of one job, tile by tile, and the rows that come of it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from analysis360.engine.held import Held
from analysis360.engine.plan import Plan
from analysis360.engine.schedule import Block, Job
from analysis360.errors import StatisticError
from analysis360.results import measure_key
from analysis360.stats import STORED, Accumulator, Whole, merge, states
from analysis360.stats.base import Measure, Values
from analysis360.stats.tiles import TILE, exact, matrix

__all__ = ["Task", "rows_of", "tasks_of"]

CHUNK = 8
"""Tiles that a worker takes at a time."""


@dataclass(frozen=True, slots=True)
class Task:
    """One measure of one tensor: in `state`, alone or against the checkpoint at `reference`."""

    name: str
    measure: Measure
    state: str
    against: str = ""
    reference: int = -1


def tasks_of(
    plan: Plan, job: Job, position: int, measures: Sequence[Measure], held: Held
) -> list[Task]:
    """Tasks whose inputs this checkpoint, and the one it is compared with, store."""
    found = []
    for name in job.spans:
        for measure in measures:
            if measure.named_states:
                if all(held.get(position, name, s) is not None for s in measure.named_states):
                    found.append(Task(name, measure, "adam"))
                continue
            for state, made_of in plan.wanted().items():
                if any(held.get(position, name, s) is None for s in made_of):
                    continue
                if not measure.pair:
                    found.append(Task(name, measure, state))
                    continue
                for role in plan.against:
                    other = plan.references.get((position, role))
                    if other is None or any(held.get(other, name, s) is None for s in made_of):
                        continue
                    found.append(Task(name, measure, state, role, other))
    return found


def rows_of(
    plan: Plan, job: Job, position: int, tasks: Sequence[Task], held: Held, pool: Executor
) -> list[dict[str, Any]]:
    """Compute the tasks of one checkpoint; rows in the order of tensors, blocks and tasks."""
    shapes = {t.name: plan.shape(t.name) for t in tasks}
    matrix = [
        t for t in tasks if isinstance(t.measure, Whole) and len(shapes[t.name]) == t.measure.ndim
    ]
    spectra = [pool.submit(_whole, plan, position, t, held) for t in matrix]
    items = list(
        _items(plan, job, position, [t for t in tasks if isinstance(t.measure, Accumulator)], held)
    )
    results = (
        list(pool.map(lambda item: item.run(), items))
        if plan.device == "cpu"
        else [i.run() for i in items]
    )
    rows = []
    gathered: dict[tuple[Block, Task], list[Values]] = {}
    for item, arrays in zip(items, results):
        for task, array in zip(item.tasks, arrays):
            gathered.setdefault((item.block, task), []).append(array)
    for (block, task), arrays in gathered.items():
        values = np.concatenate(arrays)
        with np.errstate(all="ignore"):
            merged = merge(task.measure.fields, values, np.zeros(1, dtype=np.intp))[0]
        rows.append(_row(plan, job, position, task, held, block.index, merged))
    for task, future in zip(matrix, spectra):
        rows.append(_row(plan, job, position, task, held, -1, future.result()))
    return rows


@dataclass(frozen=True, slots=True)
class _Item:
    """Some tiles of one block, and all that is measured on them, so that a tile is upcast once."""

    plan: Plan
    position: int
    held: Held
    block: Block
    tasks: tuple[Task, ...]
    bounds: tuple[tuple[int, int], ...]

    def run(self) -> list[Values]:
        found: list[list[torch.Tensor]] = [[] for _ in self.tasks]
        for bound in self.bounds:
            tile = _Tile(self.plan, self.held, self.block.name, bound)
            for results, task in zip(found, self.tasks):
                results.append(_call(self.plan, self.position, task, tile))
        return [torch.stack(results).cpu().numpy() for results in found]


def _items(
    plan: Plan, job: Job, position: int, tasks: Sequence[Task], held: Held
) -> Iterator[_Item]:
    by_name: dict[str, list[Task]] = {}
    for task in tasks:
        by_name.setdefault(task.name, []).append(task)
    for block in job.blocks:
        mine = tuple(by_name.get(block.name, ()))
        if not mine:
            continue
        width = math.prod(plan.shape(block.name)[1:])
        first = (block.start - held.spans[block.name][0]) * width
        stop = first + (block.stop - block.start) * width
        tiles = [(at, min(at + TILE, stop)) for at in range(first, stop, TILE)]
        for at in range(0, len(tiles), CHUNK):
            yield _Item(plan, position, held, block, mine, tuple(tiles[at : at + CHUNK]))


class _Tile:
    """The same elements of a tensor in several checkpoints and states, each upcast once."""

    def __init__(self, plan: Plan, held: Held, name: str, bound: tuple[int, int] | None) -> None:
        self.plan, self.held, self.name, self.bound = plan, held, name, bound
        self._made: dict[tuple[int, str], torch.Tensor] = {}

    def get(self, position: int, state: str) -> torch.Tensor:
        key = (position, state)
        if key not in self._made:
            self._made[key] = self._make(position, state)
        return self._made[key]

    def reshape(self, position: int, state: str, shape: tuple[int, ...]) -> None:
        """Give the whole tensor its shape back."""
        self._made[position, state] = self.get(position, state).view(shape)

    def _make(self, position: int, state: str) -> torch.Tensor:
        if state in STORED:
            stored = self.held.get(position, self.name, state)
            assert stored is not None
            if self.bound is None:
                return matrix(stored)
            return exact(stored[slice(*self.bound)], slot=f"tile {len(self._made)}")
        entry = states[state]
        known = scalars(self.plan, position, self.name, self.held, moments=True)
        inputs = {n: self.get(position, n) if n in STORED else known[n] for n in entry.inputs}
        return entry.function(**inputs)


def _call(plan: Plan, position: int, task: Task, tile: _Tile) -> torch.Tensor:
    """Results of one measure on one tile; whatever fails in it says where."""
    try:
        result = _result(plan, position, task, tile)
        if result.shape != (len(task.measure.fields),):
            raise StatisticError(
                f"it returned shape {tuple(result.shape)}; its fields are "
                f"{list(task.measure.fields)}"
            )
    except Exception as error:
        raise StatisticError(
            f"{plan.checkpoints[position].name}: {task.name}: {task.measure.name!r} failed on "
            f"{task.state}: {error}"
        ) from error
    return result.to(torch.float64)


def _result(plan: Plan, position: int, task: Task, tile: _Tile) -> torch.Tensor:
    moments = bool(task.measure.named_states)
    known = scalars(plan, position, task.name, tile.held, moments=moments)
    given: dict[str, Any] = {}
    for name in task.measure.inputs:
        if name == "tensor":
            given[name] = tile.get(position, task.state)
        elif name == "reference":
            given[name] = tile.get(task.reference, task.state)
        elif name in STORED:
            given[name] = tile.get(position, name)
        else:
            given[name] = known[name]
    result = task.measure.function(**given)
    if not isinstance(result, torch.Tensor):
        raise StatisticError(f"it returned {type(result).__name__}, not a tensor")
    return result


def _whole(plan: Plan, position: int, task: Task, held: Held) -> Values:
    shape = plan.shape(task.name)

    tile = _Tile(plan, held, task.name, None)
    tile.reshape(position, task.state, shape)
    values: Values = _call(plan, position, task, tile).cpu().numpy()
    return values


def scalars(plan: Plan, position: int, name: str, held: Held, *, moments: bool) -> dict[str, Any]:
    """Scalars that a registered function may name; NaN where the run does not tell.

    `step` is the optimizer's own for what is made of its moments, else the checkpoint's: a row does
    not depend on what else is measured.
    """
    adam, checkpoint = plan.adam[position], plan.checkpoints[position]
    shape = plan.shape(name)
    stored = held.step(position, name) if moments else None
    step = stored if stored is not None else checkpoint.step
    decay = adam.weight_decay if len(shape) > 1 else 0.0
    found = {
        "numel": math.prod(shape), "shape": shape, "dtype": held.dtype(position, name),
        "step": step, "beta1": adam.beta1, "beta2": adam.beta2, "eps": adam.eps, "lr": adam.lr,
        "weight_decay": decay, "lr_sum": None,
    }  # fmt: skip
    return {k: math.nan if v is None else v for k, v in found.items()}


def _row(
    plan: Plan, job: Job, position: int, task: Task, held: Held, block: int, values: Values
) -> dict[str, Any]:
    checkpoint, label = plan.checkpoints[position], plan.labels[task.name]
    made_of = task.measure.named_states or plan.wanted()[task.state]
    info = plan.tensors[position][task.name, made_of[0]]
    known = scalars(plan, position, task.name, held, moments="exp_avg" in made_of)
    compared = plan.checkpoints[task.reference] if task.against else None
    return {
        "job": job.key, "run": plan.name, "branch": checkpoint.branch, "number": checkpoint.number,
        "step": checkpoint.step, "tokens": checkpoint.tokens, "name": task.name,
        "layer": label.layer, "module": label.module, "param": label.param,
        "expert": label.expert, "head": label.head, "state": task.state, "against": task.against,
        "key": info.key, "revision": checkpoint.revision, "dtype": info.dtype,
        "shape": "x".join(map(str, info.shape)), "numel": info.numel,
        "opt_step": known["step"], "beta1": known["beta1"], "beta2": known["beta2"],
        "eps": known["eps"], "lr": known["lr"], "weight_decay": known["weight_decay"],
        "lr_sum": plan.lr_sums.get((position, task.against), math.nan),
        "reference": "" if compared is None else compared.name,
        "reference_step": None if compared is None else compared.step,
        "block": block, "measure": measure_key(task.measure.name, task.measure.version),
        "values": values.tolist(),
    }  # fmt: skip
