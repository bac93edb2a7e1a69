"""The plan as data: what is read, in which order, held how long; and its JSON form."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import pandas as pd

from analysis360.core import Adam, Checkpoint, Label, Part, TensorInfo
from analysis360.engine import schedule
from analysis360.engine.schedule import Block, Job, Piece, Read
from analysis360.results import measure_key
from analysis360.stats import STORED, states, statistics
from analysis360.stats.base import Measure
from analysis360.storage import Store

__all__ = ["Plan"]


@dataclass(frozen=True)
class Plan:
    """What will be read, held and skipped. Data only: it can be pickled and written as JSON.

    Made by `analysis360.plan`; nothing but headers has been read.

    Attributes
    ----------
    name : str
        Of the run.
    checkpoints : tuple of Checkpoint
        In the order in which each job takes them: by tokens, parents before their branches.
    tensors : tuple of mapping of (name, state) to TensorInfo
        What each checkpoint stores.
    labels : mapping of str to Label
    adam : tuple of Adam
        Hyper-parameters of each checkpoint.
    references : mapping of (int, str) to int
        Position of a checkpoint and a role (``"previous"``, ``"partner"``, ``"ancestor"``) →
        position of the checkpoint it is compared with.
    lr_sums : mapping of (int, str) to float
        Sum of the learning rate between the two.
    statistics, states, against : tuple of str
    jobs : tuple of Job
    skipped : tuple of (str, str)
        What is not measured, and why.
    probes : tuple of (int, str, int, int)
        Checkpoint, file, offset and bytes of the headers that were read to make the plan.
    memory, peak_nbytes : int
        Budget given, and the least that is needed, in bytes. What is over is used to read ahead.
    device : str
    opened : mapping of int to Store
        Remote stores that were used for the headers and know their files' addresses, and models in
        memory; neither pickled nor written as JSON.
    """

    name: str
    checkpoints: tuple[Checkpoint, ...]
    tensors: tuple[Mapping[tuple[str, str], TensorInfo], ...]
    labels: Mapping[str, Label]
    adam: tuple[Adam, ...]
    references: Mapping[tuple[int, str], int]
    lr_sums: Mapping[tuple[int, str], float]
    statistics: tuple[str, ...]
    states: tuple[str, ...]
    against: tuple[str, ...]
    jobs: tuple[Job, ...]
    skipped: tuple[tuple[str, str], ...]
    probes: tuple[tuple[int, str, int, int], ...]
    memory: int
    peak_nbytes: int = 0
    device: str = "cpu"
    totals: Mapping[str, int] = field(default_factory=dict)
    opened: Mapping[int, Store] = field(default_factory=dict, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        """Without what can be opened again."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__} | {"opened": {}}

    @cached_property
    def measures(self) -> tuple[Measure, ...]:
        """Accumulators and whole-matrix steps that the statistics rest on."""
        found = (m for name in self.statistics for m in statistics[name].measures)
        return tuple(dict.fromkeys(found))

    @property
    def nbytes(self) -> int:
        """Bytes of tensors that will be read, gaps between merged ranges included."""
        return self.totals["nbytes"]

    @property
    def requests(self) -> int:
        """Range requests that will be made."""
        return self.totals["requests"]

    @property
    def budget(self) -> int:
        """Bytes that buffers may take: what was given, less what is needed besides."""
        return self.memory - self.totals["fixed"] - self.totals["work"]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, the same in every checkpoint."""
        return self._shapes[name]

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        every = (t for mine in self.tensors for t in mine.values() if t.state != "step")
        return {t.name: t.shape for t in every}

    def wanted(self) -> dict[str, tuple[str, ...]]:
        """States to measure, with the stored states each is made of."""
        return {s: (s,) if s in STORED else states[s].stored for s in self.states}

    def stored_states(self, measures: Sequence[Measure]) -> tuple[str, ...]:
        """Stored states that must be read for some measures."""
        need: dict[str, None] = {}
        if any(not m.named_states for m in measures):
            need |= dict.fromkeys(s for made_of in self.wanted().values() for s in made_of)
        need |= dict.fromkeys(s for m in measures for s in m.named_states)
        if "exp_avg" in need or "exp_avg_sq" in need:
            need["step"] = None
        return tuple(need)

    def reads(self, job: Job, position: int, measures: Sequence[Measure]) -> list[Read]:
        """Requests of one job in one checkpoint, in file order."""
        mine = self.tensors[position]
        pieces = []
        for name, (start, stop) in job.spans.items():
            for state in self.stored_states(measures):
                tensor = mine.get((name, state))
                if tensor is None:
                    continue
                rows = (0, 1) if state == "step" else (start, stop)
                parts = (part.rows(tensor.shape, *rows) for part in tensor.parts)
                pieces += [Piece(name, state, part) for part in parts if part is not None]
        return schedule.merge_reads(position, pieces)

    def held_until(self, job: Job, measures: Sequence[Measure]) -> dict[tuple[int, str], int]:
        """Last position at which each state of each checkpoint is used in a job."""
        pairs = self.references if any(m.pair for m in measures) else {}
        last = schedule.last_uses(len(self.checkpoints), pairs, self._with(job))
        kept = {s for made_of in self.wanted().values() for s in made_of}
        return {(c, s): until for c, until in last.items() for s in kept}

    def _with(self, job: Job) -> list[int]:
        """Positions of the checkpoints that store any tensor of a job."""
        return sorted({c for block in job.blocks for c in self._where.get(block.name, ())})

    @cached_property
    def _where(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for position, mine in enumerate(self.tensors):
            for name in dict.fromkeys(name for name, _ in mine):
                found.setdefault(name, []).append(position)
        return found

    def steps(self, job: Job, measures: Sequence[Measure]) -> list[tuple[int, list[Read]]]:
        """Checkpoints of a job in order, with their reads."""
        steps = ((c, self.reads(job, c, measures)) for c in self._with(job))
        return [(c, reads) for c, reads in steps if reads]

    def run_key(self) -> str:
        """Fingerprint of everything but the blocks that a stored row depends on."""
        said = {
            "run": self.name,
            "checkpoints": [[c.branch, c.number, c.step, c.revision] for c in self.checkpoints],
            "references": sorted([c, role, r] for (c, role), r in self.references.items()),
            "tokens": [c.tokens for c in self.checkpoints],
            "lr_sums": sorted([c, role, value] for (c, role), value in self.lr_sums.items()),
            "labels": {name: asdict(label) for name, label in self.labels.items()},
            "states": self.states,
            "adam": [asdict(a) for a in self.adam],
        }
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()

    @property
    def key(self) -> str:
        """Fingerprint of the whole plan: its jobs and what they measure."""
        said = [[j.key for j in self.jobs], [measure_key(m.name, m.version) for m in self.measures]]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """As JSON-ready data; `from_json` reads it back."""
        return {
            "run": self.name,
            "checkpoints": [asdict(c) | {"files": dict(c.files)} for c in self.checkpoints],
            "tensors": [[_tensor_json(t) for t in mine.values()] for mine in self.tensors],
            "labels": {name: asdict(label) for name, label in self.labels.items()},
            "adam": [asdict(a) for a in self.adam],
            "references": [[c, role, r] for (c, role), r in self.references.items()],
            "lr_sums": [[c, role, value] for (c, role), value in self.lr_sums.items()],
            "statistics": list(self.statistics),
            "measures": [measure_key(m.name, m.version) for m in self.measures],
            "states": list(self.states),
            "against": list(self.against),
            "jobs": [
                {"key": j.key, "blocks": [[b.name, b.index, b.start, b.stop] for b in j.blocks]}
                for j in self.jobs
            ],
            "skipped": [list(s) for s in self.skipped],
            "probes": [list(p) for p in self.probes],
            "memory": self.memory,
            "peak_nbytes": self.peak_nbytes,
            "device": self.device,
            "key": self.key,
            **self.totals,
        }  # fmt: skip

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> Plan:
        """Read what `to_json` gave."""
        tensors = tuple(
            {(t.name, t.state): t for t in (_tensor_from(row) for row in mine)}
            for mine in said["tensors"]
        )
        jobs = tuple(Job(j["key"], tuple(Block(*b) for b in j["blocks"])) for j in said["jobs"])
        return cls(
            name=said["run"],
            checkpoints=tuple(Checkpoint(**c) for c in said["checkpoints"]),
            tensors=tensors,
            labels={name: Label(**value) for name, value in said["labels"].items()},
            adam=tuple(Adam(**a) for a in said["adam"]),
            references={(c, role): r for c, role, r in said["references"]},
            lr_sums={(c, role): value for c, role, value in said["lr_sums"]},
            statistics=tuple(said["statistics"]),
            states=tuple(said["states"]),
            against=tuple(said["against"]),
            jobs=jobs,
            skipped=tuple((what, why) for what, why in said["skipped"]),
            probes=tuple((c, f, o, n) for c, f, o, n in said["probes"]),
            memory=said["memory"],
            peak_nbytes=said["peak_nbytes"],
            device=said["device"],
            totals={name: said[name] for name in ("nbytes", "requests", "fixed", "work")},
        )

    def run(
        self, path: str | os.PathLike[str] | None = None, *, progress: bool = True
    ) -> pd.DataFrame:
        """Read, measure, and return the table.

        Parameters
        ----------
        path : path, optional
            Results folder. What is finished lands there and is not measured again when the same
            plan, or one with more statistics, is run on the folder again. Without it the results
            are only returned.
        progress : bool
            Show one progress bar.

        Returns
        -------
        DataFrame
            As `analysis360.load_table` gives it.

        Raises
        ------
        StorageError
            If bytes cannot be had after retries, or the disk is full. What was finished is kept.
        """
        from analysis360.engine.measure import run_plan

        return run_plan(self, path, progress=progress)

    def __repr__(self) -> str:
        tensors = {name for mine in self.tensors for name, _ in mine}
        said = [
            f"Plan for {self.name!r}: {len(self.checkpoints)} checkpoints, {len(tensors)} tensors, "
            f"{len(self.statistics)} statistics of {'+'.join(self.states)}"
            + (f" against {', '.join(self.against)}" if self.against else ""),
            f"  reads {size(self.nbytes)} in {self.requests:,} requests, each stored byte once; "
            f"{len(self.jobs):,} jobs",
            f"  needs {size(self.peak_nbytes)} of the {size(self.memory)} given, on {self.device}; "
            "reads ahead with the rest",
        ]
        said += [f"  skips {what}: {why}" for what, why in self.skipped[:12]]
        if len(self.skipped) > 12:
            said.append(f"  skips {len(self.skipped) - 12} more, see .skipped")
        return "\n".join(said)


def size(count: float) -> str:
    """Bytes for people, in decimal units.

    Examples
    --------
    >>> size(1_305_724_539), size(36_400)
    ('1.31 GB', '36.4 kB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.4g} TB"


def _tensor_json(t: TensorInfo) -> list[Any]:
    parts = [[p.file, p.offset, p.nbytes, p.dtype, p.flat, p.box] for p in t.parts]
    return [t.name, t.key, t.state, list(t.shape), t.dtype, parts]


def _tensor_from(row: Sequence[Any]) -> TensorInfo:
    name, key, state, shape, dtype, parts = row
    made = []
    for file, offset, size, kind, flat, box in parts:
        place = tuple(tuple(side) for side in box) if box is not None else None
        made.append(Part(file, offset, size, kind, tuple(flat) if flat else None, place))
    return TensorInfo(name, key, state, tuple(shape), dtype, tuple(made))
