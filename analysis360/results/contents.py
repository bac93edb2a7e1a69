"""What a table is to hold: which sums of which tensors of which checkpoints, as data."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from analysis360.core import Adam, Checkpoint, Label, Part, TensorInfo
from analysis360.stats import SCALARS, STORED, Whole, states, statistics
from analysis360.stats.base import Measure

__all__ = ["Contents", "Entry", "Key", "measure_key"]

Key = tuple[str, str, str, str, str, str]
"""Checkpoint, the one it is compared with, tensor, state, measure and what else it was given."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Sums of one tensor of one checkpoint: in `state`, alone or against another checkpoint.

    Attributes
    ----------
    position : int
        Of the checkpoint, in `Contents.checkpoints`.
    name : str
    measure : Accumulator or Whole
    state : str
        Stored or derived state, or ``"adam"`` for what is made of both moments.
    against : str
        Role of the other checkpoint; empty if there is none.
    reference : int
        Position of the other checkpoint, or -1.
    """

    position: int
    name: str
    measure: Measure
    state: str
    against: str = ""
    reference: int = -1


@dataclass(frozen=True)
class Contents:
    """What a table is to hold. A `Plan` adds how it is read.

    Attributes are described in `analysis360.engine.Plan`.
    """

    name: str
    checkpoints: tuple[Checkpoint, ...]
    tensors: tuple[Mapping[tuple[str, str], TensorInfo], ...]
    labels: Mapping[str, Label]
    adam: tuple[Adam, ...]
    references: Mapping[tuple[int, str], int]
    between: Mapping[tuple[int, str], tuple[float, float, float]]
    statistics: tuple[str, ...]
    states: tuple[str, ...]
    against: tuple[str, ...]

    @cached_property
    def measures(self) -> tuple[Measure, ...]:
        """Accumulators and whole-matrix steps that the statistics rest on."""
        found = (m for name in self.statistics for m in statistics[name].measures)
        return tuple(dict.fromkeys(found))

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, the same in every checkpoint."""
        return self._shapes[name]

    def rows(self, name: str) -> int:
        """Length of a tensor's first dimension; 1 for a scalar."""
        shape = self._shapes[name]
        return shape[0] if shape else 1

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        every = (t for mine in self.tensors for t in mine.values() if t.state != "step")
        return {t.name: t.shape for t in every}

    @cached_property
    def made_of(self) -> dict[str, tuple[str, ...]]:
        """States to measure, with the stored states each is made of."""
        return {s: (s,) if s in STORED else states[s].stored for s in self.states}

    def stored(self, entry: Entry) -> tuple[str, ...]:
        """Stored states that an entry reads."""
        return entry.measure.named_states or self.made_of[entry.state]

    def stored_there(self, entry: Entry) -> tuple[str, ...]:
        """Stored states that an entry reads of the checkpoint it is compared with."""
        if entry.measure.named_states:
            return entry.measure.reference_states
        return self.made_of[entry.state] if entry.measure.pair else ()

    def members(self, entry: Entry) -> tuple[str, ...]:
        """Tensors that an entry is made of, in the order of its step's `of`; one if it has none."""
        if isinstance(entry.measure, Whole) and entry.measure.of:
            return self._together[entry.measure][entry.name]
        return (entry.name,)

    @cached_property
    def _together(self) -> dict[Measure, dict[str, tuple[str, ...]]]:
        """Step that takes several tensors → tensor of the first module → those of all."""
        steps = [m for m in self.measures if isinstance(m, Whole) and m.of]
        return {step: together(self.labels, step) for step in steps}

    def entries(
        self, position: int, name: str, measures: Sequence[Measure] | None = None
    ) -> Iterator[Entry]:
        """What is measured of one tensor in one checkpoint, as far as its inputs are stored."""
        mine = self.tensors[position]
        others = [
            (role, other, self.tensors[other])
            for role in self.against
            if (other := self.references.get((position, role))) is not None
        ]
        for measure in self.measures if measures is None else measures:
            if not measure.fits(self._shapes[name]):
                continue
            named = measure.named_states
            for state, made_of in ({"adam": named} if named else self.made_of).items():
                if any((name, s) not in mine for s in made_of):
                    continue
                if not measure.pair:
                    if self._has_members(mine, name, measure, made_of):
                        yield Entry(position, name, measure, state)
                    continue
                needed = measure.reference_states if named else made_of
                for role, other, theirs in others:
                    if all((name, s) in theirs for s in needed):
                        yield Entry(position, name, measure, state, role, other)

    def _has_members(
        self,
        mine: Mapping[tuple[str, str], TensorInfo],
        name: str,
        measure: Measure,
        made_of: Sequence[str],
    ) -> bool:
        """Whether all tensors are there that a step takes together with this one."""
        if not isinstance(measure, Whole) or not measure.of:
            return True
        members = self._together[measure].get(name, ())
        return bool(members) and all((m, s) in mine for m in members for s in made_of)

    def key_of(self, entry: Entry) -> Key:
        """What stored sums are found by: all that their values depend on.

        Labels, tokens, learning rates and roles are not in it: they are taken from the plan when a
        table is made, so that correcting them costs no reading.
        """
        reference = "" if entry.reference < 0 else self._identities[entry.reference]
        measure = entry.measure
        return (
            self._identities[entry.position], reference, entry.name, entry.state,
            measure_key(measure.name, measure.version), self._given(entry),
        )  # fmt: skip

    @cached_property
    def _identities(self) -> tuple[str, ...]:
        """Checkpoints by name and commit: copies with equal times are told apart by name."""
        return tuple(f"{self.name}/{c.name}@{c.revision}" for c in self.checkpoints)

    def _given(self, entry: Entry) -> str:
        """What else enters an entry's sums: hyper-parameters, and other tensors of the layer."""
        if isinstance(entry.measure, Whole) and entry.measure.of:
            return json.dumps(self.members(entry)[1:])
        names = {name.removeprefix("reference_") for name in entry.measure.inputs}
        if entry.state in states:
            names |= set(states[entry.state].inputs)
        names &= set(SCALARS) - {"numel", "shape", "dtype"}  # `reference_step` counts as `step`
        if not names:
            return ""
        known = self.scalars(entry.position, entry.name)
        if entry.reference >= 0:
            other = self.scalars(entry.reference, entry.name)
            known |= {f"reference_{name}": other[name] for name in names}
            names |= {f"reference_{name}" for name in names}
        return json.dumps({name: known[name] for name in sorted(names)})

    def scalars(self, position: int, name: str) -> dict[str, float]:
        """Scalars of a checkpoint that registered functions may name; NaN where not known."""
        adam, checkpoint = self.adam[position], self.checkpoints[position]
        decay = adam.weight_decay if adam.decays(len(self._shapes[name])) else 0.0
        found = {
            "step": checkpoint.step, "beta1": adam.beta1, "beta2": adam.beta2, "eps": adam.eps,
            "lr": adam.lr, "weight_decay": decay, "clip": adam.clip,
        }  # fmt: skip
        return {k: math.nan if v is None else float(v) for k, v in found.items()}

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Every tensor of which something is measured, in order of appearance."""
        return tuple(dict.fromkeys(name for mine in self.tensors for name, _ in mine))

    def to_json(self) -> dict[str, Any]:
        """As JSON-ready data; `from_json` reads it back."""
        return {
            "run": self.name,
            "checkpoints": [asdict(c) | {"files": dict(c.files)} for c in self.checkpoints],
            "tensors": [[_tensor_json(t) for t in mine.values()] for mine in self.tensors],
            "labels": {name: asdict(label) for name, label in self.labels.items()},
            "adam": [asdict(a) for a in self.adam],
            "references": [[c, role, r] for (c, role), r in self.references.items()],
            "between": [[c, role, *values] for (c, role), values in self.between.items()],
            "statistics": list(self.statistics),
            "states": list(self.states),
            "against": list(self.against),
        }

    @staticmethod
    def fields_from(said: Mapping[str, Any]) -> dict[str, Any]:
        """The attributes that `to_json` gave, for the constructor."""
        return {
            "name": said["run"],
            "checkpoints": tuple(Checkpoint(**c) for c in said["checkpoints"]),
            "tensors": tuple(
                {(t.name, t.state): t for t in (_tensor_from(row) for row in mine)}
                for mine in said["tensors"]
            ),
            "labels": {name: Label(**value) for name, value in said["labels"].items()},
            "adam": tuple(Adam(**a) for a in said["adam"]),
            "references": {(c, role): r for c, role, r in said["references"]},
            "between": _between_from(said),
            "statistics": tuple(said["statistics"]),
            "states": tuple(said["states"]),
            "against": tuple(said["against"]),
        }


def _between_from(said: Mapping[str, Any]) -> dict[tuple[int, str], tuple[float, float, float]]:
    """Of an older folder, which knew the sum of the rate only, the others are not known."""
    if "between" in said:
        return {(c, role): (rate, square, left) for c, role, rate, square, left in said["between"]}
    return {(c, role): (rate, math.nan, math.nan) for c, role, rate in said.get("lr_sums", ())}


def together(labels: Mapping[str, Label], step: Whole) -> dict[str, tuple[str, ...]]:
    """Weights that a step takes together, of one layer and head: the first → all.

    Where a module has fewer heads, some share one; where it has none, all do. Left out is what is
    not told apart: two weights in one place.

    Examples
    --------
    >>> def step(query, key): ...
    >>> step = Whole("", step, (), {}, 2, len, of={"query": "attn.q", "key": "attn.k"})
    >>> heads = {f"q[{h}]": Label(0, "attn.q", "weight", None, h) for h in range(4)}
    >>> heads |= {f"k[{h}]": Label(0, "attn.k", "weight", None, h) for h in range(2)}
    >>> together(heads, step)["q[3]"]
    ('q[3]', 'k[1]')
    """
    modules = tuple(step.of.values())
    placed: dict[tuple[str, int | None], dict[int | None, list[str]]] = {}
    for name, label in labels.items():
        if label.module in modules and label.param == "weight":
            at = placed.setdefault((label.module, label.layer), {})
            at.setdefault(label.head, []).append(name)
    found = {}
    for (module, layer), mine in placed.items():
        for head in mine if module == modules[0] else ():
            every = [_counterpart(placed.get((m, layer), {}), head, len(mine)) for m in modules]
            members = [names[0] for names in every if len(names) == 1]
            if len(members) == len(modules) and not (step.by_head and head is None):
                found[members[0]] = tuple(members)
    return found


def _counterpart(there: Mapping[int | None, list[str]], head: int | None, heads: int) -> list[str]:
    """Weights of a module that belong to one of `heads` heads of another."""
    if None in there or head is None:
        return there.get(None, [])
    return there.get(head * len(there) // heads, [])


def measure_key(name: str, version: int) -> str:
    """Name of an accumulator or whole-matrix step with the version of its definition."""
    return f"{name}@{version}"


def _tensor_json(t: TensorInfo) -> list[Any]:
    parts = [[p.file, p.offset, p.nbytes, p.dtype, p.flat, p.box, p.stride] for p in t.parts]
    return [t.name, t.key, t.state, list(t.shape), t.dtype, parts]


def _tensor_from(row: Sequence[Any]) -> TensorInfo:
    name, key, state, shape, dtype, parts = row
    made = []
    for file, offset, size, kind, flat, box, stride in parts:
        place = tuple(tuple(side) for side in box) if box is not None else None
        steps = tuple(stride) if stride else None
        made.append(Part(file, offset, size, kind, tuple(flat) if flat else None, place, steps))
    return TensorInfo(name, key, state, tuple(shape), dtype, tuple(made))
