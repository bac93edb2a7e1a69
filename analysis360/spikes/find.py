"""Loss spikes found and cut into onset, peak, end and recovery: one row each."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis360.spikes.classes import Outcome, classify
from analysis360.spikes.history import check_loss, with_history
from analysis360.spikes.presets import preset_levels, preset_of
from analysis360.spikes.segments import (
    Event,
    Rule,
    Series,
    fast_events,
    flagged_events,
    rule_for,
    running_median,
    sustained_events,
)
from analysis360.spikes.stated import (
    stated_events,
    stated_level,
    stated_residual,
    stated_status,
)

__all__ = ["find_spikes"]

_MARKS = ("onset", "peak", "end", "recovery")
_COLUMNS = {
    "branch": "str", "channel": "str", **dict.fromkeys(_MARKS, "Int64"),
    **{f"{mark}_tokens": "Int64" for mark in _MARKS},
    **dict.fromkeys(("baseline", "sigma", "peak_loss", "height", "z"), "float64"),
    "excess_area": "float64", "residual": "float64", "censored": "bool", "points": "Int64",
    "class": "str", "class_reason": "str", "preset": "str", "status": "str",
}  # fmt: skip


def find_spikes(
    loss: pd.DataFrame,
    *,
    column: str | None = None,
    preset: str = "robust",
    baseline: float | str | None = None,
    window: int | None = None,
    threshold: float | None = None,
    floor: float = 0.05,
    smooth: int = 5,
    minimum: int | None = None,
) -> pd.DataFrame:
    """Find the loss spikes of every branch of a log.

    Parameters
    ----------
    loss : DataFrame
        LOSS frame, as from `analysis360.read_loss`.
    column : str, optional
        Column to search; its unit is called nat below. By default that of the preset: ``"loss"``,
        or ``"grad_norm"`` for ZClip.
    preset : str
        Rule by name, see `spike_presets`; `floor`, `smooth` and `minimum` are of ``"robust"`` only.
    baseline : float or str, optional
        A stated baseline instead of a moving one, for an excerpt too short to have any: a number
        in nat; ``"fit"`` for ``a + b log(step)``, fitted to the whole branch by Theil and Sen's
        median of slopes (which up to 29 % of elevated samples do not move far); or the name of
        another branch, whose values are interpolated in steps.
    window : int, optional
        Samples of the baseline, those before the sample that is judged. By default 128, that of
        OLMo-core's stability monitor; where a branch has fewer than 512 samples, with its history,
        a quarter of them, but at least 16. Of another preset: its own.
    threshold : float, optional
        Robust standard deviations above the baseline at which an event starts. By default 6
        (OLMo-core's), or that of the preset.
    floor : float
        Least excess, as a fraction of the baseline, so that a very quiet log is not over-read.
    smooth : int
        Samples of the centred running median that the sustained channel looks at; odd.
    minimum : int, optional
        Least samples of a baseline; until then nothing is judged. By default ``window // 4``, but
        at least 8 (or the window).

    Returns
    -------
    DataFrame
        One row per event, in order of branch and onset:

        - ``branch``; ``channel``: ``"sustained"``, or ``"fast"`` for isolated samples, which are
          more often a matter of the batch than of the optimizer;
        - ``onset, peak, end, recovery``: training steps, each also with ``_tokens``. `end` is the
          first sample that is back, `recovery` the first at the baseline itself;
        - ``baseline``, ``sigma``: nat, frozen at the onset; ``peak_loss``, ``height`` =
          peak_loss - baseline: nat; ``z`` = height / sigma (NaN where sigma is 0);
        - ``excess_area``: the excess over the baseline summed over steps (nat times steps), from
          the onset to before the end; a lower bound when censored;
        - ``residual``: nat that the loss lies above the extrapolated baseline after the event;
          NaN for fast events, and where too few samples follow;
        - ``censored``: the log ends before the event does, so `end` and `recovery` are missing;
        - ``points``: samples from the onset to before the end;
        - ``class``: ``"neutral"``, ``"benign"``, ``"malignant"``, ``"catastrophic"``, or empty
          where the rules below cannot tell; ``class_reason``: the rule that gave it, with numbers;
        - ``preset``; ``status``: ``"ok"``, or what the event rests on (a stated baseline, and
          whether the branch is too short to detect in).

        ``.attrs["spikes"]`` counts per branch: ``judged`` samples, ``unjudged`` ones (no baseline
        yet), ``nonfinite`` ones (ignored), the ``window`` used, and ``inherited`` events that were
        under way when the branch began and so are its parent's.

    Raises
    ------
    LogError
        If a column is missing or not numeric, a step repeats, or a setting is out of range.

    Notes
    -----
    *Start.* With m and s the median and 1.4826 times the median absolute deviation of the `window`
    samples before, a sample is high above ``m + max(threshold * s, floor * |m|)``. The baseline
    never holds samples of a sustained event: a mean and a standard deviation, or a baseline that
    went on moving, would be inflated by the spike itself.

    *Sustained.* The running median is high. The onset is the first raw sample that is high in the
    running median's reach. There the event's own baseline is frozen: m and s of the last
    ``window // 2`` values of the running median, since a falling loss has left the older ones
    behind, or those of the start where these are lower, since a creeping onset would lift its own
    baseline. (If this shows an earlier sample in reach to be high too, that one is the onset.) The
    event ends with the first sample from which on `smooth` values of the running median are at or
    below ``m + max(threshold / 2 * s, floor / 2 * |m|)``. The peak is the highest raw sample
    between. The first and last ``smooth // 2`` samples have no running median, so a log that breaks
    off on its first high samples shows them as fast and censored.

    *Fast.* Raw samples that are high and in no sustained event, taken together where they are at
    most ``smooth // 2`` samples apart. The running median of 5 is not moved by 2 samples, so these
    events have as a rule 1 to 3. Their baseline and sigma are m and s at the onset.

    *Residual.* ``a + b log(tokens)`` (of steps, where tokens are not known) is fitted, by Theil and
    Sen's median of slopes, to the ``window // 2`` samples before the onset; the residual is the
    median distance from it of as many samples from the end on. Against a flat baseline every spike
    would seem to recover well, because the loss was still falling. At places without a spike in two
    real logs this read 0.03 nat (root mean square), so less is no finding. Where there is another
    branch, `spike_gap` says more.

    *Classes* (of losses, in nats and steps; the names are Bai et al.'s, the rules are stated here):
    neutral is a fast event that is over in the log. A sustained one is benign if it lasts less than
    100 steps (K2's distinction) and its residual is at most 0.06 nat (twice the 0.03 above);
    malignant if it lasts longer, leaves more, or is cut off by the end of the log; catastrophic if
    it is cut off after at least 1,000 steps, with the median of its last quarter over half of its
    height above the baseline. A class says nothing of the gap to another branch: see
    `summarize_gap`.

    *Presets* but the robust one flag single samples; an event is an unbroken run of these, and its
    baseline and sigma are the rule's own at its onset. Of a rule for both sides an event may
    lie below, with a negative height.

    *Stated baseline.* Samples are high above ``b + max(threshold * s, floor * |b|)``, where s is
    1.4826 times the median absolute deviation of the branch from its baseline if it has enough
    samples to judge (four times the least baseline), else unknown and left out. An event
    ends at the first sample at or below half of that excess; high samples at most ``smooth // 2``
    apart are one event, and it is sustained if it has more than that. The residual is the median
    excess over the stated baseline after the event (NaN for fewer than 2 samples).

    *Branches.* A branch is judged with its parent's rows before its first step (and theirs) as
    history, so a spike right after a fork is found. Events count in the branch where they begin.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> values = 3 + 0.01 * np.sin(np.arange(300.0))
    >>> values[200:210] += 2
    >>> log = pd.DataFrame({"branch": "a", "parent": None, "step": range(300), "loss": values})
    >>> found = find_spikes(log)
    >>> found[["channel", "onset", "end", "points", "censored"]]
         channel  onset  end  points  censored
    0  sustained    200  210      10     False
    """
    rule_of = preset_of(preset)
    column = rule_of.column if column is None else column
    check_loss(loss, column)
    above = rule_of.threshold if threshold is None else threshold
    rows: list[dict[str, object]] = []
    counts: dict[str, dict[str, int]] = {}
    for branch in map(str, pd.unique(loss["branch"])):
        series, nonfinite = branch_series(loss, branch, column, smooth)
        size = len(series.value)
        if preset == "robust":
            rule = rule_for(size, window, above, floor, smooth, minimum)
        else:
            wide = rule_of.window if window is None else window
            rule = rule_for(size, wide, above, 0.0, smooth, None)
        level = None if baseline is None else stated_level(loss, branch, column, series, baseline)
        if level is not None:
            events, center = stated_events(series, rule, level)
        elif preset == "robust":
            events, (center, spread) = sustained_events(series, rule)
            events += fast_events(series, rule, (center, spread), events)
        else:
            flagged, center, spread = preset_levels(series.value, rule_of, rule.window, above)
            events = flagged_events(flagged, center, spread, smooth, series.value)
        status = "ok" if level is None else stated_status(baseline, size, rule)
        mine = sorted((e for e in events if e.onset >= series.own), key=lambda e: e.onset)
        for event in mine:
            row = _describe(event, series, rule, events, level)
            if preset != "robust" and level is None:
                row["residual"] = np.nan
            kind, reason = _class(event, series, row, column)
            rows.append(
                {"branch": branch, **row, "class": kind, "class_reason": reason}
                | {"preset": preset, "status": status}
            )
        judged = int(np.isfinite(center[series.own :]).sum())
        counts[branch] = {
            "judged": judged,
            "unjudged": size - series.own - judged,
            "nonfinite": nonfinite,
            "window": rule.window,
            "inherited": sum(e.onset < series.own < e.end for e in events),
        }
    frame = pd.DataFrame(rows, columns=list(_COLUMNS)).astype(_COLUMNS)
    frame.attrs["spikes"] = counts
    return frame


def _class(event: Event, series: Series, row: dict[str, object], column: str) -> tuple[str, str]:
    if "loss" not in column:
        return "", "classes are of losses"
    over = min(event.end, len(series.step) - 1)
    inside = series.value[event.onset : event.end]
    return classify(
        Outcome(
            fast=event.channel == "fast",
            censored=event.censored,
            steps=int(series.step[over] - series.step[event.onset]),
            height=float(str(row["height"])),
            residual=float(str(row["residual"])),
            late=float(np.median(inside[-max(len(inside) // 4, 1) :])) - event.baseline,
        )
    )


def branch_series(loss: pd.DataFrame, branch: str, column: str, smooth: int) -> tuple[Series, int]:
    """Finite samples of a branch after those of its ancestors; how many of its own are not."""
    rows, own = with_history(loss, branch)
    value = rows[column].to_numpy(dtype=np.float64, na_value=np.nan)
    fine = np.isfinite(value)
    rows, value = rows[fine], value[fine]
    tokens = rows["tokens"] if "tokens" in rows else pd.Series(pd.NA, rows.index, dtype="Int64")
    series = Series(
        value=value,
        smooth=running_median(value, smooth),
        step=rows["step"].to_numpy(dtype=np.int64),
        tokens=tokens.to_numpy(dtype=np.float64, na_value=np.nan),
        own=int(fine[:own].sum()),
    )
    return series, int((~fine[own:]).sum())


def _describe(
    event: Event, series: Series, rule: Rule, events: list[Event], level: np.ndarray | None
) -> dict[str, object]:
    value, size = series.value, len(series.value)
    distance = value[event.onset : event.end] - (
        event.baseline if level is None else level[event.onset : event.end]
    )
    # a rule that looks to both sides finds events below, too
    peak = event.onset + int(np.argmax(distance if distance.max() > 0 else -distance))
    height = float(distance[peak - event.onset])
    marks: dict[str, int | None] = {
        "onset": event.onset,
        "peak": peak,
        "end": None if event.censored else event.end,
        "recovery": None if event.censored else _recovery(event, series, events),
    }
    steps = {name: None if at is None else int(series.step[at]) for name, at in marks.items()}
    tokens = {
        f"{name}_tokens": None if at is None or np.isnan(seen := series.tokens[at]) else int(seen)
        for name, at in marks.items()
    }
    # each sample stands for the steps up to the next one; the last of a log for as many as before
    width = np.diff(series.step, append=2 * series.step[-1] - series.step[-2])
    inside = slice(event.onset, event.end)
    excess = np.maximum(distance, 0.0)
    return {
        "channel": event.channel, **steps, **tokens,
        "baseline": event.baseline, "sigma": event.sigma, "peak_loss": float(value[peak]),
        "height": height, "z": height / event.sigma if event.sigma > 0 else np.nan,
        "excess_area": float((excess * width[inside]).sum()),
        "residual": _residual(event, series, rule, events) if level is None
        else stated_residual(event, series, level),
        "censored": event.censored, "points": min(event.end, size) - event.onset,
    }  # fmt: skip


def _recovery(event: Event, series: Series, events: list[Event]) -> int | None:
    """First sample from the end on that is at the baseline, before the next sustained event."""
    later = [e.onset for e in events if e.channel == "sustained" and e.onset >= event.end]
    line = series.value if event.channel == "fast" else series.smooth
    line = line[event.end : min(later, default=len(line))]
    there = np.flatnonzero(line >= event.baseline if event.below else line <= event.baseline)
    return event.end + int(there[0]) if len(there) else None


def _residual(event: Event, series: Series, rule: Rule, events: list[Event]) -> float:
    """Median distance, after the event, from a + b log(tokens) fitted before it."""
    if event.censored or event.channel == "fast":
        return float("nan")
    kept = np.ones(len(series.value), dtype=bool)
    for other in events:
        if other.channel == "sustained":
            kept[other.onset : other.end] = False
    clock = series.tokens if np.isfinite(series.tokens).all() else series.step.astype(np.float64)
    kept &= clock > 0
    half = max(rule.window // 2, rule.minimum)
    before = np.flatnonzero(kept[: event.onset])[-half:]
    after = event.end + np.flatnonzero(kept[event.end :])[:half]
    if min(len(before), len(after)) < rule.minimum:
        return float("nan")
    # Theil and Sen's median of slopes: samples just before the onset may be up already
    x, y = np.log(clock[before]), series.value[before]
    i, j = np.triu_indices(len(x), 1)
    slope = float(np.median((y[j] - y[i]) / (x[j] - x[i])))
    expected = np.median(y - slope * x) + slope * np.log(clock[after])
    return float(np.median(series.value[after] - expected))
