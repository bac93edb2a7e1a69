"""Which tensors or layers lead: shares of a whole, and rankings by how far branches are apart."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis360.errors import TableError
from analysis360.table import KEY, check_table

__all__ = ["rank_agreement", "rank_layers", "shares"]

Values = npt.NDArray[np.float64]

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


def rank_agreement(
    ranked: Mapping[str, pd.DataFrame],
    *,
    top: int = 5,
    draws: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Say how far several runs agree on which tensors or layers lead.

    Parameters
    ----------
    ranked : dict of str to DataFrame
        By run: a frame of `rank_layers`, one row a tensor (or layer), of one state and role.
    top : int
        Length of the tops that are compared.
    draws : int
        Random orders from which the level of chance is taken.
    seed : int
        Of these orders.

    Returns
    -------
    DataFrame
        One row per pair of runs, and one for all of them (``one`` is ``"all"``): ``one, other``;
        ``n``, tensors that all have; ``tau``, Kendall's τ-b of abs(log2_ratio), the mean over pairs
        in the last row; ``tau_chance``: 97.5 % quantile of that where the orders are random;
        ``overlap``: share of the `top` that both have (all pairs: their mean), ``overlap_chance``:
        what is expected of random orders, top / n; ``overlap_high``: 97.5 % quantile of that;
        ``p``: share of random orders whose τ is as large, counting the one found; ``top``;
        ``status``.

    Raises
    ------
    TableError
        With fewer than two runs, or where a frame has a tensor twice.

    Notes
    -----
    *Null*: orders of the tensors that are random in each run. Tensors of one module resemble each
    other in every run, so that agreement above chance may say which *modules* move most, spike or
    not: hold it against the agreement between rankings of placebos. Pairs share runs; the row
    of all draws the orders of every run anew and keeps that (simulated).

    NaN with fewer than 3 tensors, or where one run has no order.

    Examples
    --------
    >>> names = [f"w{i}" for i in range(6)]
    >>> one = pd.DataFrame({"name": names, "log2_ratio": [6, 5, 4, 3, 2, 1.0]})
    >>> two = pd.DataFrame({"name": names, "log2_ratio": [-5, 6, 4, 3, 1, 2.0]})
    >>> found = rank_agreement({"a": one, "b": two}, top=2, draws=500)
    >>> found[["one", "other", "n", "tau", "overlap", "overlap_chance"]].round(2)
       one other  n   tau  overlap  overlap_chance
    0    a     b  6  0.73      1.0            0.33
    1  all        6  0.73      1.0            0.33
    """
    if len(ranked) < 2:
        raise TableError(f"{len(ranked)} rankings: agreement needs two")
    sizes = _side_by_side(ranked)
    names, n = list(sizes), len(sizes)
    top = min(top, n)
    pairs = list(combinations(range(len(names)), 2))
    size = sizes.to_numpy(dtype=np.float64).T
    taus, overlaps = (part[0] for part in _agreements(size[None], pairs, top))
    drawn = np.random.default_rng(seed)
    by_chance, shared = np.empty((draws, len(pairs))), np.empty((draws, len(pairs)))
    for start in range(0, draws, _BLOCK):
        part = slice(start, min(start + _BLOCK, draws))
        order = drawn.permuted(np.tile(size, (part.stop - start, 1, 1)), axis=2)
        by_chance[part], shared[part] = _agreements(order, pairs, top)
    found: list[dict[str, Any]] = [
        {"one": names[i], "other": names[j]}
        | _said(taus[k], by_chance[:, k], overlaps[k], shared[:, k])
        for k, (i, j) in enumerate(pairs)
    ]
    means = taus.mean(), by_chance.mean(axis=1), overlaps.mean(), shared.mean(axis=1)
    found.append({"one": "all", "other": ""} | _said(*means))
    out = pd.DataFrame(found).assign(n=n, top=top, overlap_chance=top / n if n else np.nan)
    few = f"{n} tensors in common: no order to agree on" if n < _LEAST else ""
    out["status"] = [few or ("a run has no order" if np.isnan(tau) else "") for tau in out["tau"]]
    return out[
        ["one", "other", "n", "tau", "tau_chance", "p", "top", "overlap", "overlap_chance",
         "overlap_high", "status"]
    ]  # fmt: skip


_LEAST = 3
"""Tensors that an order needs."""

_BLOCK = 100
"""Random orders that are compared at once."""


def _side_by_side(ranked: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Sizes of the tensors that all runs have, one column a run."""
    columns = []
    for run, frame in ranked.items():
        keys = [c for c in _ROW if all(c in other for other in ranked.values())]
        twice = frame[frame.duplicated(keys)]
        if len(twice):
            first = twice.iloc[0][keys].to_dict()
            raise TableError(f"ranking {run!r} has several rows of {first}; rank one run and state")
        labels = pd.MultiIndex.from_frame(frame[keys].astype("string").fillna(""))
        columns.append(pd.Series(frame["log2_ratio"].abs().to_numpy(), labels, name=run))
    return pd.concat(columns, axis=1, join="inner").dropna()


def _agreements(size: Values, pairs: list[tuple[int, int]], top: int) -> tuple[Values, Values]:
    """Kendall's tau-b and overlap of the tops, of each draw and pair; `size` is draw, run, tensor.

    Of sizes that are equal the one that comes first is in the top.
    """
    draws, runs, n = size.shape
    if n < _LEAST:
        nothing = np.full((draws, len(pairs)), np.nan)
        return nothing, nothing
    i, j = np.triu_indices(n, 1)
    sign = np.sign(size[:, :, i] - size[:, :, j]).astype(np.float32)
    ordered = np.count_nonzero(sign, axis=2).astype(np.float64)
    best = np.zeros(size.shape, dtype=bool)
    np.put_along_axis(best, np.argsort(-size, axis=2, kind="stable")[:, :, :top], True, axis=2)
    taus, shared = [], []
    for a, b in pairs:
        agree = np.einsum("dp,dp->d", sign[:, a], sign[:, b]).astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            taus.append(agree / np.sqrt(ordered[:, a] * ordered[:, b]))
        shared.append((best[:, a] & best[:, b]).sum(axis=1) / top)
    return np.stack(taus, axis=1), np.stack(shared, axis=1)


def _said(tau: float, by_chance: Values, overlap: float, shared: Values) -> dict[str, Any]:
    """What was found, and what random orders give."""
    if np.isnan(tau):
        return dict.fromkeys(("tau", "tau_chance", "p", "overlap", "overlap_high"), np.nan)
    # sums in another order differ in the last digits
    as_large = np.count_nonzero(by_chance >= tau - 1e-9)
    return {
        "tau": tau, "tau_chance": float(np.quantile(by_chance, 0.975)),
        "p": (1 + as_large) / (1 + len(by_chance)), "overlap": overlap,
        "overlap_high": float(np.quantile(shared, 0.975)),
    }  # fmt: skip
