"""The optimizer files of ZeRO's ranks: which elements of which parameter lie where.

The layout is that which DeepSpeed's own ``deepspeed/utils/zero_to_fp32.py`` takes for right:

- ZeRO 1 and 2: the parameters of a group follow each other in one flat buffer, in the order of
  ``param_shapes`` (which is that of ``round_robin_gradients`` where that is on), perhaps each with
  a padding behind it (``param_alignment_paddings``). The ranks hold equal partitions of it, and
  padding is at the end. Masters are stored without that, moments with it.
  ``param_slice_mappings`` is not used: with ``round_robin_gradients`` it has the module's order,
  which is not that of the buffer.
- ZeRO 3: every rank holds the same share of every parameter, the last ones padded.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from analysis360.core import DTYPE_BYTES
from analysis360.errors import FormatError
from analysis360.formats.deepspeed_files import Shapes
from analysis360.formats.fields import Fields, size_of
from analysis360.formats.inert import StoredTensor
from analysis360.formats.layout import Stretch
from analysis360.formats.torch_file import TorchFile

__all__ = ["STATES", "Piece", "Rank", "pieces", "read_rank"]

STATES = ("master", "exp_avg", "exp_avg_sq")
_FLOATS = ("float32", "float64", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class Piece:
    """Elements of one parameter; the stretch counts from the parameter's first one."""

    name: str
    state: str
    key: str
    stretch: Stretch


@dataclass
class Rank:
    """One rank's optimizer file.

    Attributes
    ----------
    file : TorchFile
    mp, dp : int
        Model- and data-parallel rank.
    stage : int
        Of ZeRO.
    told : Fields
        The optimizer's own dictionary.
    partitions : list of int
        Number of ranks that share each group; one number if it is said for all.
    groups : list of dict of str to StoredTensor
        By state, for each group.
    settings : list of Fields
        Hyper-parameters of each group.
    steps : list of object
        As stored: numbers or tensors.
    """

    file: TorchFile
    mp: int
    dp: int
    stage: int
    told: Fields
    partitions: list[int]
    groups: list[dict[str, StoredTensor]]
    settings: list[Fields]
    steps: list[Any]

    def shared_by(self, group: int) -> int:
        """Give the number of ranks that hold partitions of a group."""
        return self.partitions[group] if group < len(self.partitions) else self.partitions[-1]


def read_rank(file: TorchFile, mp: int, dp: int) -> Rank:
    """Check what a rank's optimizer file says.

    Raises
    ------
    FormatError
        If something in it is missing or of a wrong type.
    """
    told = Fields(file.root, file.where).fields("optimizer_state_dict")
    stage = told.count("zero_stage", 1)  # BF16_Optimizer doesn't say
    if stage > 3:
        raise told.bad("zero_stage", f"is {stage}; 1, 2 and 3 are read")
    if stage == 3 and told.get("ds_zero_partition_groups") is not None:
        raise told.bad("ds_zero_partition_groups", "says that groups are shared by other ranks")
    key = "fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups"
    groups = [{"master": master} for master in told.flats(key)]
    rank = Rank(file, mp, dp, stage, told, _partitions(told), groups, [], [])
    base = "optimizer_state_dict" if stage == 3 else "base_optimizer_state"
    if isinstance(told.get(base), (list, tuple)):  # elastic checkpoints
        _take_states(rank, list(told.each(base)))
        rank.steps.append(told.get("base_optimizer_state_step"))
    elif told.get(base) is not None:
        _take_optimizer(rank, told.fields(base))
    return rank


def _partitions(told: Fields) -> list[int]:
    found = told.get("partition_count")
    counts = told.counts("partition_count") if isinstance(found, (list, tuple)) else []
    counts = counts or [told.count("partition_count")]
    if min(counts) < 1:
        raise told.bad("partition_count", "has a zero in it")
    return counts


def _take_optimizer(rank: Rank, base: Fields) -> None:
    """Take ``{"state": …, "param_groups": …}``: one flat parameter for each group."""
    state = base.optional("state")
    rank.settings = list(base.each("param_groups"))
    numbers = [p for group in rank.settings for p in group.sequence("params")]
    entries = [state.optional(n) if isinstance(n, (int, str)) else None for n in numbers]
    found = [e for e in entries if e is not None]
    if len(found) != len(rank.groups):
        raise base.bad(
            "param_groups", f"has {len(found)} parameters, the masters {len(rank.groups)} groups"
        )
    _take_states(rank, found)
    rank.steps += [group.get("step") for group in rank.settings]  # as apex keeps it


def _take_states(rank: Rank, entries: list[Fields]) -> None:
    if len(entries) != len(rank.groups):
        raise rank.told.bad(
            "base_optimizer_state", f"has {len(entries)} groups, the masters {len(rank.groups)}"
        )
    for group, entry in zip(rank.groups, entries, strict=True):
        for name in STATES[1:]:
            if entry.get(name) is not None:
                group[name] = entry.flat(name)
        rank.steps.append(entry.get("step"))


def pieces(
    groups: list[Shapes], ranks: list[Rank], skipped: list[tuple[str, str]]
) -> Iterator[Piece]:
    """Give where the elements of all parameters of one model-parallel rank lie.

    Parameters
    ----------
    groups : list of dict
        Shapes of the parameters of each group, in order.
    ranks : list of Rank
        All data-parallel ranks, in order.
    skipped : list of (str, str)
        Gets what can't be read, and why.

    Raises
    ------
    FormatError
        If ranks disagree, or hold more or less than the parameters need.
    """
    _check(groups, ranks)
    if ranks[0].stage == 3:
        yield from _sharded(groups, ranks)
        return
    for g, shapes in enumerate(groups):
        if ranks[0].shared_by(g) != len(ranks):
            why = f"shared by {ranks[0].shared_by(g)} of {len(ranks)} ranks, as those of experts"
            skipped += [(name, why) for name in shapes]
        else:
            yield from _partitioned(g, shapes, ranks)


def _check(groups: list[Shapes], ranks: list[Rank]) -> None:
    first = ranks[0]
    for rank in ranks:
        where = rank.file.where
        if rank.stage != first.stage or rank.partitions != first.partitions:
            raise FormatError(
                f"{where}: zero_stage {rank.stage}, partition_count {rank.partitions}; "
                f"{first.file.path} has {first.stage} and {first.partitions}"
            )
        if len(rank.groups) != len(first.groups):
            raise FormatError(
                f"{where}: {len(rank.groups)} groups of masters; "
                f"{first.file.path} has {len(first.groups)}"
            )
        for g, group in enumerate(rank.groups):
            wrong = [t.dtype for t in group.values() if t.dtype not in _FLOATS]
            if wrong or group.keys() != first.groups[g].keys():
                raise FormatError(
                    f"{where}: group {g} has {_said(group)}; "
                    f"{first.file.path} has {_said(first.groups[g])}"
                )
    if first.stage < 3 and len(groups) != len(first.groups):
        raise FormatError(
            f"{first.file.where}: {len(first.groups)} groups of masters, "
            f"but param_shapes has {len(groups)}"
        )
    if max(first.partitions) != len(ranks):
        raise FormatError(
            f"{first.file.where}: partition_count is {max(first.partitions)}, "
            f"but there are files of {len(ranks)} ranks: one is missing, or left over"
        )


def _said(group: Mapping[str, StoredTensor]) -> str:
    return ", ".join(f"{name} ({tensor.dtype})" for name, tensor in group.items())


def _partitioned(g: int, shapes: Shapes, ranks: list[Rank]) -> Iterator[Piece]:
    """ZeRO 1 and 2: each rank has a partition of the group's flat buffer."""
    ends = _ends(g, shapes, ranks)
    names, total = list(shapes), (ends[-1][1] if ends else 0)
    lengths = [rank.groups[g]["master"].shape[0] for rank in ranks]
    step = 2 * len(ranks)  # DeepSpeed's own check: equal once both are rounded up to this
    if sum(lengths) < total or -(-total // step) != -(-sum(lengths) // step):
        raise FormatError(
            f"{ranks[-1].file.where}: single_partition_of_fp32_groups[{g}]: the ranks hold "
            f"{sum(lengths)} elements of it, its parameters have {total}"
        )
    starts = [low for low, _ in ends]
    for rank, length, at in zip(ranks, lengths, accumulate([0, *lengths]), strict=False):
        for state, tensor in rank.groups[g].items():
            if tensor.shape[0] < length or (tensor.shape[0] > length and at + length < total):
                raise FormatError(
                    f"{rank.file.where}: group {g}: {state} has {tensor.shape[0]} elements, "
                    f"the masters {length}"
                )
            stop = min(at + length, total)
            if at >= stop:
                continue  # all padding
            key = f"{_KEYS[state]}[{g}]" if state == "master" else f"{_KEYS[state]}.{g}.{state}"
            run = rank.file.stretch(tensor, key)
            for i in range(max(0, bisect_right(starts, at) - 1), bisect_right(starts, stop - 1)):
                low, high = max(at, ends[i][0]), min(stop, ends[i][1])
                if low < high:
                    yield Piece(
                        names[i], state, f"{key}: {names[i]}",
                        _cut(run, low - at, high - at, low - starts[i]),
                    )  # fmt: skip


_KEYS = {
    "master": "single_partition_of_fp32_groups",
    "exp_avg": "base_optimizer_state.state",
    "exp_avg_sq": "base_optimizer_state.state",
}


def _ends(g: int, shapes: Shapes, ranks: list[Rank]) -> list[tuple[int, int]]:
    """First and last element of each parameter in the flat buffer of its group."""
    gaps = [0] * len(shapes)
    told = ranks[0].told
    if told.get("param_alignment_paddings") is not None:
        key = "param_alignment_paddings"
        lists = told.sequence(key)
        gaps = Fields({key: lists[g] if g < len(lists) else None}, told.where).counts(key)
        if len(gaps) != len(shapes):
            raise told.bad(key, f"has {len(gaps)} numbers for {len(shapes)} parameters")
    found: list[tuple[int, int]] = []
    at = 0
    for shape, gap in zip(shapes.values(), gaps, strict=True):
        found.append((at, at + size_of(shape)))
        at += size_of(shape) + gap
    return found


def _cut(run: Stretch, low: int, high: int, start: int) -> Stretch:
    """Elements ``low:high`` of a stretch, which are those from `start` of something else."""
    offset = run.offset + low * DTYPE_BYTES[run.dtype]
    return Stretch(run.file, offset, run.dtype, start, start + high - low)


def _sharded(groups: list[Shapes], ranks: list[Rank]) -> Iterator[Piece]:
    """ZeRO 3: each rank has a share of each parameter."""
    shapes = {name: shape for group in groups for name, shape in group.items()}
    shares = [math.ceil(size_of(shape) / len(ranks)) for shape in shapes.values()]
    for rank in ranks:
        lengths = [group["master"].shape[0] for group in rank.groups]
        if sum(lengths) != sum(shares):
            raise FormatError(
                f"{rank.file.where}: fp32_flat_groups: {sum(lengths)} elements, "
                f"its shares of the parameters have {sum(shares)}"
            )
        runs, edges, at = _runs(rank), list(accumulate(lengths)), 0
        for (name, shape), share in zip(shapes.items(), shares, strict=True):
            first = rank.dp * share
            held = min(share, size_of(shape) - first)
            yield from _share(runs, edges, name, first, at, max(held, 0))
            at += share


Run = tuple[str, str, Stretch]
"""State, key, and where the flat buffer lies."""


def _runs(rank: Rank) -> list[list[Run]]:
    """Where the buffers of each group lie."""
    found: list[list[Run]] = []
    for g, group in enumerate(rank.groups):
        runs: list[Run] = []
        for state, tensor in group.items():
            key = f"fp32_flat_groups[{g}]"
            if state != "master":
                key = f"optimizer_state_dict.state.{g}.{state}"
            if tensor.shape != group["master"].shape:
                raise FormatError(
                    f"{rank.file.where}: {key} has {tensor.shape[0]} elements, "
                    f"the masters {group['master'].shape[0]}"
                )
            if tensor.shape[0]:
                runs.append((state, key, rank.file.stretch(tensor, key)))
        found.append(runs)
    return found


def _share(
    runs: list[list[Run]], edges: list[int], name: str, first: int, at: int, held: int
) -> Iterator[Piece]:
    """Elements from `first` of a parameter, at `at` in a rank's groups laid end to end."""
    stop = at + held
    while at < stop:
        g = bisect_right(edges, at)
        origin = edges[g - 1] if g else 0
        high = min(stop, edges[g])
        for state, key, run in runs[g]:
            cut = _cut(run, at - origin, high - origin, first)
            yield Piece(name, state, f"{key}: {name}", cut)
        first, at = first + high - at, high
