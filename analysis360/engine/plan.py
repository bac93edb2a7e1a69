"""The plan as data: what is read, in which order, held how long; and its JSON form."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sized
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from analysis360.engine.schedule import Block, Job, Read
from analysis360.engine.work import Works
from analysis360.results import Contents, measure_key
from analysis360.storage import Store, open_store

__all__ = ["Plan"]


@dataclass(frozen=True)
class Plan(Contents):
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
    between : mapping of (int, str) to tuple of float
        Sum of the learning rate between the two, of its square, and what weight decay leaves.
    statistics, states, against : tuple of str
    jobs : tuple of Job
    skipped : tuple of (str, str)
        What is not measured, and why.
    probes : tuple of (int, str, int, int)
        Checkpoint, file, offset and bytes of the headers that were read to make the plan.
    memory, peak_nbytes : int
        Budget given, and the least that is needed, in bytes. What is over is used to read ahead.
    device : str
    compiled : bool
        Whether sums are taken by compiled loops (numba) rather than by torch.
    rate : float or None
        Bytes a second that a probe of the link saw, if it was asked for.
    opened : mapping of int to Store
        Remote stores that were used for the headers and know their files' addresses, and models in
        memory; neither pickled nor written as JSON.
    """

    jobs: tuple[Job, ...]
    skipped: tuple[tuple[str, str], ...]
    probes: tuple[tuple[int, str, int, int], ...]
    memory: int
    peak_nbytes: int = 0
    device: str = "cpu"
    compiled: bool = False
    rate: float | None = None
    totals: Mapping[str, int] = field(default_factory=dict)
    opened: Mapping[int, Store] = field(default_factory=dict, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        """Without what can be opened again."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__} | {"opened": {}}

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

    def store(self, position: int) -> Store:
        """Where a checkpoint's files are read: the store that gave the headers, or a new one."""
        if position in self.opened:
            return self.opened[position]
        checkpoint = self.checkpoints[position]
        return open_store(checkpoint.uri, checkpoint.revision, files=checkpoint.files)

    @property
    def seconds(self) -> float | None:
        """How long reading takes at the probed rate; None if none was probed."""
        return None if not self.rate else self.nbytes / self.rate

    def reads(self) -> Iterator[Read]:
        """Every request, in the order in which a run makes them."""
        works = Works(self)
        for job in self.jobs:
            for _, reads in works.whole(job).steps(self):
                yield from reads

    @property
    def fingerprint(self) -> str:
        """Hash of the whole plan: what it reads and what it measures."""
        said = super().to_json() | {"jobs": [[b.name, b.start, b.stop] for b in self._blocks]}
        said["measures"] = [measure_key(m.name, m.version) for m in self.measures]
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()

    @property
    def _blocks(self) -> list[Block]:
        return [block for job in self.jobs for block in job.blocks]

    def to_json(self) -> dict[str, Any]:
        """As JSON-ready data; `from_json` reads it back."""
        return super().to_json() | {
            "jobs": [[[b.name, b.index, b.start, b.stop] for b in j.blocks] for j in self.jobs],
            "skipped": [list(s) for s in self.skipped],
            "probes": [list(p) for p in self.probes],
            "memory": self.memory,
            "peak_nbytes": self.peak_nbytes,
            "device": self.device,
            "compiled": self.compiled,
            "rate": self.rate,
            "key": self.fingerprint,
            **self.totals,
        }

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> Plan:
        """Read what `to_json` gave."""
        return cls(
            **cls.fields_from(said),
            jobs=tuple(Job(tuple(Block(*b) for b in blocks)) for blocks in said["jobs"]),
            skipped=tuple((what, why) for what, why in said["skipped"]),
            probes=tuple((c, f, o, n) for c, f, o, n in said["probes"]),
            memory=said["memory"],
            peak_nbytes=said["peak_nbytes"],
            device=said["device"],
            compiled=said["compiled"],
            rate=said["rate"],
            totals={name: said[name] for name in ("nbytes", "requests", "fixed", "work")},
        )

    def run(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        progress: bool = True,
        cache_dir: str | os.PathLike[str] | None = None,
        cache_size: float | str = "100 GB",
    ) -> pd.DataFrame:
        """Read, measure, and return the table.

        Parameters
        ----------
        path : path, optional
            Results folder. What is finished lands there and is not measured again by any plan that
            is run on the folder later: the same one after an interruption, one with more statistics
            or more checkpoints. Without it the results are only returned.
        progress : bool
            Show one progress bar.
        cache_dir : path, optional
            Folder on a local disk in which fetched ranges are kept, so that a later, dearer
            statistic need not fetch them again. Several runs may share it.
        cache_size : float or str
            What may be kept there in all, in bytes or as ``"500 GB"``. When it is full, nothing
            more is kept and nothing is thrown out.

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

        return run_plan(self, path, progress=progress, cache_dir=cache_dir, cache_size=cache_size)

    def __repr__(self) -> str:
        tensors = {name for mine in self.tensors for name, _ in mine}
        said = [
            f"Plan for {self.name!r}: {_many(self.checkpoints, 'checkpoint')}, "
            f"{_many(tensors, 'tensor')}, {_many(self.statistics, 'statistic')} of "
            f"{'+'.join(self.states)}"
            + (f" against {', '.join(self.against)}" if self.against else ""),
            f"  reads {size(self.nbytes)} in {self.requests:,} requests, each stored byte once; "
            f"{_many(self.jobs, 'job')}",
            f"  needs {size(self.peak_nbytes)} of the {size(self.memory)} given, on {self.device}; "
            f"reads ahead with the rest; {'compiled' if self.compiled else 'torch'} arithmetic",
        ]
        if self.rate and self.seconds:
            said.append(f"  takes about {_time(self.seconds)} at the probed {size(self.rate)}/s")
        said += [f"  skips {what}: {why}" for what, why in self.skipped[:12]]
        if len(self.skipped) > 12:
            said.append(f"  skips {len(self.skipped) - 12} more, see .skipped")
        return "\n".join(said)


def _many(things: Sized, word: str) -> str:
    return f"{len(things):,} {word}{'' if len(things) == 1 else 's'}"


def _time(seconds: float) -> str:
    """Seconds for people."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


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
