"""What has to hold before two branches are compared, looked at and reported."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from analysis360.branches.compare import check_names
from analysis360.core import Run
from analysis360.errors import TableError
from analysis360.table import check_table, statistic_columns

__all__ = ["check_branches"]

PASS, FAIL = "PASS", "FAIL"
NOT_AVAILABLE, NOT_APPLICABLE = "not available", "not applicable"

_TENSOR = ["name", "layer", "module", "param", "expert", "head"]
_COLUMNS: dict[str, str] = {
    "check": "str", "result": "str", "value": "float64", "limit": "float64", "where": "str",
    "note": "str", "run": "str",
}  # fmt: skip
_RATES = ("lr", "learning_rate", "train/lr", "optim/learning_rate")
_RATE_LIMIT = 1e-6


def check_branches(
    table: pd.DataFrame,
    branch: str,
    to: str = "normal",
    *,
    run: Run | None = None,
    loss: pd.DataFrame | None = None,
) -> pd.DataFrame:
    r"""Check what a comparison of two branches rests on; nothing that is found is an error.

    Parameters
    ----------
    table : DataFrame
        Measured table with both branches.
    branch, to : str
        The branches.
    run : Run, optional
        Tells where they forked and what was published; else what the table tells is taken.
    loss : DataFrame, optional
        LOSS frame; with a column ``lr`` and perhaps ``chunk``.

    Returns
    -------
    DataFrame
        CHECKS frame, seven rows for each run of the table that has `branch`: ``check``; ``result``,
        one of ``"PASS"``, ``"FAIL"``, ``"not available"``, ``"not applicable"``; ``value`` and its
        ``limit`` (missing where there is none), ``where``, ``note``, ``run``:

        - ``"ancestor identical"``: largest relative difference, over all tensors and statistics, of
          what is measured of the two branches at the fork (limit 0). Also the largest displacement
          from the partner, where it is measured there. A test of the fork itself;
        - ``"ancestor published"``: step of the fork; whether the table has that checkpoint;
        - ``"equal learning rates"``: largest relative difference at equal steps after the fork;
        - ``"matched by tokens"``: checkpoints of `branch` with equal tokens in `to`, of how many;
        - ``"data after the fork"``: share of steps in which both saw the same chunk. Restarted
          branches are *not aligned* with each other, step by step, unless this says so;
        - ``"shared decay removable"``: the smallest share of a weight that decay has left since the
          ancestor; whether it is known, with projections, for `branch_divergence` to take off;
        - ``"gaps equal"``: largest difference, in steps, between the branches' gaps from the
          checkpoint before to one with equal tokens: change per gap compares only where it is 0.

    Raises
    ------
    TableError
        If `table` is not a measured table or has no such branches.

    Examples
    --------
    >>> table = pd.DataFrame([{"run": "r", "branch": b, "number": k, "step": k, "tokens": 10 * k,
    ...     "name": "w", "layer": 0, "module": "mlp.up", "param": "weight", "expert": None,
    ...     "head": None, "state": "weight", "against": "", "rms": 1.0}
    ...     for b in ("s", "n") for k in (1, 2, 3)])
    >>> check_branches(table, "s", "n")[["check", "result"]].head(4)
                      check         result
    0    ancestor identical  not available
    1    ancestor published  not available
    2  equal learning rates  not available
    3     matched by tokens           PASS
    """
    table = check_table(table)
    if branch == to:
        raise TableError(f"branch and to are both {branch!r}; check two branches")
    check_names(table, branch, to)
    rows: list[dict[str, Any]] = []
    for name, mine in table.groupby("run", sort=False):
        if (mine["branch"] == branch).any():
            pair = _Pair(mine, branch, to, run if run is None or _is(run, str(name)) else None)
            found = (
                _identical(pair), _published(pair), _rates(pair, loss), _matched(pair),
                _data(pair, loss), _decay(pair), _spacing(pair),
            )  # fmt: skip
            rows += [row | {"run": str(name)} for row in found]
    return pd.DataFrame(rows).reindex(columns=list(_COLUMNS)).astype(_COLUMNS)


def _is(run: Run, name: str) -> bool:
    return run.name == name


def _row(check: str, result: str, note: str = "", **more: Any) -> dict[str, Any]:
    return {"check": check, "result": result, "where": "", "note": note} | more


class _Pair:
    """Rows of two branches of one run, and the step at which they parted, where that is known."""

    def __init__(self, rows: pd.DataFrame, branch: str, to: str, run: Run | None) -> None:
        self.branch, self.to, self.run, self.rows = branch, to, run, rows
        self.one, self.other = rows[rows["branch"] == branch], rows[rows["branch"] == to]
        self.fork, self.said = self._forked()

    def _forked(self) -> tuple[int | None, str]:
        pair = {self.branch, self.to}
        for fork in self.run.forks if self.run else ():
            if {fork.branch, fork.parent} == pair:
                step = fork.step if fork.step is not None else self._step(fork.number, fork.parent)
                if step is not None:
                    return step, "as the run says"
        against = self.one[self.one["against"] == "ancestor"]
        if "reference_step" in against and against["reference_step"].notna().any():
            # an ancestor by role may be earlier than the fork
            return int(against["reference_step"].max()), "taken from the rows against the ancestor"
        return None, "the fork is not known: no run was given that tells, and no row is against it"

    def _step(self, number: int | None, branch: str) -> int | None:
        """Step of a numbered checkpoint, whether or not it was measured."""
        rows = self.rows[(self.rows["branch"] == branch) & self.rows["number"].isin([number])]
        steps = list(rows["step"].dropna().unique())
        if not steps and self.run is not None:
            steps = [c.step for c in self.run.entries if c.branch == branch and c.number == number]
        known = [int(s) for s in steps if s is not None and not pd.isna(s)]
        return known[0] if known else None


def _identical(pair: _Pair) -> dict[str, Any]:
    check = "ancestor identical"
    if pair.fork is None:
        return _row(check, NOT_AVAILABLE, pair.said)
    one, other = (rows[rows["step"].isin([pair.fork])] for rows in (pair.one, pair.other))
    if one.empty or other.empty:
        if other.empty and one.empty:
            note = f"ancestor not available: no checkpoint of step {pair.fork} in either branch"
            return _row(check, NOT_AVAILABLE, note)
        whose = pair.to if one.empty else pair.branch
        note = f"step {pair.fork} is one checkpoint, of {whose!r}: nothing to hold it against"
        return _row(check, NOT_APPLICABLE, note)
    key = [*_TENSOR, "state"]
    names = [c for c in statistic_columns(one) if pd.api.types.is_numeric_dtype(one[c].dtype)]
    left, right = (
        part[part["against"] == ""][[*key, *names]].reset_index(drop=True) for part in (one, other)
    )
    both = left.merge(right, on=key, suffixes=("", " of to"))
    a, b = (
        both[[f"{n}{end}" for n in names]].to_numpy(dtype=np.float64, na_value=np.nan)
        for end in ("", " of to")
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        off = np.where(a == b, 0.0, np.abs(a - b) / np.maximum(np.abs(a), np.abs(b)))
    off = np.where(np.isnan(a) & np.isnan(b), 0.0, np.where(np.isnan(off), np.inf, off))
    far = one[one["against"] == "partner"].get("displacement", pd.Series(dtype="float64")).max()
    if not off.size and pd.isna(far):
        return _row(check, NOT_AVAILABLE, "no statistic of both branches at the fork")
    worst = float(off.max()) if off.size else 0.0
    where, note = "", f"step {pair.fork}; {len(both)} tensors and states; fork {pair.said}"
    if worst > 0:
        i, j = np.unravel_index(int(np.argmax(off)), off.shape)
        where = f"{both['name'].iloc[i]} {names[j]}"
        note += f"; {int((off > 0).any(axis=1).sum())} of them differ"
    if pd.notna(far):
        note += f"; displacement from the partner is at most {float(far):.3g}"
    same = worst == 0 and not (pd.notna(far) and far > 0)
    return _row(check, PASS if same else FAIL, note, value=worst, limit=0.0, where=where)


def _published(pair: _Pair) -> dict[str, Any]:
    check = "ancestor published"
    if pair.fork is None:
        return _row(check, NOT_AVAILABLE, pair.said)
    steps = pd.concat([pair.one["step"], pair.other["step"]]).dropna()
    if steps.eq(pair.fork).any():
        return _row(check, PASS, f"fork {pair.said}", value=pair.fork, where=f"step {pair.fork}")
    earlier = pair.other["step"].dropna()
    earlier = earlier[earlier < pair.fork]
    note = f"ancestor not available: step {pair.fork} is not in the table"
    if len(earlier):
        near = int(earlier.max())
        note += f"; the nearest earlier one of {pair.to!r} is step {near}: path shared until the "
        note += "fork then raises cosines and lowers relative distances"
    return _row(check, NOT_AVAILABLE, note, value=pair.fork)


def _rates(pair: _Pair, loss: pd.DataFrame | None) -> dict[str, Any]:
    check = "equal learning rates"
    column = next((c for c in _RATES if loss is not None and c in loss), None)
    if loss is not None and column is not None:
        one, other = _logged(loss, pair, column)
        both = pd.concat([one, other], axis=1, keys=["one", "other"]).dropna()
        if len(both):
            off = (both["one"] - both["other"]).abs() / both.abs().max(axis=1).replace(0, np.nan)
            off = off.fillna(0.0)
            worst = float(off.max())
            note = f"{len(both)} equal steps of the log, column {column!r}"
            result = PASS if worst <= _RATE_LIMIT else FAIL
            where = f"step {off.idxmax()}" if worst > 0 else ""
            return _row(check, result, note, value=worst, limit=_RATE_LIMIT, where=where)
    if pair.run is not None and pair.run.learning_rate is not None:
        note = "one schedule is given for the whole run; no log tells the rates of each branch"
    else:
        note = "no log with learning rates of both branches at equal steps"
    return _row(check, NOT_AVAILABLE, note, limit=_RATE_LIMIT)


def _logged(loss: pd.DataFrame, pair: _Pair, column: str) -> tuple[pd.Series, pd.Series]:
    """A column of the log in both branches by step, after the fork."""
    found = []
    for name in (pair.branch, pair.to):
        mine = loss[loss["branch"].eq(name)].drop_duplicates("step").set_index("step")[column]
        found.append(mine[mine.index > pair.fork] if pair.fork is not None else mine)
    return found[0], found[1]


def _matched(pair: _Pair) -> dict[str, Any]:
    check = "matched by tokens"
    points = pair.one[["step", "tokens"]].drop_duplicates()
    if points["tokens"].isna().all() or pair.other["tokens"].isna().all():
        n = int(points["step"].dropna().isin(pair.other["step"].dropna()).sum())
        note = f"no tokens are known; {n} of {len(points)} checkpoints have equal steps"
        return _row(check, NOT_AVAILABLE, note)
    n = int(points["tokens"].dropna().isin(pair.other["tokens"].dropna()).sum())
    note = f"{n} of {len(points)} checkpoints of {pair.branch!r} have equal tokens in {pair.to!r}"
    return _row(check, PASS if n else FAIL, note, value=n, limit=1.0)


def _data(pair: _Pair, loss: pd.DataFrame | None) -> dict[str, Any]:
    check = "data after the fork"
    unknown = "not aligned, as far as is known: a difference holds what another order of data does"
    if loss is None or "chunk" not in loss:
        return _row(check, NOT_AVAILABLE, unknown)
    one, other = _logged(loss, pair, "chunk")
    both = pd.concat([one, other], axis=1, keys=["one", "other"]).dropna()
    if both.empty:
        return _row(check, NOT_AVAILABLE, unknown)
    same = both["one"].eq(both["other"])
    share = float(same.mean())
    note = f"the same chunk in {int(same.sum())} of {len(both)} equal steps"
    if share < 1:
        note = f"not aligned: {note}"
    return _row(check, PASS if share == 1 else FAIL, note, value=share, limit=1.0)


def _decay(pair: _Pair) -> dict[str, Any]:
    check = "shared decay removable"
    lacking = []
    for name, rows in ((pair.branch, pair.one), (pair.to, pair.other)):
        rows = rows[(rows["against"] == "ancestor") & (rows["state"] == "weight")]
        for column in ("decay_between", "projection"):
            if rows.empty or column not in rows or rows[column].isna().all():
                lacking.append(f"{column} of {name!r}")
    if lacking:
        note = f"not measured against the ancestor: {', '.join(lacking)}"
        return _row(check, NOT_AVAILABLE, f"{note}; angles then hold the decay both share")
    rows = pair.rows[pair.rows["against"] == "ancestor"]
    left = rows["decay_between"].astype("Float64").astype("float64")
    note = "branch_divergence takes it off in its columns with _undecayed"
    return _row(check, PASS, note, value=float(left.min()))


def _spacing(pair: _Pair) -> dict[str, Any]:
    check = "gaps equal"
    gaps = []
    for rows in (pair.one, pair.other):
        rows = rows[rows["against"] == "previous"]
        if "reference_step" not in rows or rows.empty:
            return _row(check, NOT_APPLICABLE, "nothing is measured against the checkpoint before")
        points = rows[["step", "reference_step"]].dropna().drop_duplicates("step")
        gaps.append(points.set_index("step")["reference_step"])
    both = pd.concat(gaps, axis=1, keys=["one", "other"]).dropna()
    if both.empty:
        return _row(check, NOT_AVAILABLE, "no equal steps with a checkpoint before in both")
    off = (both["one"] - both["other"]).abs()
    worst = float(off.max())
    note = f"{len(both)} checkpoints, {int((off > 0).sum())} with another gap"
    where = f"step {off.astype('float64').idxmax()}" if worst else ""
    return _row(check, PASS if worst == 0 else FAIL, note, value=worst, limit=0.0, where=where)
