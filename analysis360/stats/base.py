"""The kinds of registered function, and how their results merge.

``state``
    A derived array, element by element: ``update(exp_avg, exp_avg_sq, …)``.
``accumulator``
    One tile of named arrays → a few float64 sums, counts or extrema, that merge over tiles, blocks,
    tensors and machines; or one for each row or column of a matrix.
``whole``
    A whole matrix, or several of a layer → a few float64 numbers and perhaps a vector, for what is
    no function of sums (spectra).
``term``
    Sums of one tensor and scalars → one more sum, taken before tensors are merged: for scalars that
    the tensors of a layer do not share.
``statistic``
    Results of the above and scalars → one number. It never sees a tensor.

The names of a function's parameters are its inputs, checked when it is registered. This module and
the statistics need numpy only; arrays are torch tensors, and torch is imported to measure them.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from analysis360.errors import StatisticError
from analysis360.registry import Registry
from analysis360.table import INFO, KEY

if TYPE_CHECKING:
    import torch

__all__ = [
    "BETWEEN",
    "REFERENCES",
    "SCALARS",
    "STORED",
    "Accumulator",
    "State",
    "Statistic",
    "Term",
    "Whole",
    "accumulator",
    "accumulators",
    "field_owner",
    "gather",
    "is_vector",
    "merge",
    "merge_columns",
    "state",
    "states",
    "statistic",
    "statistics",
    "term",
    "terms",
    "vector",
    "whole",
    "wholes",
]

Values = npt.NDArray[np.float64]

SCALARS = (
    "numel", "shape", "dtype", "step", "beta1", "beta2", "eps", "lr", "weight_decay", "clip",
    "lr_sum", "lr_sq_sum", "decay", "reference_step", "reference_dtype",
)  # fmt: skip
"""Scalars that a statistic may name; accumulators and whole-matrix steps all up to `clip`, and
`reference_step`.

`step` is the optimizer's, per parameter; so is `reference_step`, that of the other checkpoint, to
an accumulator, while to a statistic it is the checkpoint's. Over the steps between the two,
`lr_sum` is the sum of the learning rate, `lr_sq_sum` that of its square, and `decay` what weight
decay alone would have left of a weight: the product of 1 − lr · weight_decay."""

BETWEEN = ("lr_sum", "lr_sq_sum", "decay")
"""Scalars of the time between two checkpoints; no sum depends on them."""

STORED = ("weight", "exp_avg", "exp_avg_sq", "master")
"""States that a checkpoint may store for a parameter, besides the scalar ``step``."""

TRANSFORMATIONS = ("sign", "permutation", "transpose", "orthogonal")
"""What a statistic may declare that it does not change with."""

REFERENCES = {f"reference_{name}": name for name in STORED}
"""Parameter name to the stored state of the other checkpoint that it stands for."""

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
        stored states by name, those of the other checkpoint as ``reference_<state>``, and scalars.
    fields : mapping of str to str
        Result name to how it merges: ``sum``, ``max``, ``min``, ``moments`` or ``rows``.
    version : int
        Raised when the definition changes, so that stored results of the old one are not reused.
    axis : {None, "rows", "columns"}
        Whether it gives one number a field, or one for each row or column of a matrix.
    """

    name: str
    function: Callable[..., torch.Tensor]
    inputs: tuple[str, ...]
    fields: Mapping[str, str]
    version: int = 1
    axis: str | None = None

    @property
    def pair(self) -> bool:
        """Whether it compares two checkpoints."""
        return any(name == "reference" or name in REFERENCES for name in self.inputs)

    @property
    def named_states(self) -> tuple[str, ...]:
        """Stored states it names; empty if it takes any state as ``tensor``."""
        return tuple(name for name in self.inputs if name in STORED)

    @property
    def reference_states(self) -> tuple[str, ...]:
        """Stored states of the other checkpoint that it names."""
        return tuple(REFERENCES[name] for name in self.inputs if name in REFERENCES)

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a tensor of this shape can be measured: rows and columns are a matrix's."""
        return self.axis is None or len(shape) >= 2


@dataclass(frozen=True, slots=True, eq=False)
class Whole:
    """A function of whole tensors that returns one float64 per field, and perhaps a vector.

    Attributes
    ----------
    inputs : tuple of str
        ``tensor``, ``reference``, or the names in `of`; and scalars.
    fields : mapping of str to str
        Result name to how it merges over tensors: ``max``, ``sum``, or ``none``.
    ndim : int
        Dimensions of the tensors that it takes.
    workspace : callable
        Bytes it needs above the stored tensors, from the shape (from a tuple of shapes with `of`).
    vector : str or None
        Name of what is returned after the fields, however long it is.
    of : mapping of str to str
        Parameter name to module, for steps that take several tensors of one layer (and head). The
        first is the one whose row the results stand in.
    by_head : bool
        Whether those must be divided by attention head.
    """

    name: str
    function: Callable[..., torch.Tensor]
    inputs: tuple[str, ...]
    fields: Mapping[str, str]
    ndim: int
    workspace: Callable[..., int]
    version: int = 1
    vector: str | None = None
    of: Mapping[str, str] = field(default_factory=dict)
    by_head: bool = False

    @property
    def pair(self) -> bool:
        """Whether it compares two checkpoints."""
        return "reference" in self.inputs

    @property
    def named_states(self) -> tuple[str, ...]:
        """None: it takes any state as ``tensor``."""
        return ()

    @property
    def reference_states(self) -> tuple[str, ...]:
        """None, as `named_states`."""
        return ()

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a tensor of this shape can be measured."""
        return len(shape) == self.ndim


Measure = Accumulator | Whole


@dataclass(frozen=True, slots=True, eq=False)
class Term:
    """A sum made of the fields of one tensor and its scalars; over tensors it adds up."""

    name: str
    function: Callable[..., float]
    inputs: tuple[str, ...]


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
    code : str
        Its number in the catalogue, such as ``"S4"``.
    source : str
        Where the definition is from: a citation, or ``"derived"``.
    null : str
        What it reads under which model, and how that is known.
    undefined : str
        When it is NaN.
    unit : str
        Empty for a pure number.
    figure : str
        Which figure shows it.
    """

    name: str
    function: Callable[..., float]
    inputs: tuple[str, ...]
    degree: float | None
    invariant: tuple[str, ...]
    low: float | None
    high: float | None
    code: str = ""
    source: str = ""
    null: str = ""
    undefined: str = ""
    unit: str = ""
    figure: str = ""

    @property
    def measures(self) -> tuple[Measure, ...]:
        """The accumulators and whole-matrix steps it rests on."""
        named = [*self.inputs, *(n for term in self.terms for n in term.inputs)]
        found = (field_owner(n) for n in named if n not in SCALARS and n not in terms)
        return tuple(dict.fromkeys(found))

    @property
    def terms(self) -> tuple[Term, ...]:
        """The terms it names."""
        return tuple(terms[name] for name in self.inputs if name in terms)

    @property
    def scalars(self) -> tuple[str, ...]:
        """Scalars that it, its terms and its measures name."""
        made_of = (*self.terms, *self.measures)
        named = [*self.inputs, *(n for entry in made_of for n in entry.inputs)]
        return tuple(dict.fromkeys(n for n in named if n in SCALARS))

    @property
    def summary(self) -> str:
        """First line of its docstring."""
        return (inspect.getdoc(self.function) or self.name).splitlines()[0]


states: Registry[State] = Registry("state", StatisticError)
accumulators: Registry[Accumulator] = Registry("accumulator", StatisticError)
wholes: Registry[Whole] = Registry("whole-matrix step", StatisticError)
terms: Registry[Term] = Registry("term", StatisticError)
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
            if name in _results(entry) or f"{name}[0]" in entry.fields:
                return entry
    if name in statistics:
        raise StatisticError(
            f"{name!r} is a statistic; inputs are sums and scalars: it is made of "
            f"{', '.join(statistics[name].inputs)}"
        )
    every = [f for r in (accumulators, wholes) for _, e in r.items() for f in _results(e)]
    known = sorted({field.partition("[")[0] for field in (*every, *terms)})
    near = difflib.get_close_matches(name, [*known, *SCALARS], n=3)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise StatisticError(
        f"unknown input {name!r}; {hint}results that can be named: {', '.join(known)}; "
        f"scalars: {', '.join(SCALARS)}"
    )


def _results(entry: Measure) -> tuple[str, ...]:
    """Names of what an accumulator or whole-matrix step gives."""
    more = (entry.vector,) if isinstance(entry, Whole) and entry.vector else ()
    return (*entry.fields, *more)


def is_vector(name: str) -> bool:
    """Whether a result is an array: a histogram, rows, columns, or the vector of a whole step.

    Examples
    --------
    >>> is_vector("magnitude_bins"), is_vector("square_sum")
    (True, False)
    """
    if name in terms:
        return False
    owner = field_owner(name)
    if isinstance(owner, Whole):
        return name == owner.vector
    return owner.axis is not None or (name in _vectors and name not in owner.fields)


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
    for result in fields:
        if result in SCALARS or result in STORED or result in REFERENCES:
            raise StatisticError(f"{owner!r}: a result cannot be called {result!r}, as an input is")
        if result in terms and result != owner:
            raise StatisticError(f"{owner!r}: a term is called {result!r} already")
        for registry in (accumulators, wholes):
            for name, entry in registry.items():
                if result in _results(entry) and name != owner:
                    raise StatisticError(
                        f"{owner!r}: {name!r} has a result called {result!r} already"
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


_MERGES = ("sum", "max", "min", "moments")
_GIVEN = tuple(name for name in SCALARS if name not in (*BETWEEN, "reference_dtype"))


def accumulator(
    fields: Mapping[str, str], *, version: int = 1, axis: str | None = None
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
    axis : {None, "rows", "columns"}
        With ``"rows"`` the function is given tiles of two dimensions, whole rows of a matrix (a
        tensor of more dimensions as one), and returns one number for each field and row; all fields
        merge as ``rows``, one after the other. With ``"columns"`` it returns one for each field and
        column.

    Raises
    ------
    StatisticError
        If a parameter of the function, or a merge, is unknown, or a result has that name already.
    """
    merges = set(fields.values())
    allowed_merges = ("rows",) if axis == "rows" else _MERGES[: 3 if axis else 4]
    if axis not in (None, "rows", "columns") or not merges <= set(allowed_merges):
        raise StatisticError(
            f"axis={axis!r}: merges are {', '.join(allowed_merges)}, not {sorted(merges)}"
        )
    if "moments" in merges and not {"count", *MOMENTS} <= set(fields):
        raise StatisticError(
            f"merges are sum, max or min; moments merge together: count, {', '.join(MOMENTS)}"
        )

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        allowed = ("tensor", "reference", *STORED, *REFERENCES, *_GIVEN)
        inputs = _inputs(function, allowed, "accumulator")
        name = function.__name__
        _check_arrays(name, inputs)
        _claim(name, fields)
        accumulators.add(name, Accumulator(name, function, inputs, dict(fields), version, axis))
        return function

    return register


def _check_arrays(name: str, inputs: Sequence[str]) -> None:
    """Either any state, or states by name: a row of the table has one state."""
    any_state = [n for n in inputs if n in ("tensor", "reference")]
    by_name = [n for n in inputs if n in STORED or n in REFERENCES]
    if any_state and by_name:
        raise StatisticError(f"{name!r} names {any_state[0]!r}, any state, beside {by_name[0]!r}")
    if "tensor" not in any_state and not any(n in STORED for n in by_name):
        raise StatisticError(f"{name!r} names no array of the checkpoint itself")


def whole(
    fields: Sequence[str] | Mapping[str, str],
    *,
    workspace: Callable[..., int],
    ndim: int = 2,
    version: int = 1,
    vector: str | None = None,
    of: Mapping[str, str] | None = None,
    by_head: bool = False,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a whole-matrix step: float32 or float64 tensors → float64 tensor.

    Parameters
    ----------
    fields : sequence of str, or mapping of str to str
        Result names; with how each merges over tensors, ``max`` or ``sum``, if it does.
    workspace : callable
        Bytes that the function needs above the stored tensors, from the shape; with `of`, from a
        tuple of shapes.
    ndim : int
        Dimensions of the tensors that it takes.
    version : int
        Raise it when the definition changes.
    vector : str, optional
        Name of a vector that follows the fields in what is returned.
    of : mapping of str to str, optional
        Parameter name to module label, such as ``{"query": "attn.q", "key": "attn.k"}``: tensors of
        one layer (and head) that the function takes together. The first owns the results.
    by_head : bool
        Take those only where the first is divided by head, see ``plan(per_head=True)``.

    Raises
    ------
    StatisticError
        If a parameter of the function, or a merge, is unknown, or a result has that name already.
    """
    kinds = dict(fields) if isinstance(fields, Mapping) else dict.fromkeys(fields, "none")
    unknown = sorted(set(kinds.values()) - {"none", "max", "sum"})
    if unknown:
        raise StatisticError(f"results of a whole matrix merge by max, sum or none, not {unknown}")

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        arrays = tuple(of) if of else ("tensor", "reference")
        inputs = _inputs(function, (*arrays, *_GIVEN), "whole-matrix step")
        name = function.__name__
        if arrays[0] not in inputs:
            raise StatisticError(f"whole-matrix step {name!r} does not name {arrays[0]!r}")
        _claim(name, (*kinds, *((vector,) if vector else ())))
        step = Whole(
            name, function, inputs, kinds, ndim, workspace, version, vector, of or {}, by_head
        )
        wholes.add(name, step)
        return function

    return register


def term() -> Callable[[Callable[..., float]], Callable[..., float]]:
    """Register a term: fields of one tensor and its scalars in, a sum out, of the function's name.

    Statistics name it as they name a field. Of several tensors it is taken of each, and added.

    Raises
    ------
    StatisticError
        If a parameter is neither a scalar nor a result that is one number, or the name is taken.

    Examples
    --------
    >>> from analysis360.stats import statistic, statistics, term, terms
    >>> @term()
    ... def decayed_square(square_sum, weight_decay):
    ...     return weight_decay * square_sum
    >>> @statistic(degree=2, low=0)
    ... def decay_energy(decayed_square):
    ...     "What weight decay adds to the loss, as L2 regularisation would."
    ...     return decayed_square / 2
    >>> [measure.name for measure in statistics["decay_energy"].measures]
    ['norm_sums']
    >>> statistics.remove("decay_energy"), terms.remove("decayed_square")
    (None, None)
    """

    def register(function: Callable[..., float]) -> Callable[..., float]:
        inputs, name = tuple(inspect.signature(function).parameters), function.__name__
        named = [n for n in inputs if n not in SCALARS]
        if not named or any(is_vector(n) for n in named):
            raise StatisticError(f"term {name!r} has to name results that are numbers, not {named}")
        _claim(name, [name])
        terms.add(name, Term(name, function, inputs))
        return function

    return register


def statistic(
    *,
    degree: float | None = None,
    invariant: Sequence[str] = (),
    low: float | None = None,
    high: float | None = None,
    code: str = "",
    source: str = "",
    null: str = "",
    undefined: str = "",
    unit: str = "",
    figure: str = "",
) -> Callable[[Callable[..., float]], Callable[..., float]]:
    """Register a statistic: numbers in, one number out, NaN where it is not defined.

    Parameters
    ----------
    degree, invariant, low, high : optional
        Laws that the tests prove for every registered statistic, see `Statistic`.
    code, source, null, undefined, unit, figure : str, optional
        What its page says, see `Statistic`.

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
    unknown = sorted({*invariant} - {*TRANSFORMATIONS})
    if unknown:
        allowed = ", ".join(TRANSFORMATIONS)
        raise StatisticError(f"invariant={unknown}: no such transformation; allowed: {allowed}")

    def register(function: Callable[..., float]) -> Callable[..., float]:
        inputs = tuple(inspect.signature(function).parameters)
        for name in inputs:
            if name not in SCALARS and name not in terms:
                field_owner(name)
        if all(name in SCALARS for name in inputs):
            raise StatisticError(f"statistic {function.__name__!r} names no measured result")
        name = function.__name__
        if name in KEY or name in INFO:
            raise StatisticError(
                f"a statistic cannot be called {name!r}: the table has that column"
            )
        entry = Statistic(
            name, function, inputs, degree, tuple(invariant), low, high,
            code, source, null, undefined, unit, figure,
        )  # fmt: skip
        _check_rows(entry)
        statistics.add(name, entry)
        return function

    return register


def _check_rows(entry: Statistic) -> None:
    """Moments alone and weights compared stand in rows that no third sees both of."""
    weights = [m.name for m in entry.measures if m.pair and not m.named_states]
    moments = [m.name for m in entry.measures if m.named_states]
    if weights and moments and not any(m.pair and m.named_states for m in entry.measures):
        raise StatisticError(
            f"statistic {entry.name!r} compares by {weights[0]!r}, and rests on {moments[0]!r}, "
            "moments of one checkpoint: take both in one accumulator, as `direction_sums` does"
        )


def merge(fields: Mapping[str, str], values: Values, starts: npt.NDArray[np.intp]) -> Values:
    """Merge rows of results, group by group, in the order given; what does not merge is NaN.

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
    merged = np.full((len(starts), len(fields)), np.nan)
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


def merge_columns(fields: Mapping[str, str], one: Values, other: Values) -> Values:
    """Merge results by columns, of shape (fields, columns), of two blocks."""
    reduce = {"sum": np.add, "max": np.maximum, "min": np.minimum}
    how = [reduce[kind] for kind in fields.values()]
    return np.stack([f(mine, theirs) for f, mine, theirs in zip(how, one, other)])


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
