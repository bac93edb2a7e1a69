"""The four kinds of registered function, and how their results merge.

``state``
    A derived array, element by element: ``update(exp_avg, exp_avg_sq, …)``.
``accumulator``
    One tile of named arrays → a few float64 sums, counts or extrema, that merge over tiles, blocks,
    tensors and machines.
``whole``
    A whole matrix → a few float64 numbers, for what is no function of sums (spectra).
``statistic``
    Results of the above and scalars → one number. It sees numbers, never arrays.

The names of a function's parameters are its inputs, checked when it is registered. This module and
the statistics need numpy only; arrays are torch tensors, and torch is imported to measure them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from analysis360.errors import StatisticError
from analysis360.registry import Registry
from analysis360.table import INFO, KEY

if TYPE_CHECKING:
    import torch

__all__ = [
    "SCALARS",
    "STORED",
    "Accumulator",
    "State",
    "Statistic",
    "Whole",
    "accumulator",
    "accumulators",
    "field_owner",
    "gather",
    "merge",
    "state",
    "states",
    "statistic",
    "statistics",
    "vector",
    "whole",
    "wholes",
]

Values = npt.NDArray[np.float64]

SCALARS = (
    "numel", "shape", "dtype", "step", "beta1", "beta2", "eps", "lr", "lr_sum", "weight_decay",
)  # fmt: skip
"""Scalars that any registered function may name. `step` is the optimizer's, per parameter."""

STORED = ("weight", "exp_avg", "exp_avg_sq", "master")
"""States that a checkpoint may store for a parameter, besides the scalar ``step``."""

MOMENTS = ("mean", "m2", "m3", "m4")
"""Mean and central moments: fields that merge together, with the field ``count``."""


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """A derived state: `function` of the stored states and scalars named in `inputs`."""

    name: str
    function: Callable[..., torch.Tensor]
    inputs: tuple[str, ...]

    @property
    def stored(self) -> tuple[str, ...]:
        """The stored states it is made of."""
        return tuple(name for name in self.inputs if name in STORED)


@dataclass(frozen=True, slots=True, eq=False)
class Accumulator:
    """A function of one tile that returns one float64 per field.

    Attributes
    ----------
    inputs : tuple of str
        ``tensor`` (any requested state), ``reference`` (the same state of another checkpoint),
        stored states by name, and scalars.
    fields : mapping of str to str
        Result name to how it merges: ``sum``, ``max``, ``min`` or ``moments``.
    version : int
        Raised when the definition changes, so that stored results of the old one are not reused.
    """

    name: str
    function: Callable[..., torch.Tensor]
    inputs: tuple[str, ...]
    fields: Mapping[str, str]
    version: int = 1

    @property
    def pair(self) -> bool:
        """Whether it compares two checkpoints."""
        return "reference" in self.inputs

    @property
    def named_states(self) -> tuple[str, ...]:
        """Stored states it names; empty if it takes any state as ``tensor``."""
        return tuple(name for name in self.inputs if name in STORED)


@dataclass(frozen=True, slots=True, eq=False)
class Whole:
    """A function of a whole matrix that returns one float64 per field; nothing merges.

    `workspace` gives the bytes it needs above the matrix itself, from the shape.
    """

    name: str
    function: Callable[..., torch.Tensor]
    inputs: tuple[str, ...]
    fields: Mapping[str, str]
    ndim: int
    workspace: Callable[[tuple[int, ...]], int]
    version: int = 1

    @property
    def pair(self) -> bool:
        """Never: a whole-matrix step sees one checkpoint."""
        return False

    @property
    def named_states(self) -> tuple[str, ...]:
        """None: it takes any state as ``tensor``."""
        return ()


Measure = Accumulator | Whole


@dataclass(frozen=True, slots=True, eq=False)
class Statistic:
    """A number made of fields and scalars, with the laws that its tests prove.

    Attributes
    ----------
    degree : float or None
        ``f(c W) = c**degree f(W)`` for c > 0; None if no such law is claimed.
    invariant : tuple of str
        Transformations that leave it unchanged: ``sign``, ``permutation``, ``transpose``,
        ``orthogonal``.
    low, high : float or None
        Bounds.
    """

    name: str
    function: Callable[..., float]
    inputs: tuple[str, ...]
    degree: float | None
    invariant: tuple[str, ...]
    low: float | None
    high: float | None

    @property
    def measures(self) -> tuple[Measure, ...]:
        """The accumulators and whole-matrix steps it rests on."""
        found = (field_owner(name) for name in self.inputs if name not in SCALARS)
        return tuple(dict.fromkeys(found))

    @property
    def summary(self) -> str:
        """First line of its docstring."""
        return (inspect.getdoc(self.function) or self.name).splitlines()[0]


states: Registry[State] = Registry("state", StatisticError)
accumulators: Registry[Accumulator] = Registry("accumulator", StatisticError)
wholes: Registry[Whole] = Registry("whole-matrix step", StatisticError)
statistics: Registry[Statistic] = Registry("statistic", StatisticError)


def field_owner(name: str) -> Measure:
    """The accumulator or whole-matrix step whose result is called `name`.

    Raises
    ------
    StatisticError
        If none is.
    """
    for registry in (accumulators, wholes):
        for _, entry in registry.items():
            if name in entry.fields or f"{name}[0]" in entry.fields:
                return entry
    every = (f for r in (accumulators, wholes) for _, e in r.items() for f in e.fields)
    known = sorted({field.partition("[")[0] for field in every})
    raise StatisticError(
        f"unknown input {name!r}; results that can be named: {', '.join(known)}; "
        f"scalars: {', '.join(SCALARS)}"
    )


_vectors: dict[str, tuple[str, ...]] = {}
"""Name of a histogram to its fields."""


def vector(name: str, size: int) -> dict[str, str]:
    """Fields of an accumulator that are counts of one kind: a histogram.

    A statistic that names `name` is given all of them, as an array.

    Examples
    --------
    >>> vector("rows_of", 2)
    {'rows_of[0]': 'sum', 'rows_of[1]': 'sum'}
    """
    _vectors[name] = tuple(f"{name}[{i}]" for i in range(size))
    return dict.fromkeys(_vectors[name], "sum")


def gather(fields: Mapping[str, Any], name: str) -> Any:
    """Value of a field; of a vector's name the array of its fields, those of the last axis.

    Raises
    ------
    KeyError
        If there is neither.
    """
    parts = _vectors.get(name, ())
    if name in fields or not parts or parts[0] not in fields:
        return fields[name]
    return np.stack([fields[part] for part in parts], axis=-1)


def _inputs(function: Callable[..., Any], allowed: Sequence[str], kind: str) -> tuple[str, ...]:
    names = tuple(inspect.signature(function).parameters)
    wrong = [name for name in names if name not in allowed]
    if wrong:
        raise StatisticError(
            f"{kind} {function.__name__!r} names unknown inputs {wrong}; "
            f"allowed: {', '.join(allowed)}"
        )
    return names


def _claim(owner: str, fields: Iterable[str]) -> None:
    """Refuse result names that mean something else already."""
    for field in fields:
        if field in SCALARS or field in STORED:
            raise StatisticError(f"{owner!r}: a result cannot be called {field!r}, as an input is")
        for registry in (accumulators, wholes):
            for name, entry in registry.items():
                if field in entry.fields and name != owner:
                    raise StatisticError(
                        f"{owner!r}: {name!r} has a result called {field!r} already"
                    )


def state() -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a derived state: an elementwise function of stored states and scalars."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        if function.__name__ in STORED:
            raise StatisticError(f"a derived state cannot be called {function.__name__!r}")
        inputs = _inputs(function, (*STORED, *SCALARS), "state")
        states.add(function.__name__, State(function.__name__, function, inputs))
        return function

    return register


def accumulator(
    fields: Mapping[str, str], *, version: int = 1
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register an accumulator.

    The function is given one-dimensional float64 tiles, which it must not change, and returns a
    float64 tensor with one element per field.

    Parameters
    ----------
    fields : mapping of str to str
        Result name to how it merges: ``sum``, ``max`` or ``min``. (``moments`` is for the central
        moments of `moment_sums`.) Result names are shared by all accumulators, so none may be used
        twice.
    version : int
        Raise it when the definition changes.
    """
    unknown = sorted(set(fields.values()) - {"sum", "max", "min", "moments"})
    if unknown or ("moments" in fields.values() and not {"count", *MOMENTS} <= set(fields)):
        raise StatisticError(f"merges are sum, max or min, not {unknown or 'moments'}")

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        allowed = ("tensor", "reference", *STORED, *SCALARS)
        inputs = _inputs(function, allowed, "accumulator")
        name = function.__name__
        _claim(name, fields)
        accumulators.add(name, Accumulator(name, function, inputs, dict(fields), version))
        return function

    return register


def whole(
    fields: Sequence[str],
    *,
    workspace: Callable[[tuple[int, ...]], int],
    ndim: int = 2,
    version: int = 1,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a whole-matrix step: float32 or float64 matrix → float64 tensor, one per field."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        inputs = _inputs(function, ("tensor", *SCALARS), "whole-matrix step")
        kinds = {field: "none" for field in fields}
        name = function.__name__
        _claim(name, fields)
        wholes.add(name, Whole(name, function, inputs, kinds, ndim, workspace, version))
        return function

    return register


def statistic(
    *,
    degree: float | None = None,
    invariant: Sequence[str] = (),
    low: float | None = None,
    high: float | None = None,
) -> Callable[[Callable[..., float]], Callable[..., float]]:
    """Register a statistic: numbers in, one number out, NaN where it is not defined.

    Parameters
    ----------
    degree, invariant, low, high : optional
        Laws that the tests prove for every registered statistic, see `Statistic`.

    Raises
    ------
    StatisticError
        If a parameter is neither a scalar nor a result of an accumulator or whole-matrix step, or
        the table has a column of that name.

    Examples
    --------
    >>> from analysis360.stats import statistic, statistics
    >>> @statistic(degree=1)
    ... def mean_abs_bound(max_abs_value):
    ...     "Largest magnitude, again."
    ...     return max_abs_value
    >>> statistics["mean_abs_bound"].summary
    'Largest magnitude, again.'
    >>> statistics.remove("mean_abs_bound")
    """

    def register(function: Callable[..., float]) -> Callable[..., float]:
        inputs = tuple(inspect.signature(function).parameters)
        for name in inputs:
            if name not in SCALARS:
                field_owner(name)
        if all(name in SCALARS for name in inputs):
            raise StatisticError(f"statistic {function.__name__!r} names no measured result")
        name = function.__name__
        if name in KEY or name in INFO:
            raise StatisticError(
                f"a statistic cannot be called {name!r}: the table has that column"
            )
        entry = Statistic(name, function, inputs, degree, tuple(invariant), low, high)
        statistics.add(name, entry)
        return function

    return register


def merge(fields: Mapping[str, str], values: Values, starts: npt.NDArray[np.intp]) -> Values:
    """Merge rows of accumulator results, group by group, in the order given.

    Parameters
    ----------
    fields : mapping of str to str
        Result name to merge, as registered.
    values : ndarray, shape (rows, fields)
    starts : ndarray of int, shape (groups,)
        First row of each group; groups are contiguous.

    Returns
    -------
    ndarray, shape (groups, fields)

    Notes
    -----
    Central moments merge by the exact identities of Chan, Golub & LeVeque (1979), extended to third
    and fourth order by Pébay (Sandia report SAND2008-6212).
    """
    merged = np.empty((len(starts), len(fields)))
    names = list(fields)
    reduce = {"sum": np.add, "max": np.maximum, "min": np.minimum}
    for kind, how in reduce.items():
        columns = [column for column, name in enumerate(names) if fields[name] == kind]
        if columns:
            merged[:, columns] = how.reduceat(values[:, columns], starts, axis=0)
    if "moments" in fields.values():
        at = [names.index(name) for name in MOMENTS]
        count = values[:, names.index("count")]
        merged[:, at] = _merge_moments(count, values[:, at], starts)
    return merged


def _merge_moments(count: Values, values: Values, starts: npt.NDArray[np.intp]) -> Values:
    sizes = np.diff(np.append(starts, len(values)))
    total = np.add.reduceat(count, starts)
    mean = np.add.reduceat(count * values[:, 0], starts) / total
    d = values[:, 0] - np.repeat(mean, sizes)
    m2, m3, m4 = values[:, 1], values[:, 2], values[:, 3]
    terms = (
        m2 + count * d**2,
        m3 + 3 * d * m2 + count * d**3,
        m4 + 4 * d * m3 + 6 * d**2 * m2 + count * d**4,
    )
    return np.stack([mean, *(np.add.reduceat(term, starts) for term in terms)], axis=1)
