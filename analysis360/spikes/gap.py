"""A branch held against another at matched tokens: gap and setback."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis360.errors import LogError
from analysis360.spikes.history import check_loss, with_history
from analysis360.spikes.segments import median_to_the_edge

__all__ = ["spike_gap"]


def spike_gap(
    loss: pd.DataFrame, branch: str, to: str, *, column: str = "loss", smooth: int = 5
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
