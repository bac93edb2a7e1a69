"""How fast two branches came apart: the slope of the logarithm of their distance."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats as scipy_stats

from analysis360.core import LearningRate
from analysis360.errors import TableError

__all__ = ["growth_exponent"]

Values = npt.NDArray[np.float64]

FEWEST = 5
"""Points that an exponent needs: fewer have one slope as well as another."""

_TENSOR = ["name", "layer", "module", "param", "expert", "head"]
_SCHEDULE = ["lr_sum", "lr_sq_sum", "decay"]
_CLOCKS = {"diffusive": 0.5, "ballistic": 1.0, "tokens": np.nan, "steps": np.nan}


def growth_exponent(
    divergence: pd.DataFrame,
    clock: str = "diffusive",
    *,
    learning_rate: LearningRate | None = None,
    weight_decay: float = 0.0,
    fork_step: int | None = None,
) -> pd.DataFrame:
    r"""Say how fast the distance between two branches grew: slope of its logarithm.

    Parameters
    ----------
    divergence : DataFrame
        From `branch_divergence`.
    clock : {"diffusive", "ballistic", "tokens", "steps"}
        Against what: :math:`\sum\eta^2` or :math:`\sum\eta` since the ancestor, each with what
        decay has left of it (see Notes); or tokens or steps since then.
    learning_rate : LearningRate, optional
        ``run.learning_rate``: the sums are then taken of it, and not of the frame's columns.
    weight_decay : float
        With `learning_rate`, :math:`\lambda` of these tensors.
    fork_step : int, optional
        Step at which the branches parted; by default the ancestor's. Where that is later than the
        ancestor, the clock needs `learning_rate`, but for ``"steps"``.

    Returns
    -------
    DataFrame
        One row per tensor (or layer, or all): ``clock``, ``exponent`` (Theil–Sen), ``low`` and
        ``high`` (its 95 % interval for independent points), ``guide`` (the slope of this clock's
        own model: ½ for diffusive, 1 for ballistic), ``points``, and ``status``.

    Raises
    ------
    TableError
        If the frame is not one of `branch_divergence`, or the clock is unknown.

    Notes
    -----
    ½ against the diffusive clock: two walks that have nothing in common. 1 against the ballistic
    one: a steady pull apart. Both hold exactly for
    :math:`\sum_t(\eta_t\Pi_{t\to T})^2` and :math:`\sum_t\eta_t\Pi_{t\to T}`, since decay shrinks
    what was gained before (derived); between two points the rate is taken as steady. Against plain
    tokens a falling rate and decay make both less: 0.41 and 0.91 by least squares, for K2 from
    checkpoint 160 to 194.

    Adam's momentum delays a walk by some 1/(1 − β1) steps, which the branches share at first: with
    checkpoints that close to the fork, slopes are above ½ (simulated).

    NaN with fewer than 5 points. *It describes one pair*: points along it follow from each other,
    so the interval is too narrow, and it says nothing about other pairs.

    Examples
    --------
    >>> apart = pd.DataFrame({"run": "r", "name": "w", "layer": 0, "module": "mlp.up",
    ...     "param": "weight", "expert": pd.NA, "head": pd.NA, "state": "weight",
    ...     "step": range(1, 7), "ancestor_step": 0, "tokens_since": range(10, 70, 10),
    ...     "distance": [3.0 * n**0.5 for n in range(1, 7)], "decay": 1.0,
    ...     "lr_sum": [0.1 * n for n in range(1, 7)], "lr_sq_sum": [0.01 * n for n in range(1, 7)]})
    >>> growth_exponent(apart)[["exponent", "guide", "points"]].round(3).values.tolist()
    [[0.5, 0.5, 6.0]]
    >>> growth_exponent(apart.head(3))["status"].item()
    'too few points: 3, needs 5'
    """
    if clock not in _CLOCKS:
        raise TableError(f"unknown clock {clock!r}; allowed: {', '.join(_CLOCKS)}")
    need = ["run", *_TENSOR, "state", "step", "ancestor_step", "tokens_since", "distance"]
    missing = [c for c in [*need, *_SCHEDULE] if c not in divergence]
    if missing:
        raise TableError(f"not a frame of branch_divergence: columns {missing} are missing")
    rows = divergence.sort_values("step", kind="stable")
    found = []
    keys = ["run", *_TENSOR, "state"]
    for key, line in rows.groupby(keys, dropna=False, sort=False):
        distance = line["distance"].to_numpy(dtype=np.float64, na_value=np.nan)
        x = _clock(line, clock, learning_rate, weight_decay, fork_step)
        said = {"clock": clock, "guide": _CLOCKS[clock]} | _slope(x, distance)
        found.append(dict(zip(keys, key)) | said)
    columns = [*keys, "clock", "exponent", "low", "high", "guide", "points", "status"]
    whole = dict.fromkeys(("layer", "expert", "head"), "Int64")
    return pd.DataFrame(found, columns=columns).astype(whole)


def _slope(x: Values, distance: Values) -> dict[str, float | int | str]:
    """Theil–Sen slope of two logarithms."""
    with np.errstate(invalid="ignore"):
        use = (x > 0) & (distance > 0) & np.isfinite(x) & np.isfinite(distance)
        apart = distance > 0
    points = int(use.sum())
    unknown = {"exponent": np.nan, "low": np.nan, "high": np.nan, "points": points}
    if not points and apart.any():
        return unknown | {"status": "clock not known: no learning-rate schedule, or no ancestor"}
    if points < FEWEST:
        return unknown | {"status": f"too few points: {points}, needs {FEWEST}"}
    fit = scipy_stats.theilslopes(np.log(distance[use]), np.log(x[use]), alpha=0.95)
    return {
        "exponent": float(fit.slope), "low": float(fit.low_slope), "high": float(fit.high_slope),
        "points": points, "status": "descriptive: one pair of branches is one sample",
    }  # fmt: skip


def _clock(
    line: pd.DataFrame,
    kind: str,
    rate: LearningRate | None,
    weight_decay: float,
    fork_step: int | None,
) -> Values:
    """What a distance is held against, at each point of one line."""
    step = line["step"].to_numpy(dtype=np.float64, na_value=np.nan)
    start = line["ancestor_step"].to_numpy(dtype=np.float64, na_value=np.nan)
    begin = start if fork_step is None else np.full(len(line), float(fork_step))
    if kind == "steps":
        since: Values = step - begin
        return since
    power = 2 if kind == "diffusive" else 1
    if rate is not None and kind != "tokens":
        sums = [_since(rate, *at, weight_decay) for at in zip(begin, step)]
        total, decay = (np.array([s[i] for s in sums]) for i in (power - 1, 2))
        return _decayed(total, decay, power)
    if fork_step is not None and not np.all((begin == start) | np.isnan(start)):
        return np.full(len(line), np.nan)  # the columns count from the ancestor
    if kind == "tokens":
        return line["tokens_since"].to_numpy(dtype=np.float64, na_value=np.nan)
    total, decay = (line[c].to_numpy(dtype=np.float64) for c in (_SCHEDULE[power - 1], "decay"))
    return _decayed(total, decay, power)


@lru_cache(maxsize=4096)  # tensors of one checkpoint share it
def _since(
    rate: LearningRate, begin: float, step: float, weight_decay: float
) -> tuple[float, float, float]:
    if not (np.isfinite(begin) and step >= begin):
        return np.nan, np.nan, np.nan
    return rate.between(int(begin), int(step), weight_decay)


def _decayed(total: Values, decay: Values, power: int) -> Values:
    """Clock from sums since the ancestor, at the points where there is one.

    Between two of them the rate is taken as steady, so that what decay left of that stretch has a
    closed form; at a percent of decay a stretch, this is right to 1e-4.
    """
    out = np.full(len(total), np.nan)
    done, before, kept = 0.0, 0.0, 1.0
    for i, (now, left) in enumerate(zip(total, decay)):
        if not (np.isfinite(now) and left > 0):
            continue
        log = power * np.log(left / kept)
        mean = np.expm1(log) / log if log != 0 else 1.0
        done = done * np.exp(log) + (now - before) * mean
        out[i], before, kept = done, now, left
    return out
