"""Give the entries of a torch optimizer's state dict the names of the weights.

``optimizer.state_dict()`` numbers parameters in the order of its groups and holds no names (unless
the optimizer was given named parameters). The names come from the order of the weights in the same
file; each shape is checked, and where that leaves more than one possibility nothing is named.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from analysis360.core import Adam
from analysis360.formats.inert import StoredTensor
from analysis360.storage.memory import adam_of

__all__ = ["Order", "OptimizerState", "read_optimizer"]

_STATES = ("exp_avg", "exp_avg_sq", "master", "step")
_FLOATS = {"float64", "float32", "bfloat16", "float16"}
_BUFFER = re.compile(
    r"(^|\.)(running_mean|running_var|num_batches_tracked|inv_freq|masked_bias|position_ids"
    r"|cos_cached|sin_cached|attn\.bias|attention\.bias|rope\.freqs|freqs_cis)$"
)
Shape = tuple[int, ...]


@dataclass
class Order:
    """Names and shapes of a file's weights that can be parameters, in stored order."""

    names: list[str] = field(default_factory=list)
    shapes: list[Shape] = field(default_factory=list)

    def append(self, name: str, shape: Shape, dtype: str) -> None:
        """Add a weight, unless it is known to be a buffer: no optimizer updates those."""
        if dtype in _FLOATS and not _BUFFER.search(name):
            self.names.append(name)
            self.shapes.append(shape)


@dataclass
class OptimizerState:
    """What an optimizer's state dict tells.

    Attributes
    ----------
    tensors : list of (name, key, state, StoredTensor)
    adam : Adam or None
    step : int or None
        Where it is stored as a number.
    step_tensor : StoredTensor or None
        Where it is stored as a tensor, and no parameter could be named.
    skipped : list of (key, reason)
    names : mapping of id to str
        Name of each parameter, by its number in the optimizer; empty if none could be named.
    """

    tensors: list[tuple[str, str, str, StoredTensor]] = field(default_factory=list)
    adam: Adam | None = None
    step: int | None = None
    step_tensor: StoredTensor | None = None
    skipped: list[tuple[str, str]] = field(default_factory=list)
    names: Mapping[Any, str] = field(default_factory=dict)


def read_optimizer(state_dict: Mapping[Any, Any], order: Order) -> OptimizerState:
    """Name the moments of an optimizer and take its hyper-parameters.

    Parameters
    ----------
    state_dict : mapping
        ``{"state": {id: {...}}, "param_groups": [...]}``.
    order : Order
        Weights of the same file.

    Returns
    -------
    OptimizerState
    """
    found = OptimizerState()
    state, groups = state_dict.get("state"), state_dict.get("param_groups")
    if not isinstance(state, dict) or not isinstance(groups, list):
        found.skipped.append(("optimizer", "no 'state' and 'param_groups' as torch writes them"))
        return found
    groups = [g for g in groups if isinstance(g, dict)]
    state = {key: value for key, value in state.items() if isinstance(value, dict)}
    weighed = ((g, _matrix_elements(g, state)) for g in groups)
    found.adam = adam_of(weighed, complete=True)
    _take_steps(found, state)
    names, why = _names(state, groups, order)
    if why:
        found.skipped.append(("optimizer state", why))
        return found
    found.names = names
    for number, entry in state.items():
        name = names.get(number)
        if name is None:
            found.skipped.append((f"optimizer.state.{number}", "in none of the parameter groups"))
            continue
        for kind in _STATES:
            if isinstance(entry.get(kind), StoredTensor):
                key = f"optimizer.state.{number}.{kind}"
                found.tensors.append((name, key, kind, entry[kind]))
    return found


def _shape(entry: Any) -> Shape | None:
    """Shape of a parameter as its first moment tells it; None if it has no state yet."""
    moment = entry.get("exp_avg") if isinstance(entry, dict) else None
    return moment.shape if isinstance(moment, StoredTensor) else None


def _matrix_elements(group: Mapping[str, Any], state: Mapping[Any, Any]) -> float:
    total = 0
    for number in _params(group):
        entry = state.get(number) or {}
        moment = entry.get("exp_avg")
        if isinstance(moment, StoredTensor) and len(moment.shape) >= 2:
            total += moment.storage.numel
    return float(total)


def _params(group: Mapping[str, Any]) -> list[Any]:
    params = group.get("params")
    return [p for p in params if isinstance(p, (int, str))] if isinstance(params, list) else []


def _take_steps(found: OptimizerState, state: Mapping[Any, Mapping[str, Any]]) -> None:
    steps = [entry.get("step") for entry in state.values()]
    numbers = [int(s) for s in steps if isinstance(s, (int, float)) and 0 <= s < 2**53]
    found.step = max(numbers, default=None)
    found.step_tensor = next((s for s in steps if isinstance(s, StoredTensor)), None)
    if len(set(numbers)) > 1:
        why = f"differs between parameters, {min(numbers)} to {max(numbers)}; the last is used"
        found.skipped.append(("optimizer step", why))


def _names(
    state: Mapping[Any, Any], groups: list[dict[str, Any]], order: Order
) -> tuple[dict[Any, str], str]:
    """Name of each parameter id, or why none can be given."""
    if state and all(isinstance(key, str) for key in state):
        return {key: key for key in state}, ""
    told: dict[Any, str] = {}
    for group in groups:
        names = group.get("param_names")
        if isinstance(names, list) and len(names) == len(_params(group)):
            told |= {p: str(n) for p, n in zip(_params(group), names, strict=True)}
    if told and all(number in told for number in state):
        return told, ""
    if not order.names:
        return {}, (
            "holds no parameter names, and there are no weights whose order is known to take them "
            "from (safetensors files keep none, and the names are of no known family)"
        )
    return _by_order(state, groups, order)


def _by_order(
    state: Mapping[Any, Any], groups: list[dict[str, Any]], order: Order
) -> tuple[dict[Any, str], str]:
    """Merge the groups, each in its own order, into the order of the weights.

    At each weight exactly one group may have a next parameter of that shape. The usual split into
    decayed matrices and undecayed vectors passes; a split between equal shapes does not.
    """
    queues = [_params(group) for group in groups]
    count = sum(map(len, queues))
    if count != len(order.names):
        return {}, f"has {count} parameters, the weights of the file {len(order.names)}"
    at = [0] * len(queues)
    named: dict[Any, str] = {}
    for name, shape in zip(order.names, order.shapes, strict=True):
        fits = []
        for g, queue in enumerate(queues):
            if at[g] < len(queue):
                known = _shape(state.get(queue[at[g]]))
                if known is None or known == shape:
                    fits.append(g)
        if len(fits) != 1:
            what = "no group's next parameter has" if not fits else "two groups' next ones have"
            return {}, f"can't be named by order: at {name} {what} its shape {list(shape)}"
        named[queues[fits[0]][at[fits[0]]]] = name
        at[fits[0]] += 1
    return named, ""
