"""What must hold of any checkpoint of Adam, as a table of PASS and FAIL (S9 of the catalogue)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from analysis360.errors import TableError
from analysis360.table import check_table

__all__ = ["check_invariants"]

PASS, FAIL = "PASS", "FAIL"
NOT_APPLICABLE, NOT_MEASURED = "not applicable", "not measured"

SLACK = 1e-5
"""Relative room over a bound: moments are stored rounded, and sums of them are so too."""

_CHECKPOINT = ["run", "branch", "number", "step", "tokens"]
_COLUMNS = [
    *_CHECKPOINT, "invariant", "result", "value", "limit", "rows", "worst", "worst_value", "note",
]  # fmt: skip

_Check = Callable[[pd.DataFrame, float | None], dict[str, Any]]


def check_invariants(table: pd.DataFrame, clip: float | None = None) -> pd.DataFrame:
    r"""Check each checkpoint for what no training run can have produced.

    Parameters
    ----------
    table : DataFrame
        Measured table, per tensor to name which one it was. The columns used are
        ``bound_violations``, ``v_negative``, ``nonfinite``, ``optimizer_step``,
        ``grad_norm_ema`` and ``momentum_norm``, all measured by default, and
        ``moment_nonfinite``.
    clip : float, optional
        Gradient clipping, *if* it was one bound on the norm of the gradient over exactly the
        parameters of the table, each counted once, and in force for the last ~100 steps. Leave it
        out otherwise: the two checks that rest on it are then not applicable.

    Returns
    -------
    DataFrame
        One row per checkpoint and invariant:

        ``update bound``
            :math:`|\hat m|\le B_t\sqrt{\hat v}` for every coordinate, by Cauchy–Schwarz.
        ``second moment not negative``, ``finite``
            In every coordinate; the latter in every state that was measured, and in the moments
            as far as their norms show it.
        ``second moment within clip``, ``first moment within clip``
            :math:`\sqrt{\sum\hat v}` and :math:`\|\hat m\|` over all tensors, which are averages
            of clipped gradients.
        ``one optimizer step``
            The same in all tensors.
        ``replicas equal``
            Never applicable: of replicas one is read, so that they are counted once.

        with ``result`` (``"PASS"``, ``"FAIL"``, ``"not applicable"`` or ``"not measured"``),
        ``value`` against ``limit``, ``rows`` (how many were looked at), ``worst`` (the tensor that
        is farthest out, or has the largest share; empty where nothing is), ``worst_value``, and
        ``note``.

    Raises
    ------
    TableError
        If `clip` is not positive, or the table holds no measured checkpoint.

    Notes
    -----
    A FAIL means wrong betas or step, moments that are of another checkpoint or other tensors, or
    a damaged file; of the clip, perhaps that it was not what `clip` says. A PASS proves none of
    this wrong. The bounds have 1e-5 of room for rounding (of moments in 16 bits, not enough).
    Where tensors have no moments, the sums are over the others, and can only be too small.

    Examples
    --------
    >>> table = pd.DataFrame({"run": "r", "branch": "s", "number": 1, "step": 10, "tokens": 100,
    ...     "name": ["a", "b"], "layer": [0, 1], "module": "mlp.up", "param": "weight",
    ...     "expert": None, "head": None, "state": "adam", "against": "",
    ...     "bound_violations": [0.0, 2.0], "grad_norm_ema": [0.3, 0.4]})
    >>> found = check_invariants(table, clip=1.0).set_index("invariant")
    >>> found.loc["update bound", ["result", "worst"]].tolist()
    ['FAIL', 'b']
    >>> found.loc["second moment within clip", "result"]
    'PASS'
    >>> found.loc["one optimizer step", "result"]
    'not measured'
    """
    table = check_table(table)
    if clip is not None and not clip > 0:
        raise TableError(f"clip is {clip!r}; give a positive bound, or None if there was none")
    rows = table[table["against"] == ""]
    if rows.empty:
        raise TableError("no row of the table was measured alone (against is empty)")
    found = []
    for key, mine in rows.groupby(_CHECKPOINT, dropna=False, sort=False):
        where = dict(zip(_CHECKPOINT, key))
        for name, check in _CHECKS.items():
            found.append(where | {"invariant": name} | _EMPTY | check(mine, clip))
    whole = {"run": "str", "branch": "str"} | dict.fromkeys(("number", "step", "tokens"), "Int64")
    return pd.DataFrame(found, columns=_COLUMNS).astype(whole)


_EMPTY = {
    "value": np.nan, "limit": np.nan, "rows": 0, "worst": "", "worst_value": np.nan, "note": "",
}  # fmt: skip


def _with(rows: pd.DataFrame, *columns: str, state: str | None = None) -> pd.DataFrame:
    """Rows that have all of these numbers."""
    if any(column not in rows for column in columns):
        return rows.iloc[:0]
    there = rows[list(columns)].notna().all(axis=1)
    return rows[there & (rows["state"] == state)] if state is not None else rows[there]


def _called(row: pd.Series) -> str:
    """What a row is of: a tensor, or what it was merged to."""
    if row["name"]:
        return str(row["name"])
    said = [f"layer {row['layer']}" if pd.notna(row["layer"]) else "", str(row["module"] or "")]
    return " ".join(part for part in said if part) or "all tensors"


def _worst(rows: pd.DataFrame, values: pd.Series) -> dict[str, Any]:
    at = int(values.argmax())
    return {"worst": _called(rows.iloc[at]), "worst_value": float(values.iloc[at])}


def _lacking(rows: pd.DataFrame, column: str) -> dict[str, Any]:
    """Say that nothing was measured, and whether the column or its values are missing."""
    note = f"no row has {column}"
    if column in rows and (rows["state"] == "adam").any():
        note += ": no step was taken yet, or the step or a hyper-parameter is not known"
    return {"result": NOT_MEASURED, "note": note}


def _none_of(column: str) -> _Check:
    """A count of the moments' coordinates that must be zero everywhere."""

    def check(rows: pd.DataFrame, clip: float | None) -> dict[str, Any]:
        mine = _with(rows, column, state="adam")
        if mine.empty:
            return _lacking(rows, column)
        return _all_zero(mine, mine[column].astype("float64"))

    return check


def _all_zero(rows: pd.DataFrame, counts: pd.Series) -> dict[str, Any]:
    value = float(counts.sum())
    said = {"value": value, "limit": 0.0, "rows": len(rows)}
    return said | ({"result": PASS} if value == 0 else {"result": FAIL} | _worst(rows, counts))


def _finite(rows: pd.DataFrame, clip: float | None) -> dict[str, Any]:
    """Elements that are not; of moments also by their norms, which one such element spoils."""
    states, counted = _with(rows, "nonfinite"), _with(rows, "moment_nonfinite", state="adam")
    sums = _with(rows, "bound_violations", state="adam")  # with these, steps and betas are known
    sums = sums[sums["v_negative"].eq(0)] if "v_negative" in sums else sums  # of which no root is
    spoilt = [
        ~np.isfinite(_column(sums, n)) for n in ("grad_norm_ema", "momentum_norm") if n in sums
    ]
    sums = sums if spoilt else sums.iloc[:0]
    mine = pd.concat([states, counted, sums])
    if mine.empty:
        return {"result": NOT_MEASURED, "note": "no row has nonfinite"}
    bad = [np.logical_or.reduce(spoilt).astype("float64")] if spoilt else []
    counts = [_column(states, "nonfinite"), _column(counted, "moment_nonfinite")]
    every = pd.Series(np.concatenate([*counts, *bad]))
    said = _all_zero(mine, every)
    if said["result"] == FAIL:
        said["note"] = f"state {mine['state'].iloc[int(every.argmax())]}"
    return said


def _column(rows: pd.DataFrame, name: str) -> pd.Series:
    return rows[name].astype("float64") if name in rows else pd.Series(dtype="float64")


def _within_clip(column: str) -> _Check:
    """A norm over all tensors, from those of each, that clipping bounds."""

    def check(rows: pd.DataFrame, clip: float | None) -> dict[str, Any]:
        mine = _with(rows, column, state="adam")
        if clip is None:
            return {"result": NOT_APPLICABLE, "note": "no one clip over all tensors is known"}
        if mine.empty:
            return _lacking(rows, column)
        norms = _column(mine, column)
        value = float(np.linalg.norm(norms.to_numpy()))
        said = {"value": value, "limit": clip, "rows": len(mine)} | _worst(mine, norms)
        return said | {"result": PASS if value <= clip * (1 + SLACK) else FAIL}

    return check


def _one_step(rows: pd.DataFrame, clip: float | None) -> dict[str, Any]:
    """Parameters that were all updated in the same steps have one count."""
    mine, apart = _with(rows, "optimizer_step", state="adam"), _steps_apart(rows)
    if apart is None and mine.empty:
        return _lacking(rows, "optimizer_step")
    if apart is not None:
        return {"result": FAIL, "limit": 0.0, "rows": len(mine), "worst": apart,
                "note": "steps differ within it; a table per tensor says which"}  # fmt: skip
    steps = mine["optimizer_step"].astype("float64")
    usual = float(steps.mode().iloc[0])
    off = (steps - usual).abs()
    said = {"value": float(off.max()), "limit": 0.0, "rows": len(mine)}
    if not off.any():
        return said | {"result": PASS}
    worst = _worst(mine, off) | {"worst_value": float(steps.iloc[off.argmax()])}
    return said | worst | {"result": FAIL, "note": f"most tensors are at step {usual:g}"}


def _steps_apart(rows: pd.DataFrame) -> str | None:
    """The first merged row whose tensors differ: it has no step, though its sums rest on steps."""
    if "optimizer_step" not in rows:
        return None
    sums = _with(rows, "bound_violations", state="adam")
    differ = sums[sums["name"].eq("") & sums["optimizer_step"].isna()]
    return None if differ.empty else _called(differ.iloc[0])


def _replicas(rows: pd.DataFrame, clip: float | None) -> dict[str, Any]:
    return {"result": NOT_APPLICABLE, "note": "one replica is read, so that each counts once"}


_CHECKS: dict[str, _Check] = {
    "update bound": _none_of("bound_violations"),
    "second moment not negative": _none_of("v_negative"),
    "finite": _finite,
    "second moment within clip": _within_clip("grad_norm_ema"),
    "first moment within clip": _within_clip("momentum_norm"),
    "one optimizer step": _one_step,
    "replicas equal": _replicas,
}
