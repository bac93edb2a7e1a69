"""What is left to measure: tasks of a job, the tensors they use, and the reads that bring those."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from analysis360.core import TensorInfo
from analysis360.engine import schedule
from analysis360.engine.schedule import Block, Job, Piece, Place, Read
from analysis360.results import Contents, Entry, Key, Spans
from analysis360.stats import Accumulator, Whole

__all__ = ["Task", "Work", "Works", "reads_of"]

Done = Mapping[Key, Spans]
"""Rows of the finished blocks of each key."""


@dataclass(frozen=True, slots=True)
class Task:
    """One measure of one tensor in one checkpoint, over the blocks that are not finished."""

    entry: Entry
    key: Key
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Work:
    """What is left of one job.

    Attributes
    ----------
    job : Job
    tasks : mapping of int to list of Task
        By position of the checkpoint, in order.
    until : mapping of (int, str, str) to int
        Checkpoint, tensor and stored state that is read → last position at which it is used.
    """

    job: Job
    tasks: Mapping[int, list[Task]]
    until: Mapping[Place, int] = field(repr=False)

    def steps(self, contents: Contents) -> Iterator[tuple[int, list[Read]]]:
        """Checkpoints of the job in order, with their reads."""
        at: dict[int, list[tuple[str, str]]] = {}
        for position, name, state in self.until:
            at.setdefault(position, []).append((name, state))
        for position in sorted(at):
            yield position, reads_of(self.job, position, contents.tensors[position], at[position])

    @property
    def needs_besides(self) -> bool:
        """Whether steps take more than buffers: the workspace of a whole-matrix step."""
        tasks = (task for mine in self.tasks.values() for task in mine)
        return any(isinstance(task.entry.measure, Whole) for task in tasks)


class Works:
    """Works of the jobs of a plan, asked for one after the other.

    Parameters
    ----------
    contents : Contents
    done : mapping of key to rows, optional
        What is finished already.
    """

    def __init__(self, contents: Contents, done: Done | None = None) -> None:
        self.contents, self.done = contents, done or {}
        # Most jobs are blocks of the tensor that the job before was of
        self._entries: tuple[tuple[str, ...], list[tuple[Entry, Key]]] = ((), [])
        self._until: tuple[tuple[str, ...], dict[Place, int]] = ((), {})
        self._steps: set[Place] = set()  # read already: a parameter's step serves all its blocks

    def whole(self, job: Job) -> Work:
        """All of a job, whatever is done; without its tasks."""
        return Work(job, {}, self._once(self._every(tuple(job.by_name))))

    def left(self, job: Job) -> Work | None:
        """What is left of a job; None if nothing is."""
        tasks: dict[int, list[Task]] = {}
        for entry, key in self._of(tuple(job.by_name)):
            blocks = self._blocks(entry, key, job.by_name[entry.name])
            if blocks:
                tasks.setdefault(entry.position, []).append(Task(entry, key, blocks))
        if not tasks:
            return None
        if not self.done:
            return Work(job, tasks, self._once(self._every(tuple(job.by_name))))
        every = (task.entry for mine in tasks.values() for task in mine)
        return Work(job, tasks, self._once(self._uses(every)))

    def _every(self, names: tuple[str, ...]) -> dict[Place, int]:
        if self._until[0] != names:
            self._until = (names, self._uses(entry for entry, _ in self._of(names)))
        return self._until[1]

    def _once(self, until: dict[Place, int]) -> dict[Place, int]:
        """Without the steps that an earlier job has read."""
        steps = {place for place in until if place[2] == "step"}
        again = steps & self._steps
        self._steps |= steps
        return {p: last for p, last in until.items() if p not in again} if again else until

    def _of(self, names: tuple[str, ...]) -> list[tuple[Entry, Key]]:
        """Entries of some tensors in all checkpoints, each key once."""
        if self._entries[0] != names:
            found: dict[Key, Entry] = {}
            for position in range(len(self.contents.checkpoints)):
                for name in names:
                    for entry in self.contents.entries(position, name):
                        found.setdefault(self.contents.key_of(entry), entry)
            self._entries = (names, [(entry, key) for key, entry in found.items()])
        return self._entries[1]

    def _blocks(self, entry: Entry, key: Key, blocks: tuple[Block, ...]) -> tuple[Block, ...]:
        done = self.done.get(key, ())
        if isinstance(entry.measure, Accumulator):
            if not done:
                return blocks
            if _are_whole(done, self.contents.rows(entry.name)):
                return ()
            return tuple(b for b in blocks if (b.start, b.stop) not in done)
        return () if done else (Block(entry.name, -1, 0, self.contents.rows(entry.name)),)

    def _uses(self, entries: Iterable[Entry]) -> dict[Place, int]:
        """What entries read, and the last checkpoint at which each is used."""
        until: dict[Place, int] = {}
        for entry in entries:
            places = [
                (at, name, state)
                for at, stored in (
                    (entry.position, self.contents.stored(entry)),
                    (entry.reference, self.contents.stored_there(entry)),
                )
                for name in self.contents.members(entry)
                for state in _with_step(stored)
            ]
            for place in places:
                if place[1:] in self.contents.tensors[place[0]]:
                    until[place] = max(entry.position, until.get(place, 0))
        return until


def _with_step(stored: tuple[str, ...]) -> tuple[str, ...]:
    """Moments need the step that corrects their bias."""
    return (*stored, "step") if {"exp_avg", "exp_avg_sq"} & {*stored} else stored


@lru_cache(maxsize=256)
def _are_whole(spans: Spans, rows: int) -> bool:
    """Whether finished blocks make up a tensor, wherever it was cut."""
    at = 0
    for start, stop in spans:
        if start != at:
            return False
        at = stop
    return at == rows


def reads_of(
    job: Job,
    position: int,
    tensors: Mapping[tuple[str, str], TensorInfo],
    wanted: list[tuple[str, str]],
) -> list[Read]:
    """Requests of one job in one checkpoint, in file order."""
    pieces = []
    for name, state in wanted:
        tensor = tensors[name, state]
        start, stop = (0, 1) if state == "step" else job.spans[name]
        parts = (part.rows(tensor.shape, start, stop) for part in tensor.parts)
        apart = tensor.scattered and state != "step"
        pieces += [Piece(name, state, part, apart) for part in parts if part is not None]
    return schedule.merge_reads(position, pieces)
