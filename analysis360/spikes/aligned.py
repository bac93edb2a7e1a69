"""All events of one or several runs beside one another, aligned at their onset."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis360.errors import TableError
from analysis360.spikes.history import with_history

__all__ = ["align_spikes"]

_IDENTITY = ("name", "layer", "module", "param", "expert", "head", "state", "against", "statistic")
_FIRST = {"run": "str", "branch": "str", "event": "Int64", "onset": "Int64",
          "onset_tokens": "Int64"}  # fmt: skip
_LAST = {
    **dict.fromkeys(("step", "tokens", "since_steps", "since_tokens"), "Int64"),
    **dict.fromkeys(("value", "before", "change", "log2_ratio"), "float64"),
}


def align_spikes(
    frame: pd.DataFrame,
    spikes: pd.DataFrame,
    column: str,
    *,
    before: float,
    after: float,
    by: str | None = None,
) -> pd.DataFrame:
    """Align a series at the onsets of spikes.

    Parameters
    ----------
    frame : DataFrame
        A LOSS frame, a measured table, or any other with ``branch`` and ``step``.
    spikes : DataFrame
        Events, as from `analysis360.find_spikes`; all of them are taken, so choose first. With a
        column ``run`` where the frame has several runs.
    column : str
        Column of `frame` to align.
    before, after : float
        How far to look to either side of the onset, in tokens or steps (see `by`).
    by : str, optional
        ``"tokens"`` or ``"step"``: unit of `before` and `after`. By default tokens, if the spikes
        and the frame have them.

    Returns
    -------
    DataFrame
        One row per event and point: ``run`` (empty for a frame without), ``branch``, ``event``
        (1, 2, ... in each branch, by onset), ``onset``, ``onset_tokens``; the frame's own
        identifying columns (tensor, ``state``, ``against``); ``step``, ``tokens``, ``since_steps``,
        ``since_tokens`` (negative before the onset); ``value``; ``before``: that of the same series
        at its last point before the onset (NaN if there is none in the frame); ``change`` = value -
        before; ``log2_ratio`` of the two (NaN unless both are positive).

    Raises
    ------
    TableError
        If a column is missing, or the frame has several runs and the spikes do not say which.

    Notes
    -----
    The point before is the last in the frame, be it inside `before` or not. In a frame with
    ``parent`` (a LOSS frame) a branch has its parent's rows before its first step as its past.
    Windows of events that are close overlap, so the time after one may hold the next.

    Examples
    --------
    >>> import pandas as pd
    >>> log = pd.DataFrame({"branch": "a", "step": [1, 2, 3, 4], "loss": [4.0, 2.0, 8.0, 2.0]})
    >>> spikes = pd.DataFrame({"branch": ["a"], "onset": [3]})
    >>> aligned = align_spikes(log, spikes, "loss", before=1, after=1)
    >>> aligned[["since_steps", "change", "log2_ratio"]]
       since_steps  change  log2_ratio
    0           -1     0.0         0.0
    1            0     6.0         2.0
    2            1     0.0         0.0
    """
    for what, names, has in (
        ("frame", ("branch", "step", column), frame),
        ("spikes", ("branch", "onset"), spikes),
    ):
        missing = [name for name in names if name not in has.columns]
        if missing:
            raise TableError(f"{what}: columns {missing} are missing; it has {list(has.columns)}")
    runs = [str(run) for run in pd.unique(frame["run"])] if "run" in frame else [""]
    if len(runs) > 1 and "run" not in spikes:
        raise TableError(f"the frame has runs {runs}; a column 'run' of the spikes must say which")
    clock = _clock(frame, spikes, by)
    identity = [name for name in _IDENTITY if name in frame.columns]
    ordered = spikes.sort_values("onset").assign(
        run=spikes["run"].astype(str) if "run" in spikes else runs[0]
    )
    parts = []
    for run in pd.unique(ordered["run"]):
        here = frame[frame["run"].astype(str) == run] if "run" in frame else frame
        for branch, events in ordered[ordered["run"] == run].groupby("branch", sort=False):
            if not (here["branch"] == branch).any():
                continue
            rows = with_history(here, str(branch))[0] if "parent" in here else here
            rows = rows if "parent" in here else rows[rows["branch"] == branch]
            for number, (_, event) in enumerate(events.iterrows(), 1):
                one = _one(rows, event, column, identity, clock, (before, after))
                parts.append(one.assign(run=run, branch=str(branch), event=number))
    dtypes = {**_FIRST, **{name: frame[name].dtype for name in identity}, **_LAST}
    out = pd.concat(parts) if parts else pd.DataFrame(columns=list(dtypes))
    return out[list(dtypes)].astype(dtypes).reset_index(drop=True)


def _clock(frame: pd.DataFrame, spikes: pd.DataFrame, by: str | None) -> str:
    known = (
        "tokens" in frame and "onset_tokens" in spikes
        and bool(frame["tokens"].notna().any()) and bool(spikes["onset_tokens"].notna().all())
    )  # fmt: skip
    if by is None:
        return "tokens" if known else "step"
    if by not in ("tokens", "step") or (by == "tokens" and not known):
        why = "" if by not in ("tokens", "step") else "; tokens are not known for all"
        raise TableError(f"by={by!r}: allowed are 'tokens' and 'step'{why}")
    return by


def _one(
    rows: pd.DataFrame,
    event: pd.Series,
    column: str,
    identity: list[str],
    clock: str,
    reach: tuple[float, float],
) -> pd.DataFrame:
    """One event: the points around it, each with its series' last value before the onset."""
    onset, seen = int(event["onset"]), event.get("onset_tokens", pd.NA)
    tokens = rows["tokens"] if "tokens" in rows else pd.Series(pd.NA, rows.index)
    out: pd.DataFrame = rows[identity].assign(
        step=rows["step"].astype("Int64"), tokens=tokens.astype("Int64"),
        onset=onset, onset_tokens=seen, value=rows[column].astype("float64"),
    )  # fmt: skip
    out["since_steps"] = out["step"] - onset
    out["since_tokens"] = pd.NA if pd.isna(seen) else out["tokens"] - int(seen)
    out = out[np.isfinite(out["value"])].sort_values("step")
    earlier = out[out["step"] < onset]
    if identity:
        last = earlier.drop_duplicates(identity, keep="last")[[*identity, "value"]]
        out = out.merge(last.rename(columns={"value": "before"}), on=identity, how="left")
    else:
        out["before"] = earlier["value"].iloc[-1] if len(earlier) else np.nan
    since = out["since_steps" if clock == "step" else "since_tokens"]
    near = (since.ge(-reach[0]) & since.le(reach[1])).fillna(False)
    out = out.loc[near.to_numpy(dtype=bool)].copy()
    out["change"] = out["value"] - out["before"]
    both = (out["value"] > 0) & (out["before"] > 0)
    ratio = out["value"].where(both) / out["before"].where(both)
    done: pd.DataFrame = out.assign(log2_ratio=np.log2(ratio))
    return done
