"""Which tensors or layers lead: shares of a whole, and rankings by how far branches are apart."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis360.errors import TableError
from analysis360.table import KEY, check_table

__all__ = ["rank_layers", "shares"]

_ROW = ["name", "layer", "module", "param", "expert", "head", "state", "against"]
_CHECKPOINT = ["number", "step", "tokens"]


def shares(table: pd.DataFrame, statistic: str = "grad_norm_ema") -> pd.DataFrame:
    """Share of each tensor (or layer) in the sum of squares of its checkpoint.

    Parameters
    ----------
    table : DataFrame
        Measured table with more than one row per checkpoint and state: per tensor, layer or
        module.
    statistic : str
        A root of a sum of squares: ``"grad_norm_ema"`` (the root of the sum of Adam's second
        moment), ``"l2_norm"`` or ``"displacement"``. Others have no meaning as shares.

    Returns
    -------
    DataFrame
        The rows of the table that have this statistic: key columns, the statistic and
        ``<statistic>_share`` = x^2 / sum(x^2), from 0 to 1, which adds to 1 over the rows of one
        ``run, branch, checkpoint, state, against``; NaN where the sum is 0 or not finite.

    Raises
    ------
    TableError
        If the statistic is missing, or the table is aggregated to whole checkpoints.

    Examples
    --------
    >>> table = pd.DataFrame({"run": "r", "branch": "s", "number": 1, "step": 10, "tokens": 100,
    ...     "name": ["a", "b"], "layer": [0, 1], "module": "mlp.up", "param": "weight",
    ...     "expert": None, "head": None, "state": "adam", "against": "",
    ...     "grad_norm_ema": [0.3, 0.4]})
    >>> shares(table)["grad_norm_ema_share"].round(2).tolist()
    [0.36, 0.64]
    """
    table = check_table(table, [statistic])
    rows = table.loc[table[statistic].notna(), [*KEY, statistic]].reset_index(drop=True)
    group = ["run", "branch", *_CHECKPOINT, "state", "against"]
    value = rows[statistic].to_numpy(dtype=np.float64)
    groups = rows.groupby(group, dropna=False)
    largest = groups[statistic].transform("max").to_numpy(dtype=np.float64)
    if len(rows) and groups.size().max() == 1:
        raise TableError(
            f"every checkpoint has one row with {statistic}; take a table per tensor or layer"
        )
    with np.errstate(invalid="ignore", divide="ignore"):
        # squares of second moments can leave the range of float64: scale first
        square = pd.Series((value / largest) ** 2, rows.index)
        total = square.groupby([rows[c] for c in group], dropna=False).transform("sum", min_count=1)
        broken = square.isna().groupby([rows[c] for c in group], dropna=False).transform("any")
        rows[f"{statistic}_share"] = (square / total).mask(broken)
    return rows


def rank_layers(apart: pd.DataFrame, statistic: str, *, state: str | None = None) -> pd.DataFrame:
    """Sort tensors (or layers) by how far apart they came, and say when.

    Parameters
    ----------
    apart : DataFrame
        APART frame, from `compare_branches`.
    statistic : str
        Which statistic.
    state : str, optional
        Only rows of this state, such as ``"weight"``; by default of all.

    Returns
    -------
    DataFrame
        One row per run, tensor, state and role, largest ``abs(log2_ratio)`` first: the tensor's
        columns, ``number, step, tokens, tokens_since`` of the checkpoint where that was, ``value``,
        ``reference``, ``log2_ratio`` (signed), and ``checkpoints``, how many were compared.

    Raises
    ------
    TableError
        If the statistic or state is not in the frame, or has no ratio anywhere.

    Notes
    -----
    A description, not a test: the largest of many tensors and checkpoints is large by chance too,
    and after the onset most differences are consequences.

    Examples
    --------
    >>> apart = pd.DataFrame({"run": "r", "name": ["a", "a", "b"], "layer": [0, 0, 1],
    ...     "module": "mlp.up", "param": "weight", "expert": None, "head": None, "state": "weight",
    ...     "against": "", "number": [1, 2, 1], "step": None, "tokens": [10, 20, 10],
    ...     "tokens_since": None, "statistic": "rms", "value": [1.0, 8.0, 2.0],
    ...     "reference": [1.0, 1.0, 1.0], "log2_ratio": [0.0, 3.0, 1.0]})
    >>> rank_layers(apart, "rms")[["name", "tokens", "log2_ratio", "checkpoints"]]
      name  tokens  log2_ratio  checkpoints
    0    a      20         3.0            2
    1    b      10         1.0            1
    """
    rows = apart[apart["statistic"] == statistic]
    if rows.empty:
        there = list(pd.unique(apart["statistic"]))
        raise TableError(f"no statistic {statistic!r} in the comparison; it has {there}")
    if state is not None:
        states = list(pd.unique(rows["state"]))
        rows = rows[rows["state"] == state]
        if rows.empty:
            raise TableError(f"{statistic} has no state {state!r}; it has {states}")
    rows = rows[rows["log2_ratio"].notna()]
    if rows.empty:
        raise TableError(f"{statistic} has no ratio: no matched row is positive in both branches")
    group = ["run", *_ROW]
    rows = rows.assign(far=rows["log2_ratio"].abs())
    rows["checkpoints"] = rows.groupby(group, dropna=False)["far"].transform("size")
    rows = rows.sort_values("far", ascending=False, kind="stable").drop_duplicates(group)
    kept = [*group, *_CHECKPOINT, "tokens_since", "value", "reference", "log2_ratio", "checkpoints"]
    return rows[kept].reset_index(drop=True)
