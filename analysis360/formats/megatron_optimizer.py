"""Optimizer states of one rank of a Megatron checkpoint, and Adam's hyper-parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from analysis360.core import Adam
from analysis360.errors import FormatError
from analysis360.formats.inert import StoredTensor
from analysis360.formats.megatron_flat import STATES, Piece, Unsettled, flat_states
from analysis360.formats.megatron_names import Settings
from analysis360.formats.megatron_rank import FLAT, Rank
from analysis360.formats.optimizer import Order, read_optimizer
from analysis360.storage.memory import adam_of

__all__ = ["groups_of", "read_adam", "states"]

_MASTERS = ("fp32_from_fp16_params", "fp32_from_fp16")
_HALF = ("bfloat16", "float16")


def _inner(rank: Rank) -> tuple[dict[Any, Any], dict[Any, Any]]:
    """Megatron's state of the optimizer, and torch's within it; empty if they are not there."""
    outer = rank.root.get("optimizer")
    if isinstance(outer, list) and len(outer) == 1:  # one optimizer of a chain
        outer = outer[0]
    if not isinstance(outer, dict):
        return {}, {}
    if "param_groups" in outer:  # without 16-bit weights there is nothing around torch's state
        return outer, outer
    inner = outer.get("optimizer", outer.get("optimizer_state_dict"))
    return outer, inner if isinstance(inner, dict) else {}


def groups_of(rank: Rank) -> list[dict[Any, Any]]:
    """Give the parameter groups of a rank's optimizer; none if it is not there."""
    groups = _inner(rank)[1].get("param_groups")
    return [g for g in groups if isinstance(g, dict)] if isinstance(groups, list) else []


def read_adam(rank: Rank) -> Adam | None:
    """Hyper-parameters: of the decayed group, whose rate is that of this step; else the arguments'.

    The rate in the arguments is the highest one of the schedule, and is not taken.
    """
    args = rank.args
    if args.text("optimizer") not in ("", "adam"):
        return None
    said = adam_of((g, 0.0 if g.get("wd_mult") == 0 else 1.0) for g in groups_of(rank)) or Adam()
    return said.filled(
        Adam(
            args.number("adam_beta1"), args.number("adam_beta2"), args.number("adam_eps"),
            weight_decay=args.number("weight_decay"), clip=args.number("clip_grad") or None,
        )
    )  # fmt: skip


def states(rank: Rank) -> tuple[list[Piece], dict[str, str]]:
    """States of a rank's parameters, and why there are none of a kind."""
    every = tuple(STATES.values())
    if rank.flat is not None:
        chunks = [[(p.key, p.value.shape) for p in chunk] for chunk in rank.chunks]
        try:
            return flat_states(rank.flat, chunks, _copies(rank.args), rank.model.tied), {}
        except Unsettled as error:
            return [], dict.fromkeys(every, f"{rank.flat.path}: {error}")
    outer, inner = _inner(rank)
    if "state" not in inner:
        why = f"{FLAT} is not there" if inner else "no optimizer in the file"
        return [], dict.fromkeys(every, why)
    order = Order()
    for param in rank.params:
        order.append(param.key, param.value.shape, param.value.dtype)
    found = read_optimizer(inner, order)
    if not found.names:
        why = "; ".join(why for _, why in found.skipped) or "it has no state yet"
        return [], dict.fromkeys(every, why)
    shapes = {param.key: param.value for param in rank.params}
    top = "" if outer is inner else "optimizer."
    named = [(n, f"{top}{key}", s, v) for n, key, s, v in found.tensors if s in every]
    lost: dict[str, str] = {}
    try:
        named += _masters(rank, outer, found.names)
    except Unsettled as error:
        lost["master"] = str(error)
    pieces = []
    for name, key, state, value in named:
        if value.shape != shapes[name].shape:
            raise FormatError(
                f"{rank.file.where}: {key!r} has shape {list(value.shape)}, its parameter "
                f"{name!r} {list(shapes[name].shape)}"
            )
        pieces.append(Piece(name, state, key, rank.file.stretch(value, key)))
    return pieces, lost


def _copies(args: Settings) -> int | None:
    """Ranks over which a flat buffer was divided; None if that is not told."""
    if args.number("data_parallel_size") is None:
        return None
    return args.count("data_parallel_size") * args.count("context_parallel_size", 1)


def _masters(
    rank: Rank, outer: Mapping[Any, Any], names: Mapping[Any, str]
) -> list[tuple[str, str, str, StoredTensor]]:
    """Give the 32-bit copies of 16-bit weights: a list for each group, in its order."""
    values = {param.key: param.value for param in rank.params}
    if not any(value.dtype in _HALF for value in values.values()):
        return []
    key = next((key for key in _MASTERS if key in outer), _MASTERS[0])
    lists, groups = outer.get(key), groups_of(rank)
    if not isinstance(lists, list) or len(lists) != len(groups):
        raise Unsettled(f"{key!r} is not a list for each of {len(groups)} parameter groups")
    found = []
    for number, (group, held) in enumerate(zip(groups, lists, strict=True)):
        ids = group.get("params")
        known = [names.get(i) for i in ids] if isinstance(ids, list) else []
        halves = [name for name in known if name is not None and values[name].dtype in _HALF]
        if not isinstance(held, list) or len(held) != len(halves):
            raise Unsettled(
                f"{key}.{number} does not have {len(halves)} tensors, as its group does"
            )
        for i, (name, value) in enumerate(zip(halves, held, strict=True)):
            if not isinstance(value, StoredTensor) or value.shape != values[name].shape:
                raise Unsettled(f"{key}.{number}.{i} does not have the shape of {name}")
            found.append((name, f"optimizer.{key}.{number}.{i}", "master", value))
    return found
