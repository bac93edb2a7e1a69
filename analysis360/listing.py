"""What can be measured: every statistic, and what each means, needs and costs, as a table."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from importlib import import_module
from typing import Any

import pandas as pd

from analysis360 import stats
from analysis360.stats.base import REFERENCES, SCALARS, STORED, Measure, Statistic, Whole, is_vector

__all__ = ["FRAMES", "list_statistics"]

FRAMES: tuple[tuple[str, str, str], ...] = (
    ("branches", "compare_branches", "S10"),
    ("branches", "rank_layers", "S10"),
    ("branches", "rank_agreement", "S10"),
    ("branches", "score_branches", "S10"),
    ("branches", "first_departure", "S10"),
    ("branches", "first_crossings", "S10"),
    ("branches", "check_branches", "S10"),
    ("branches", "shares", "S6"),
    ("branches", "branch_divergence", "S10"),
    ("branches", "growth_exponent", "S10"),
    ("profiles", "depth_profile", "T11"),
    ("invariants", "check_invariants", "S9"),
    ("tokens", "rank_tokens", "S13"),
)
"""Module, name and number of the statistics that are functions of a whole table."""

SIDE, HEAD = 8192, 128
"""Rows and columns of the matrix for which the workspace of a whole-matrix step is given, and rows
of a head."""

COLUMNS: dict[str, str] = {
    "name": "string", "kind": "string", "code": "string", "topic": "string", "summary": "string",
    "reads": "string", "scalars": "string", "compares": "boolean", "cost": "string",
    "workspace": "Int64", "default": "boolean", "unit": "string", "low": "Float64",
    "high": "Float64", "degree": "Float64", "invariant": "string", "undefined": "string",
    "null": "string", "source": "string", "figure": "string",
}  # fmt: skip


def list_statistics() -> pd.DataFrame:
    """Every statistic that can be asked for, with what it means and what it costs.

    Those that you register are listed too.

    Returns
    -------
    DataFrame
        One row a statistic, in columns:

        ``name``, ``kind``
            ``"statistic"``: a column of the measured table, asked for by name. ``"frame"``: a
            function of this package from that table to another.
        ``code``, ``topic``, ``summary``
            Its number in the catalogue of statistics (S1 to S13, T1 to T14), the module that
            defines it, and the first line of its docstring.
        ``reads``, ``scalars``
            The stored states it is made of (``"any state"``: whichever is asked for;
            ``"reference …"``: that of the checkpoint it is compared with), and the scalars it
            needs besides.
        ``compares``
            Whether it compares two checkpoints.
        ``cost``, ``workspace``
            ``"sums"``, ``"histogram"``, ``"rows"`` and ``"columns"`` are taken in the one pass over
            what is read; ``"whole matrix"``, ``"whole vector"`` and ``"whole head"`` hold tensors
            at once, and need so many bytes above them if their sides are 8192, and a head has 128
            rows.
        ``default``
            Whether it is measured when no statistics are named.
        ``unit``, ``low``, ``high``, ``degree``, ``invariant``
            Unit (none for a pure number), bounds, degree in the scale of the tensor, and what
            leaves it unchanged; missing where nothing is claimed.
        ``undefined``, ``null``, ``source``, ``figure``
            When it is NaN; what it reads under which model, and how that is known; where the
            definition is from; the function that draws it.

    Examples
    --------
    >>> import analysis360 as a360
    >>> table = a360.list_statistics().set_index("name")
    >>> table.loc["cosine", ["code", "reads", "cost"]].tolist()
    ['S2', 'any state, reference', 'sums']

    All of a topic, to be asked for together: ``plan(run, names)``.

    >>> names = table.index[table["topic"] == "gains"].tolist()
    >>> names
    ['gain_min', 'gain_median', 'gain_max', 'gain_negative']
    """
    rows = [_statistic(entry) for _, entry in stats.statistics.items()]
    rows += [_frame(*said) for said in FRAMES]
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)


def _statistic(entry: Statistic) -> dict[str, Any]:
    measures = entry.measures
    return {
        "name": entry.name, "kind": "statistic", "code": entry.code,
        "topic": entry.function.__module__.rpartition(".")[2], "summary": entry.summary,
        "reads": _joined(word for measure in measures for word in reads(measure)),
        "scalars": _joined(_scalars(entry)),
        "compares": any(measure.pair for measure in measures),
        "cost": _joined(_cost(entry)), "workspace": _workspace(measures),
        "default": entry.name in stats.DEFAULT, "unit": entry.unit,
        "low": entry.low, "high": entry.high, "degree": entry.degree,
        "invariant": ", ".join(entry.invariant), "undefined": entry.undefined,
        "null": entry.null, "source": entry.source, "figure": entry.figure,
    }  # fmt: skip


def _frame(module: str, name: str, code: str) -> dict[str, Any]:
    function = getattr(import_module(f"analysis360.{module}"), name)
    return {
        "name": name, "kind": "frame", "code": code, "topic": module,
        "summary": (inspect.getdoc(function) or name).splitlines()[0],
        "reads": "a measured table", "scalars": "", "compares": None, "cost": "none",
        "workspace": None, "default": False, "unit": "", "low": None, "high": None,
        "degree": None, "invariant": "", "undefined": "", "null": "", "source": "", "figure": "",
    }  # fmt: skip


def _joined(words: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(words))


def reads(measure: Measure) -> list[str]:
    """Arrays that an accumulator or whole-matrix step is given, in words."""
    if isinstance(measure, Whole) and measure.of:
        return list(measure.of.values())
    words = {"tensor": "any state", "reference": "reference"} | {state: state for state in STORED}
    words |= {name: f"reference {state}" for name, state in REFERENCES.items()}
    return [words[name] for name in measure.inputs if name in words]


def _scalars(entry: Statistic) -> list[str]:
    """Scalars that it names, or that what it rests on does, in the order of `SCALARS`."""
    return [name for name in SCALARS if name in entry.scalars]


def _cost(entry: Statistic) -> list[str]:
    """Kinds of what it rests on, the cheapest first."""
    order = ("sums", "histogram", "rows", "columns", "whole vector", "whole head", "whole matrix")
    found = {_kind(measure, entry) for measure in entry.measures}
    return sorted(found, key=order.index)


def _kind(measure: Measure, entry: Statistic) -> str:
    if isinstance(measure, Whole):
        if measure.by_head:
            return "whole head"
        return "whole matrix" if measure.ndim > 1 else "whole vector"
    if measure.axis is not None:
        return measure.axis
    mine = [name for name in entry.inputs if name not in SCALARS and is_vector(name)]
    return "histogram" if any(f"{name}[0]" in measure.fields for name in mine) else "sums"


def _workspace(measures: Iterable[Measure]) -> int | None:
    """Bytes of the whole-matrix step that needs most, None without one."""
    needs = [
        measure.workspace(_shapes(measure)) for measure in measures if isinstance(measure, Whole)
    ]
    return max(needs, default=None)


def _shapes(step: Whole) -> Any:
    """Shape of the example: one square matrix; with `of` several, and vectors for gains."""
    if not step.of:
        return (SIDE,) * step.ndim
    norms = [module.startswith("norm") for module in step.of.values()]
    matrix = (HEAD if step.by_head else SIDE, SIDE)
    return tuple((SIDE,) if norm else matrix for norm in norms)
