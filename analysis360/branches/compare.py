"""Two branches of a run held against each other, row by row of the measured table.

A MEASURED table (`analysis360.table`) goes in, whole or aggregated to layers, and an APART frame
comes out: one row per tensor (or layer), checkpoint and statistic.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from analysis360.errors import TableError
from analysis360.table import check_table, statistic_columns

__all__ = ["compare_branches"]

MATCHED = "matched"
NO_PARTNER = "no partner"
OTHER_REFERENCE = "other reference"

_TENSOR = ["name", "layer", "module", "param", "expert", "head"]
_ROW = [*_TENSOR, "state", "against"]
_CHECKPOINT = ["number", "step", "tokens"]
_COLUMNS = [
    "run", *_ROW, *_CHECKPOINT, "tokens_since",
    "statistic", "value", "reference", "difference", "log2_ratio", "status",
]  # fmt: skip


def compare_branches(
    table: pd.DataFrame,
    branch: str,
    to: str = "normal",
    *,
    statistics: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Hold a branch against another at equal tokens.

    Parameters
    ----------
    table : DataFrame
        Measured table; per parameter as measured, or per layer or module when aggregated so.
        Several runs are compared each within itself.
    branch, to : str
        The branch, and the reference: ``difference`` is `branch` minus `to`.
    statistics : sequence of str, optional
        Which statistics; by default all of the table.

    Returns
    -------
    DataFrame
        APART frame, long: one row per row of the table and statistic, with ``run``, the tensor
        (``name, layer, module, param, expert, head``), ``state, against``, the checkpoint of
        `branch` (``number, step, tokens``), ``tokens_since``, ``statistic``, ``value`` (of
        `branch`), ``reference`` (of `to`), ``difference`` = value - reference, ``log2_ratio`` =
        log2(value / reference), NaN unless both are positive and finite, and ``status``:
        ``"matched"``; ``"no partner"`` where the checkpoint, or the tensor in it, is in one branch
        only; ``"other reference"`` where both were measured against a checkpoint, but not of the
        same step. Checkpoints of `to` alone are left out.

    Raises
    ------
    TableError
        If a branch or statistic is not in the table, two checkpoints of a branch have the same
        tokens, or no checkpoint of the two branches matches.

    Notes
    -----
    *Matching* is by exactly equal tokens; by equal steps in a run where one of the branches has no
    tokens at all. Rows measured against the ``"partner"`` compare branches already and are left
    out, as are statistics that are NaN in every row of a state and role, which they do not fit.

    *tokens_since* counts from the fork, which the table does not hold: it is taken to be the last
    of the leading matched checkpoints at which every value measured alone is equal in both
    branches, if the first is so. Otherwise it is the last checkpoint, of these two branches and
    else of any of the run, before the later of the two begins: no later than the true fork, and
    early by less than a sampling interval of what it was taken from. It is missing before the fork
    and where neither is known.

    One pair of branches is one sample: no row says how far two undisturbed branches would be apart.
    Hold a second undisturbed ("placebo") branch against `to` in the same way.

    Examples
    --------
    >>> table = pd.DataFrame({"run": "r", "branch": ["s", "s", "n", "n"], "number": [1, 2, 1, 2],
    ...     "step": [10, 20, 10, 20], "tokens": [100, 200, 100, 200], "name": "w", "layer": 0,
    ...     "module": "mlp.up", "param": "weight", "expert": None, "head": None, "state": "weight",
    ...     "against": "", "l2_norm": [3.0, 8.0, 3.0, 4.0]})
    >>> apart = compare_branches(table, "s", to="n")
    >>> apart[["tokens", "tokens_since", "difference", "log2_ratio", "status"]]
       tokens  tokens_since  difference  log2_ratio   status
    0     100             0         0.0         0.0  matched
    1     200           100         4.0         1.0  matched
    """
    chosen = statistic_columns(table) if statistics is None else list(statistics)
    table = check_table(table, chosen)
    if branch == to:
        raise TableError(f"branch and to are both {branch!r}; compare two branches")
    check_names(table, branch, to)
    numeric = [c for c in chosen if pd.api.types.is_numeric_dtype(table[c])]
    if statistics is not None and len(numeric) < len(chosen):
        raise TableError(f"columns {sorted(set(chosen) - set(numeric))} are not numbers")
    alone = table[table["against"] != "partner"]
    pieces = []
    for run, rows in alone.groupby("run", sort=False):
        mine, other = rows[rows["branch"] == branch], rows[rows["branch"] == to]
        if len(mine):
            clock = clock_of(mine, other, str(run))
            pieces.append(_one_run(rows, mine, other, clock, numeric))
    if not pieces or not any((piece["status"] == MATCHED).any() for piece in pieces):
        raise TableError(_nothing(table, branch, to))
    return pd.concat(pieces, ignore_index=True)[_COLUMNS]


def check_names(table: pd.DataFrame, branch: str, to: str) -> None:
    there = [str(name) for name in pd.unique(table["branch"])]
    for name in (branch, to):
        if name not in there:
            raise TableError(f"no branch {name!r} in the table; it has {there}")


def clock_of(mine: pd.DataFrame, other: pd.DataFrame, run: str) -> str:
    """Column to match by, and a check that it tells checkpoints of a branch apart."""
    both = all(rows["tokens"].notna().any() for rows in (mine, other))
    clock = "tokens" if both or (other.empty and mine["tokens"].notna().any()) else "step"
    for rows in (mine, other):
        points = rows[["branch", *_CHECKPOINT]].drop_duplicates().dropna(subset=[clock])
        twice = points[points.duplicated(clock)]
        if len(twice):
            raise TableError(
                f"run {run!r}: branch {twice['branch'].iloc[0]!r} has several checkpoints at "
                f"{clock} {sorted(map(int, twice[clock].unique()))[:5]}; keep one of each"
            )
    return clock


def _nothing(table: pd.DataFrame, branch: str, to: str) -> str:
    said = []
    for name in (branch, to):
        rows = table[table["branch"] == name]
        clock = "tokens" if rows["tokens"].notna().any() else "step"
        points = sorted({int(p) for p in rows[clock].dropna()})
        text = ", ".join(map(str, points[:6])) + (f", … {points[-1]}" if len(points) > 6 else "")
        runs = ", ".join(dict.fromkeys(map(str, rows["run"])))
        said.append(f"{name!r} of run {runs} has {clock} {text or 'unknown'}")
    return f"no checkpoint of {branch!r} has one of {to!r} to be held against: " + "; ".join(said)


def _one_run(
    rows: pd.DataFrame, mine: pd.DataFrame, other: pd.DataFrame, clock: str, statistics: list[str]
) -> pd.DataFrame:
    """All rows of one run, in the order of the table, those of `to` alone at the end."""
    wide = _pairs(mine, other, clock, statistics)
    elsewhere = _other_reference(wide)
    wide.loc[elsewhere, [f"{name} of to" for name in statistics]] = np.nan
    fork = _fork(wide, rows, mine, other, statistics) if clock == "tokens" else None
    since = wide["tokens"] - fork if fork is not None else pd.Series(pd.NA, wide.index)
    wide["tokens_since"] = since.astype("Int64").where(lambda s: s >= 0)
    wide["run"] = str(rows["run"].iloc[0])
    wide["run"] = wide["run"].astype("str")
    wide["status"] = np.where(wide["found"] == "both", MATCHED, NO_PARTNER)
    wide.loc[elsewhere, "status"] = OTHER_REFERENCE
    wide["status"] = wide["status"].astype("str")
    fixed = [column for column in _COLUMNS if column in wide]
    pieces = []
    for name in statistics:
        piece = wide[fixed].assign(value=wide[name], reference=wide[f"{name} of to"])
        piece.insert(0, "statistic", name)
        fits = piece[["value", "reference"]].notna().any(axis=1)
        kind = [piece["state"], piece["against"]]
        pieces.append(piece[fits.groupby(kind).transform("any").astype(bool)])
    out = pd.concat(pieces).sort_index(kind="stable").reset_index(drop=True)
    out = out.astype({"statistic": "str", "value": "float64", "reference": "float64"})
    out["difference"] = out["value"] - out["reference"]
    out["log2_ratio"] = _log2_ratio(out["value"].to_numpy(), out["reference"].to_numpy())
    return out


def _pairs(
    mine: pd.DataFrame, other: pd.DataFrame, clock: str, statistics: list[str]
) -> pd.DataFrame:
    """Rows of both branches side by side; `found` says in which."""
    points = mine[_CHECKPOINT].drop_duplicates().dropna(subset=[clock]).set_index(clock)
    against = [c for c in ("reference_step",) if c in mine]
    right = other[[*_ROW, clock, *against, *statistics]]
    right = right.rename(columns={n: f"{n} of to" for n in (*against, *statistics)})
    right = right[right[clock].isin(points.index)]
    left = mine[[*_ROW, *_CHECKPOINT, *against, *statistics]].assign(order=np.arange(len(mine)))
    # a missing clock has no partner, though pandas would match missing with missing
    known = left[clock].notna()
    wide = left[known].merge(right, on=[*_ROW, clock], how="outer", indicator="found")
    wide = pd.concat([wide, left[~known]]).sort_values("order", kind="stable")
    for column in set(_CHECKPOINT) - {clock}:
        wide[column] = wide[column].fillna(wide[clock].map(points[column]))
    return wide.reset_index(drop=True)


def _other_reference(wide: pd.DataFrame) -> pd.Series:
    """Rows whose two sides were measured against checkpoints of different steps."""
    if "reference_step" not in wide:
        return pd.Series(False, wide.index)
    one, other = wide["reference_step"], wide["reference_step of to"]
    return (one.notna() & other.notna() & (one != other)).fillna(False).astype(bool)


def _fork(
    wide: pd.DataFrame,
    rows: pd.DataFrame,
    mine: pd.DataFrame,
    other: pd.DataFrame,
    statistics: list[str],
) -> int | None:
    """Tokens at which the branches parted, as well as the table tells; see `compare_branches`."""
    alone = wide[wide["against"] == ""]
    values, references = (
        alone[[f"{n}{end}" for n in statistics]].to_numpy(dtype=np.float64, na_value=np.nan)
        for end in ("", " of to")
    )
    equal = (values == references) | (np.isnan(values) & np.isnan(references))
    same = pd.Series(equal.all(axis=1) & (alone["found"] == "both").to_numpy(), alone.index)
    shared = alone["tokens"].isin(alone.loc[alone["found"] == "both", "tokens"])
    per_point = same[shared].groupby(alone.loc[shared, "tokens"].astype("int64")).all()
    leading = per_point[per_point.cumprod().astype(bool)]
    if len(leading):
        return int(leading.index[-1])
    if other.empty:
        return None
    begin = max(mine["tokens"].min(), other["tokens"].min())
    for part in (pd.concat([mine, other]), rows):
        before = part["tokens"][(part["tokens"] < begin).fillna(False)]
        if len(before):
            return int(before.max())
    return None


def _log2_ratio(value: np.ndarray, reference: np.ndarray) -> np.ndarray:
    both = np.isfinite(value) & np.isfinite(reference) & (value > 0) & (reference > 0)
    out = np.full(len(value), np.nan)
    out[both] = np.log2(value[both]) - np.log2(reference[both])
    return out
