"""The section on the loss: figures, the spikes, gap and setback."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from analysis360.errors import Analysis360Error
from analysis360.plots import plot_loss
from analysis360.report.gather import Material
from analysis360.report.page import Section, absent, bullets, frame_table, said
from analysis360.report.source import file_of

__all__ = ["gap_lines", "loss_section"]


def loss_section(made: Material) -> Section:
    """Draw the loss and list its spikes, and how far the branches are apart in it."""
    section = Section("loss", "Loss and spikes")
    if made.loss is None:
        section.add(absent("Training loss: not given."))
    else:
        _draw_loss(section, made)
        _zoom(section, made)
    if made.heldout is None:
        section.add(absent("Held-out loss: not given."))
    for spikes, where in (
        (made.spikes, "training loss"),
        (made.heldout_spikes, "held-out loss"),
    ):
        _spike_table(section, spikes, where)
    _periods(section, made)
    _setback(section, made)
    return section


def gap_lines(made: Material) -> list[str]:
    """Sentence for the summary: the gap of the loss before the first event, and late."""
    gaps = made.pieces.get("gaps")
    if gaps is None or gaps.empty:
        return []
    told = []
    for period in ("before", "late"):
        rows = gaps[gaps["period"].eq(period)]
        if len(rows) and pd.notna(rows.iloc[0]["gap"]):
            told.append(f"{period}: {_interval(rows.iloc[0].to_dict())}")
    if not told:
        return []
    return [
        f"Gap of the training loss, {made.branch} less {made.to}, at matched tokens, in nats per "
        f"token. {'; '.join(told)}. One pair of branches; not attributed to the spikes."
    ]


def _interval(row: dict[Any, Any]) -> str:
    low, high = row.get("gap_low"), row.get("gap_high")
    between = f" ({low:+.4f} to {high:+.4f})" if pd.notna(low) and pd.notna(high) else ""
    status = said(row.get("status"))
    note = "" if status in ("–", "ok") else f" ({status})"
    return f"{row['gap']:+.4f}{between}, n = {said(row['n'])} samples{note}"


def _periods(section: Section, made: Material) -> None:
    gaps = made.pieces.get("gaps")
    if gaps is None or gaps.empty:
        if "gaps" in made.notes:
            section.add(absent(f"Gap by period: {made.notes['gaps']}"))
        return
    columns = [
        "period", "from_step", "to_step", "n", "gap", "gap_low", "gap_high", "gap_sd",
        "setback_steps", "setback_tokens", "status",
    ]  # fmt: skip
    section.add(
        frame_table(
            gaps[[c for c in columns if c in gaps.columns]],
            f"Gap of the training loss by period: {made.branch} less {made.to} at matched tokens, "
            "in nats per token, with its 95 % interval, which allows for the correlation of "
            "neighbouring samples; gap sd: standard deviation of single samples. Setback: how much "
            "earlier the reference was first as low. One pair of branches: the gap is not "
            "attributed to the spikes.",
            most=60,
        )
    )


def _draw_loss(section: Section, made: Material) -> None:
    loss, run = made.loss, made.run
    assert loss is not None
    sizes = loss.groupby("branch", sort=False).size()
    counts = ", ".join(f"{branch} {n:,}" for branch, n in sizes.items())
    parts = [
        f"Training loss at every logged step (column loss of the log; n = {counts}): thin as "
        "logged, thick a rolling median for the eye.",
        "Shaded: sustained spikes from onset to end, hatched where the log ends first; triangles: "
        "fast spikes.",
    ]
    if made.heldout is not None:
        parts.append(
            f"Second panel: held-out loss with one standard error (n = {len(made.heldout):,} "
            "evaluations)."
        )
    if "grad_norm" in loss.columns:
        parts.append("Last panel: norm of the gradient before clipping, as logged.")
    if run is not None and run.events:
        parts.append("Dashed lines: events that the run's description names.")

    def draw() -> Figure:
        return plot_loss(
            loss, made.spikes, events=run.events if run else (), heldout=made.heldout,
            checkpoints=run.checkpoints if run else None,
        )  # fmt: skip

    alt = "Loss of all branches over the tokens seen"
    section.attempt(draw, " ".join(parts), alt, _sources(made))


def _zoom(section: Section, made: Material) -> None:
    """Draw the part of the log around forks and spikes, if it is a part."""
    loss, spikes = made.loss, made.spikes
    assert loss is not None
    forked = loss.groupby("branch", sort=False)["step"].min()
    begin = [int(s) for s in forked[forked > forked.min()]]
    found = [f for f in (spikes, made.heldout_spikes) if f is not None and len(f)]
    begin += [int(s) for f in found for s in f["onset"].dropna()]
    if not begin:
        return
    last = int(loss["step"].max())
    ends = [int(s) for f in found for s in f["recovery"].fillna(last)]
    span = (last - int(loss["step"].min())) // 16
    low, high = min(begin) - span, max([*begin, *ends]) + span
    inside = loss[loss["step"].between(low, high)]
    if high - low > 0.8 * (last - int(loss["step"].min())):
        return
    held = made.heldout
    if held is not None:
        held = held[held["step"].between(low, high)]
    events = [e for e in (made.run.events if made.run else ()) if low <= e.step <= high]
    checkpoints = made.run.checkpoints if made.run else None
    if checkpoints is not None:
        checkpoints = checkpoints[checkpoints["step"].between(low, high).fillna(False)]

    def draw() -> Figure:
        return plot_loss(
            inside, spikes, events=events, heldout=held if held is not None and len(held) else None,
            checkpoints=checkpoints,
        )  # fmt: skip

    caption = (
        f"The same, from step {int(inside['step'].min()):,} to {int(inside['step'].max()):,}: "
        "around forks and spikes."
    )
    section.attempt(draw, caption, "Loss around forks and spikes", _sources(made))


def _sources(made: Material) -> str:
    held = f" Held-out loss: {file_of(made, 'heldout')}" if made.heldout is not None else ""
    return file_of(made, "loss") + held


def _spike_table(section: Section, spikes: pd.DataFrame | None, where: str) -> None:
    if spikes is None:
        if where == "training loss":
            section.add(absent("Spikes: not given, and no loss to search."))
        return
    if spikes.empty:
        section.say(f"No spike was found in the {where}.")
        return
    columns = [
        "branch", "channel", "class", "onset", "peak", "end", "recovery", "onset_tokens",
        "baseline", "height", "z", "excess_area", "residual",
    ]  # fmt: skip
    sorted_ = spikes.sort_values("channel", key=lambda c: c.ne("sustained"), kind="stable")
    shown = sorted_[[c for c in columns if c in spikes.columns]]
    section.add(
        frame_table(
            shown,
            f"Spikes of the {where} (n = {len(spikes)}): sustained first. Onset, peak, end and "
            "recovery are training steps; baseline, height and residual nats; z is height "
            "in robust standard deviations; excess area nats × steps; – in end: not in the log."
            + _preset(spikes),
            most=30,
        )
    )
    _reasons(section, sorted_)


def _preset(spikes: pd.DataFrame) -> str:
    if "preset" not in spikes.columns:
        return ""
    return f" Preset: {', '.join(dict.fromkeys(spikes['preset'].astype(str)))}."


def _reasons(section: Section, spikes: pd.DataFrame) -> None:
    """Say of each spike by which rule it has its class; too long for a column."""
    if not {"class", "class_reason"} <= set(spikes.columns):
        return
    classed = spikes[spikes["class"].fillna("").ne("")]
    lines = [
        f"{s['branch']}, onset at step {said(s['onset'])}: {s['class']}; {s['class_reason']}."
        for s in classed.head(30).to_dict("records")
    ]
    if lines:
        section.say("Classes, by rules on the loss alone, which name no cause:", "above")
        section.add(bullets(lines))


def _setback(section: Section, made: Material) -> None:
    """Gap and setback of the held-out loss at every common step, from the table arm."""
    frame = made.heldout if made.heldout is not None else made.loss
    if frame is None or made.branch is None or made.to is None:
        return
    from analysis360.spikes import spike_gap

    try:
        gap = spike_gap(frame, made.branch, made.to, smooth=1 if frame is made.heldout else 5)
    except Analysis360Error as error:
        section.add(absent(f"Gap at matched tokens: {error}"))
        return
    name = "held-out" if frame is made.heldout else "training"
    keep = gap.iloc[:: max(1, len(gap) // 12)]
    if keep.index[-1] != gap.index[-1]:
        keep = pd.concat([keep, gap.tail(1)])
    renamed = keep.rename(columns={"value": made.branch, "reference": made.to})
    section.add(
        frame_table(
            renamed,
            f"Gap of the {name} loss of {made.branch} to {made.to} at matched tokens, in nats per "
            f"token ({len(keep)} of {len(gap):,} common steps). Setback: how much earlier "
            f"{made.to} was first as low; negative where the branch is ahead; – where it never was "
            "in the log.",
        )
    )
