"""Take the sums of one checkpoint of one job, and make the rows that are stored."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from analysis360.engine.held import Held
from analysis360.engine.plan import Plan
from analysis360.engine.schedule import BLOCK, Block
from analysis360.engine.work import Task
from analysis360.errors import StatisticError
from analysis360.results import Entry
from analysis360.stats import REFERENCES, STORED, Accumulator, Whole, compiled, merge, states
from analysis360.stats.base import Values, merge_columns
from analysis360.stats.tiles import TILE, exact, matrix, sharing

__all__ = ["Step"]

CHUNK = 1 << 22
"""Elements that a worker takes at a time: half a block. With a quarter of that calls cost a fifth
more, as threads hand the interpreter's lock to each other."""


class Step:
    """The tasks of one checkpoint of a job, under way in the pool (on a CUDA device: queued there).

    Parameters
    ----------
    plan : Plan
    held : Held
        Holds what the tasks use until `rows` has returned.
    position : int
        Of the checkpoint.
    tasks : sequence of Task
    pool : Executor
    """

    def __init__(
        self, plan: Plan, held: Held, position: int, tasks: Sequence[Task], pool: Executor
    ) -> None:
        self.plan, self.held, self.position, self.tasks = plan, held, position, tasks
        self._whole = [
            (task, task.blocks[0], pool.submit(_whole, plan, held, task.entry))
            for task in tasks
            if isinstance(task.entry.measure, Whole)
        ]
        self._whole += [
            (task, block, pool.submit(_lines, plan, held, task.entry, block))
            for task in tasks
            if _by_lines(task.entry)
            for block in task.blocks
        ]
        # The list first: what cannot be cut into pieces fails before anything is under way
        pieces = list(_pieces(plan, held, tasks))
        self._sums: list[tuple[_Piece, Future[list[Values]] | list[list[torch.Tensor]]]]
        if plan.device == "cpu":
            self._sums = [(piece, pool.submit(piece.run)) for piece in pieces]
        else:
            self._sums = [(piece, piece.queue()) for piece in pieces]

    def rows(self) -> list[dict[str, Any]]:
        """Wait for the sums, merge those of a block, and give the rows, in the order of the tasks.

        Raises
        ------
        StatisticError
            If a registered function failed.
        """
        gathered: dict[tuple[int, Block], list[Values]] = {}
        for piece, results in self._finished():
            for at, values in zip(piece.at, results):
                gathered.setdefault((at, piece.block), []).append(values)
        rows = []
        for (at, block), arrays in sorted(gathered.items(), key=lambda item: item[0][0]):
            fields = self.tasks[at].entry.measure.fields
            with np.errstate(all="ignore"):
                merged = merge(fields, np.concatenate(arrays), np.zeros(1, dtype=np.intp))[0]
            rows.append(self._row(self.tasks[at], block, merged))
        rows += [self._row(task, block, future.result()) for task, block, future in self._whole]
        return rows

    def _finished(self) -> Iterator[tuple[_Piece, list[Values]]]:
        """Sums of each piece; from a CUDA device they come in one transfer."""
        queued: list[torch.Tensor] = []
        for piece, results in self._sums:
            if isinstance(results, Future):
                yield piece, results.result()
            else:
                queued += [vector for vectors in results for vector in vectors]
        if not queued:
            return
        flat, at = torch.cat(queued).cpu().numpy(), 0
        for piece, results in self._sums:
            assert not isinstance(results, Future)
            found = []
            for vectors in results:
                size = sum(vector.numel() for vector in vectors)
                found.append(flat[at : at + size].reshape(len(vectors), -1))
                at += size
            yield piece, found

    def _row(self, task: Task, block: Block, values: Values) -> dict[str, Any]:
        checkpoint, reference, name, state, measure, given = task.key
        moments = bool({"exp_avg", "exp_avg_sq"} & {*self.plan.stored(task.entry)})
        step = self.held.step(self.position, name) if moments else None
        return {
            "checkpoint": checkpoint, "reference": reference, "name": name, "state": state,
            "measure": measure, "given": given, "start": block.start, "stop": block.stop,
            "opt_step": math.nan if step is None else step, "values": values.tolist(),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Piece:
    """Some elements of a block, and all that is measured on them, so that they are read once.

    `at` are the places of the entries in the step's tasks.
    """

    plan: Plan
    held: Held
    block: Block
    at: tuple[int, ...]
    entries: tuple[Entry, ...]
    start: int
    stop: int

    def run(self) -> list[Values]:
        """Sums of each entry, one row a tile, on a CPU."""
        found: dict[int, Values] = {}
        if self.plan.compiled:
            for group in _groups(self.entries):
                found |= self._compiled(group)
        rest = [i for i in range(len(self.entries)) if i not in found]
        for i, vectors in zip(rest, self._by_tiles(rest, TILE)):
            found[i] = torch.stack(vectors).numpy()
        return [found[i] for i in range(len(self.entries))]

    def queue(self) -> list[list[torch.Tensor]]:
        """Sums of each entry, still on the device; nothing waits for it here."""
        return self._by_tiles(range(len(self.entries)), BLOCK)

    def _by_tiles(self, which: Sequence[int], size: int) -> list[list[torch.Tensor]]:
        found: list[list[torch.Tensor]] = [[] for _ in which]
        for start in range(self.start, self.stop, size) if which else ():
            tile = _Tile(self.plan, self.held, self.block.name, start, min(start + size, self.stop))
            with sharing():
                for results, i in zip(found, which):
                    results.append(_call(self.plan, self.entries[i], tile))
        return found

    def _compiled(self, group: Sequence[int]) -> dict[int, Values]:
        """Sums of the entries that share their arrays, in one pass over the stored elements."""
        entries = [self.entries[i] for i in group]
        reference = max(entry.reference for entry in entries)
        arrays = {}
        for entry in entries:
            for name in entry.measure.inputs:
                if name == "reference":
                    arrays[name] = self._stored(reference, entry.state)
                elif name == "tensor":
                    arrays[name] = self._stored(entry.position, entry.state)
                elif name in STORED:
                    arrays[name] = self._stored(entry.position, name)
        known = _scalars(self.plan, self.held, entries[0].position, self.block.name)
        measures = [e.measure for e in entries if isinstance(e.measure, Accumulator)]
        sums = compiled.run(measures, arrays, known)
        return {i: values[np.newaxis] for i, values in zip(group, sums)}

    def _stored(self, position: int, state: str) -> torch.Tensor:
        tensor = self.held.get(position, self.block.name, state)
        assert tensor is not None
        return tensor[self.start : self.stop]


def _by_lines(entry: Entry) -> bool:
    """Whether it gives numbers for each row or column."""
    return isinstance(entry.measure, Accumulator) and entry.measure.axis is not None


def _pieces(plan: Plan, held: Held, tasks: Sequence[Task]) -> Iterator[_Piece]:
    at: dict[Block, list[int]] = {}
    for i, task in enumerate(tasks):
        if isinstance(task.entry.measure, Accumulator) and not _by_lines(task.entry):
            for block in task.blocks:
                at.setdefault(block, []).append(i)
    size = CHUNK if plan.device == "cpu" else BLOCK
    for block, which in at.items():
        width = math.prod(plan.shape(block.name)[1:])
        first = (block.start - held.spans[block.name][0]) * width
        stop = first + (block.stop - block.start) * width
        entries = tuple(tasks[i].entry for i in which)
        for start in range(first, stop, size):
            end = min(start + size, stop)
            yield _Piece(plan, held, block, tuple(which), entries, start, end)


def _groups(entries: Sequence[Entry]) -> list[list[int]]:
    """Entries that compiled loops can take together, by the arrays that they read.

    What is measured of a tensor alone goes with the first comparison, which reads it too.
    """
    alone: dict[str, list[int]] = {}
    pairs: dict[str, dict[int, list[int]]] = {}
    for i, entry in enumerate(entries):
        if entry.state not in (*STORED, "adam") or not compiled.supports(entry.measure):
            continue
        if entry.reference < 0:
            alone.setdefault(entry.state, []).append(i)
        else:
            pairs.setdefault(entry.state, {}).setdefault(entry.reference, []).append(i)
    found = []
    for state in dict.fromkeys([*alone, *pairs]):
        groups = list(pairs.get(state, {}).values()) or [[]]
        groups[0] = alone.get(state, []) + groups[0]
        found += groups
    return found


class _Tile:
    """The same elements of a tensor in several checkpoints and states, each upcast once."""

    def __init__(self, plan: Plan, held: Held, name: str, start: int, stop: int) -> None:
        self.plan, self.held, self.name = plan, held, name
        self.start, self.stop = start, stop
        self._made: dict[tuple[int, str], torch.Tensor] = {}

    def get(self, position: int, state: str) -> torch.Tensor:
        key = (position, state)
        if key not in self._made:
            self._made[key] = self._make(position, state)
        return self._made[key]

    def _make(self, position: int, state: str) -> torch.Tensor:
        if state in STORED:
            stored = self.held.get(position, self.name, state)
            assert stored is not None
            return exact(stored[self.start : self.stop], slot=f"tile {len(self._made)}")
        return _derived(self.plan, self.held, position, self.name, state, self.get)


def _derived(
    plan: Plan,
    held: Held,
    position: int,
    name: str,
    state: str,
    get: Callable[[int, str], torch.Tensor],
) -> torch.Tensor:
    entry = states[state]
    known = _scalars(plan, held, position, name)
    made: torch.Tensor = entry.function(
        **{n: get(position, n) if n in STORED else known[n] for n in entry.inputs}
    )
    return made


def _call(plan: Plan, entry: Entry, tile: _Tile) -> torch.Tensor:
    """Results of one accumulator on one tile."""
    return _checked(plan, tile.held, entry, _arrays(entry, tile), len(entry.measure.fields))


def _arrays(entry: Entry, tile: _Tile) -> dict[str, torch.Tensor]:
    """Arrays that an accumulator names."""
    arrays = {}
    for name in entry.measure.inputs:
        if name == "tensor":
            arrays[name] = tile.get(entry.position, entry.state)
        elif name == "reference":
            arrays[name] = tile.get(entry.reference, entry.state)
        elif name in STORED:
            arrays[name] = tile.get(entry.position, name)
        elif name in REFERENCES:
            arrays[name] = tile.get(entry.reference, REFERENCES[name])
    return arrays


def _lines(plan: Plan, held: Held, entry: Entry, block: Block) -> Values:
    """Results of an accumulator for each row, or each column, of a block: field after field."""
    assert isinstance(entry.measure, Accumulator)
    fields, by_rows = entry.measure.fields, entry.measure.axis == "rows"
    width = math.prod(plan.shape(entry.name)[1:])
    first, height = held.spans[entry.name][0], max(1, TILE // width)
    found: list[Values] = []
    for start in range(block.start, block.stop, height):
        stop = min(start + height, block.stop)
        tile = _Tile(plan, held, block.name, (start - first) * width, (stop - first) * width)
        arrays = {n: a.view(stop - start, width) for n, a in _arrays(entry, tile).items()}
        size = stop - start if by_rows else width
        made = _checked(plan, held, entry, arrays, len(fields), size).cpu().numpy()
        if by_rows or not found:
            found.append(made)
        else:
            found[0] = merge_columns(fields, found[0], made)
    return np.concatenate(found, axis=1).reshape(-1)


def _whole(plan: Plan, held: Held, entry: Entry) -> Values:
    """Results of a whole-matrix step."""
    measure = entry.measure
    assert isinstance(measure, Whole)

    def get(position: int, name: str, state: str) -> torch.Tensor:
        stored = held.get(position, name, state)
        assert stored is not None
        return matrix(stored)

    def made(position: int, name: str) -> torch.Tensor:
        if entry.state in STORED:
            whole = get(position, name, entry.state)
        else:
            whole = _derived(
                plan, held, position, name, entry.state, lambda p, state: get(p, name, state)
            )
        return whole.view(plan.shape(name))

    if measure.of:
        members = zip(measure.of, plan.members(entry))
        arrays = {name: made(entry.position, member) for name, member in members}
    else:
        arrays = {"tensor": made(entry.position, entry.name)}
        if measure.pair:
            arrays["reference"] = made(entry.reference, entry.name)
    arrays = {name: array for name, array in arrays.items() if name in measure.inputs}
    size = None if measure.vector else len(measure.fields)
    values: Values = _checked(plan, held, entry, arrays, size).cpu().numpy()
    if len(values) < len(measure.fields):
        raise StatisticError(f"{entry.name}: {measure.name!r} returned {len(values)} values")
    return values


def _checked(
    plan: Plan,
    held: Held,
    entry: Entry,
    arrays: Mapping[str, torch.Tensor],
    *shape: int | None,
) -> torch.Tensor:
    """Call a registered function; whatever fails in it says where.

    What it returns must have the given shape, in which None is any length.
    """
    measure = entry.measure
    given: dict[str, Any] = dict(arrays)
    if len(given) < len(measure.inputs):
        moments = bool(measure.named_states)
        known = _scalars(plan, held, entry.position, entry.name, moments)
        if "reference_step" in measure.inputs:
            other = _scalars(plan, held, entry.reference, entry.name, moments)
            known["reference_step"] = other["step"]
        given |= {name: known[name] for name in measure.inputs if name not in given}
    try:
        result = measure.function(**given)
        if not isinstance(result, torch.Tensor):
            raise StatisticError(f"it returned {type(result).__name__}, not a tensor")
        if len(result.shape) != len(shape) or any(
            want not in (None, got) for got, want in zip(result.shape, shape)
        ):
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            raise StatisticError(
                f"it returned shape {tuple(result.shape)}, not ({wanted}); its fields are "
                f"{list(measure.fields)}"
            )
    except Exception as error:
        raise StatisticError(
            f"{plan.checkpoints[entry.position].name}: {entry.name}: {measure.name!r} failed on "
            f"{entry.state}: {error}"
        ) from error
    return result.to(torch.float64)


def _scalars(
    plan: Plan, held: Held, position: int, name: str, moments: bool = True
) -> dict[str, Any]:
    """Scalars that a registered function may name; NaN where the run does not tell.

    `step` is the optimizer's own for what is made of its moments, else the checkpoint's: a row does
    not depend on what else is measured.
    """
    known: dict[str, Any] = dict(plan.scalars(position, name))
    stored = held.step(position, name) if moments else None
    if stored is not None:
        known["step"] = stored
    shape = plan.shape(name)
    return known | {"numel": math.prod(shape), "shape": shape, "dtype": held.dtype(position, name)}
