"""A branch held against another at matched tokens: gap and setback."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis360.errors import LogError
from analysis360.spikes.find import find_spikes
from analysis360.spikes.history import check_loss, with_history
from analysis360.spikes.segments import median_to_the_edge

__all__ = ["spike_gap", "summarize_gap"]

ALONE = "one pair; not attributed"
"""What every row says: one pair of branches is n = 1, whatever its intervals are."""

_SUMMARY = {
    "period": "str", "from_step": "Int64", "to_step": "Int64", "from_tokens": "Int64",
    "to_tokens": "Int64", "n": "Int64", "gap": "float64", "gap_low": "float64",
    "gap_high": "float64", "gap_sd": "float64", "setback_steps": "float64",
    "setback_tokens": "float64", "status": "str", "note": "str",
}  # fmt: skip


def spike_gap(
    loss: pd.DataFrame,
    branch: str,
    to: str,
    *,
    column: str = "loss",
    smooth: int = 5,
    interpolate: bool = False,
) -> pd.DataFrame:
    """Gap of a branch to another at matched tokens, and its setback.

    Parameters
    ----------
    loss : DataFrame
        LOSS frame with both branches.
    branch, to : str
        The branch that spiked, and the reference.
    column : str
        Column to compare.
    smooth : int
        Samples of the centred running median from which the setback is taken; 1 for none. The
        first time that a noisy reference is as low would otherwise be too early. The gap is not
        smoothed.
    interpolate : bool
        Take the reference between its samples, on the straight line, where the two were not sampled
        at the same tokens; not beyond its ends. For a smooth series, such as a held-out loss.

    Returns
    -------
    DataFrame
        One row per step of `branch` that has a partner in `to` (or in its history): ``step``,
        ``tokens``, ``value``, ``reference``, ``gap`` = value - reference (nat), ``setback_steps``,
        ``setback_tokens``: how much earlier the reference was first at or below this value,
        ``t - inf{t' : reference(t') <= value(t)}``. Negative where the branch is ahead; missing
        where the reference never gets that low. A setback needs values that are comparable over
        time: a held-out loss, or one on shuffled data, not one that follows the batch at hand.
        Partners have equal tokens (equal steps if tokens
        are missing for both).

    Raises
    ------
    LogError
        If a branch is not in the log, or no row has a partner.

    Examples
    --------
    >>> import pandas as pd
    >>> log = pd.DataFrame({
    ...     "branch": ["n"] * 4 + ["s"] * 2, "parent": [None] * 4 + ["n"] * 2,
    ...     "step": [1, 2, 3, 4, 3, 4], "tokens": [10, 20, 30, 40, 30, 40],
    ...     "loss": [5.0, 4.0, 3.0, 2.0, 6.0, 4.0]})
    >>> spike_gap(log, "s", "n", smooth=1)[["step", "gap", "setback_tokens"]]
       step  gap  setback_tokens
    0     3  3.0              20
    1     4  2.0              20
    """
    check_loss(loss, column)
    there = [str(name) for name in pd.unique(loss["branch"])]
    for name in (branch, to):
        if name not in there:
            raise LogError(f"no branch {name!r} in the log; it has {there}")
    mine, own = with_history(loss, branch)
    other, _ = with_history(loss, to)
    frames = []
    for rows in (mine, other):
        tokens = rows["tokens"] if "tokens" in rows else pd.Series(pd.NA, rows.index)
        frame = pd.DataFrame({"step": rows["step"], "tokens": tokens}).astype("Int64")
        frame["value"] = rows[column].astype("float64")
        frame["smooth"] = median_to_the_edge(frame["value"].to_numpy(), smooth)
        frames.append(frame.reset_index(drop=True))
    left, right = frames[0].iloc[own:], frames[1]
    clock = "step" if left["tokens"].isna().all() and right["tokens"].isna().all() else "tokens"
    right = right[right[clock].notna()]
    partner = right[[clock, "value"]].rename(columns={"value": "reference"})
    if interpolate:
        both = _between(left[left[clock].notna()], partner, clock)
    else:
        both = left[left[clock].notna()].merge(partner, on=clock, how="inner")
    if both.empty:
        ends = ((branch, left[clock]), (to, right[clock]))
        spans = "; ".join(f"{name!r} has {said.min()} … {said.max()}" for name, said in ends)
        raise LogError(f"no {clock} is in both branches: {spans}")
    both["gap"] = both["value"] - both["reference"]
    # the lowest so far only falls: where it first is as low is found by bisection
    lowest = right["smooth"].cummin().to_numpy(dtype=np.float64)
    at = np.searchsorted(-lowest, -both["smooth"].to_numpy(dtype=np.float64))
    reached = pd.Series((at < len(right)) & both["smooth"].notna().to_numpy())
    for name in ("step", "tokens"):
        then = right[name].iloc[np.minimum(at, len(right) - 1)].reset_index(drop=True)
        setback = {"step": "setback_steps", "tokens": "setback_tokens"}[name]
        both[setback] = (both[name] - then).where(reached)
    return both[["step", "tokens", "value", "reference", "gap", "setback_steps", "setback_tokens"]]


def _between(left: pd.DataFrame, partner: pd.DataFrame, clock: str) -> pd.DataFrame:
    """Rows of `left` with the partner's value on the line between its finite samples."""
    known = partner[np.isfinite(partner["reference"])]
    x = known[clock].to_numpy(dtype=np.float64)
    if not len(x):
        return left.iloc[:0].assign(reference=np.nan)
    at = left[clock].to_numpy(dtype=np.float64)
    inside = (at >= x[0]) & (at <= x[-1])
    out: pd.DataFrame = left[inside].reset_index(drop=True)
    out["reference"] = np.interp(at[inside], x, known["reference"].to_numpy())
    return out


def summarize_gap(
    loss: pd.DataFrame,
    branch: str,
    to: str,
    spikes: pd.DataFrame | None = None,
    *,
    column: str = "loss",
    smooth: int = 5,
    interpolate: bool = False,
    start: int | None = None,
) -> pd.DataFrame:
    """Gap and setback of a branch to another before, during, between and after its spikes.

    Parameters
    ----------
    loss : DataFrame
        LOSS frame with both branches.
    branch, to : str
        The branch that spiked, and the reference.
    spikes : DataFrame, optional
        Events as from `analysis360.find_spikes`; the sustained ones of `branch` are used. By
        default they are searched in `column`; for a sparse held-out loss give those of the
        training loss.
    column, smooth, interpolate
        As of `spike_gap`.
    start : int, optional
        First step of the period before. By default half of the way to the first onset, which
        leaves the steep first descent out.

    Returns
    -------
    DataFrame
        One row per period, in order of time: ``period`` (``"before"``; ``"event 1"`` from its onset
        to its recovery, or to its end if it has none; ``"between 1 and 2"``; ``"late"``: after the
        last; ``"all"`` if there is no event); ``from_step, to_step, from_tokens, to_tokens`` of its
        common samples; ``n`` of these; ``gap``: mean of branch - reference (nat); ``gap_low,
        gap_high``: 95 % interval of that mean; ``gap_sd``: SD of the samples; ``setback_steps,
        setback_tokens``: medians; ``status``: ``"ok"`` or why there is no interval; ``note``:
        ``"one pair; not attributed"``.

    Raises
    ------
    LogError
        As `spike_gap`.

    Notes
    -----
    *Interval.* Successive gaps depend on each other. With their lag-1 autocorrelation r, its bias
    taken out by ``r + (1 + 4 r) / n`` (Kendall 1954; at least 0), the mean rests on ``n (1 - r) /
    (1 + r)`` samples, and the interval is that of Student with one degree of freedom less; none is
    given for n < 8 or fewer than 3 such samples. It is for the mean gap *of this pair* in this
    period. It says nothing of what another pair would show: one pair of branches is one
    observation, and what differs between them (the seed, the data's order) is not told from the
    spikes.

    *Why.* Against its own baseline a damaged run can seem recovered; against another branch at
    the same tokens it may stay behind.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> t = np.arange(400)
    >>> normal = 4 - 0.2 * np.log1p(t) + 0.01 * np.sin(t)
    >>> spiky = normal + 2.0 * ((t >= 200) & (t < 220)) + 0.04 * (t >= 220)
    >>> log = pd.concat(
    ...     pd.DataFrame({"branch": b, "parent": None, "step": t, "loss": v})
    ...     for b, v in (("n", normal), ("s", spiky)))
    >>> summarize_gap(log, "s", "n")[["period", "n", "gap"]].round(2)
         period    n   gap
    0    before  100  0.00
    1   event 1   ...
    2      late  ...  0.04
    """
    gap = spike_gap(loss, branch, to, column=column, smooth=smooth, interpolate=interpolate)
    if spikes is None:
        spikes = find_spikes(loss[loss["branch"].isin(_line(loss, branch))], column=column)
    mine = spikes[(spikes["branch"] == branch) & (spikes["channel"] == "sustained")]
    periods = _periods(mine.sort_values("onset"), gap["step"], start)
    rows = [_summary(name, gap[gap["step"].ge(low) & gap["step"].lt(up)], cut)
            for name, low, up, cut in periods]  # fmt: skip
    return pd.DataFrame(rows, columns=list(_SUMMARY)).astype(_SUMMARY)


def _line(loss: pd.DataFrame, branch: str) -> list[str]:
    """A branch and its ancestors, which are its history."""
    rows, _ = with_history(loss, branch)
    return [str(name) for name in pd.unique(rows["branch"])]


def _periods(
    events: pd.DataFrame, step: pd.Series, start: int | None
) -> list[tuple[str, float, float, bool]]:
    """Name, first step, step after the last, and whether an event that never ends precedes."""
    if events.empty:
        return [("all", -np.inf if start is None else start, np.inf, False)]
    first = int(events["onset"].iloc[0])
    begin = step.min() + (first - step.min()) / 2 if start is None else start
    out: list[tuple[str, float, float, bool]] = [("before", float(begin), first, False)]
    onsets = [int(onset) for onset in events["onset"]]
    for at, (_, event) in enumerate(events.iterrows()):
        over = event["end"] if pd.isna(event["recovery"]) else event["recovery"]
        cut = pd.isna(over)
        follows = onsets[at + 1] if at + 1 < len(onsets) else np.inf
        stop = np.inf if cut else float(over)
        out.append((f"event {at + 1}", onsets[at], stop, False))
        name = "late" if np.isinf(follows) else f"between {at + 1} and {at + 2}"
        out.append((name, stop, follows, bool(cut)))
    return out


def _summary(name: str, rows: pd.DataFrame, cut: bool) -> dict[str, object]:
    value = rows["gap"].to_numpy(dtype=np.float64)
    value = value[np.isfinite(value)]
    mean, half, status = _mean_and_half(value)
    if cut:
        status = "the log ends within the last event"
    return {
        "period": name,
        **{f"{end}_{unit}": getattr(rows[unit], how)() if len(rows) else pd.NA
           for end, how in (("from", "min"), ("to", "max")) for unit in ("step", "tokens")},
        "n": len(value), "gap": mean, "gap_low": mean - half, "gap_high": mean + half,
        "gap_sd": float(value.std(ddof=1)) if len(value) > 1 else np.nan,
        "setback_steps": _median(rows["setback_steps"]),
        "setback_tokens": _median(rows["setback_tokens"]),
        "status": status, "note": ALONE,
    }  # fmt: skip


def _median(value: pd.Series) -> float:
    known = value.dropna()
    return float(known.median()) if len(known) else float("nan")


def _mean_and_half(value: np.ndarray) -> tuple[float, float, str]:
    """Mean, half of its 95 % interval given AR(1) dependence, and a status."""
    n = len(value)
    if not n:
        return float("nan"), float("nan"), "no common sample"
    mean = float(value.mean())
    if n < 8:
        return mean, float("nan"), f"too few samples for an interval: {n}, at least 8 are needed"
    away = value - mean
    square = float((away**2).sum())
    if square == 0:
        return mean, 0.0, "ok"
    r = float((away[1:] * away[:-1]).sum()) / square
    r = min(max(r + (1 + 4 * r) / n, 0.0), 0.999)
    rests = n * (1 - r) / (1 + r)
    if rests < 3:
        return (
            mean,
            float("nan"),
            (
                f"too dependent for an interval: {n} samples count as {rests:.1f}, at least 3 are "
                "needed"
            ),
        )
    from scipy.stats import t as student

    # the variance of dependent samples about their own mean is too small by n_eff / (n_eff - 1)
    spread = np.sqrt(square / n * rests / (rests - 1) / rests)
    return mean, float(student.ppf(0.975, rests - 1) * spread), "ok"
