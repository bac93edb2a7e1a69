"""Checks before two branches are compared, and where and when they first left the band."""

from __future__ import annotations

from math import inf
from typing import Any

import pandas as pd

from analysis360.plots import plot_crossings
from analysis360.report.gather import Material
from analysis360.report.page import Section, absent, escape, frame_table, said
from analysis360.report.words import amount, listed

__all__ = ["check_table", "departure_lines", "departure_part"]

TIED = 20
"""Most tied tensors in the page; all are in the download."""


def check_table(section: Section, made: Material) -> None:
    """Show the checks that guard a comparison, passed or not."""
    checks = made.pieces.get("checks")
    section.add("<h3>Checks before the comparison</h3>")
    if checks is None or checks.empty:
        section.add(absent(f"Checks: {made.notes.get('checks', 'not given.')}"))
        return
    sizes = checks["result"].value_counts()
    count = ", ".join(f"{n} {result}" for result, n in sizes.items())
    columns = ["check", "result", "value", "limit", "where", "note"]
    section.add(frame_table(
        checks[columns], f"What has to hold for {made.branch} and {made.to} to be compared "
        f"(n = {len(checks)}: {count}). A check that fails is reported, and the comparison is "
        "shown all the same.", stacked=True,
    ))  # fmt: skip


def departure_lines(made: Material) -> list[str]:
    """Sentences for the summary: checks that failed, and the first departure."""
    lines = []
    checks = made.pieces.get("checks")
    if checks is not None and len(checks):
        failed = checks.loc[checks["result"].eq("FAIL"), "check"].astype(str).tolist()
        held = int(checks["result"].eq("PASS").sum())
        other = len(checks) - held - len(failed)
        lines.append(
            f"Checks before the comparison: {held} of {len(checks)} passed, {len(failed)} failed"
            + (f" ({listed(failed)})" if failed else "")
            + f", {other} could not be made or do not apply."
        )
    found = made.pieces.get("departures")
    if found is not None and len(found):
        lines += [_told(rows) for _, rows in found.groupby(["branch", "to"], sort=False)]
    return lines


def departure_part(section: Section, made: Material) -> None:
    """Add where and when the branches first left the band, as a set of tied tensors."""
    section.add("<h3>Where and when they first left the band</h3>")
    found = made.pieces.get("departures")
    if found is None or found.empty:
        section.add(absent(f"First departure: {made.notes.get('departures', 'not given.')}"))
    else:
        _departures(section, found)
    scores = made.pieces.get("scores")
    if scores is not None and len(scores):
        _phases(section, scores)
    _crossings(section, made)


def _departures(section: Section, found: pd.DataFrame) -> None:
    for _, rows in found.groupby(["branch", "to"], sort=False):
        section.say(_told(rows), "note")
        left = rows[rows["observed"].notna() & rows["by_step"].notna()]
        if left.empty:
            continue
        columns = [
            "name", "layer", "module", "state", "statistic", "z", "outside", "after_step",
            "by_step", "phase",
        ]  # fmt: skip
        section.add(frame_table(
            left[[c for c in columns if c in left.columns]],
            f"The {len(left)} tied rows over the threshold at the first checkpoint outside the "
            "band. They are one set: within it the data give no order, since a departure is known "
            "only to the interval between two checkpoints.", most=TIED,
        ))  # fmt: skip


def _told(rows: pd.DataFrame) -> str:
    first: dict[Any, Any] = rows.iloc[0].to_dict()
    pair = f"{first['branch']} and {first['to']}"
    if pd.isna(first.get("by_step")):
        status = f" ({first['status']})" if said(first.get("status")) != "–" else ""
        return f"Departure: {pair} did not leave the band at any checkpoint{status}."
    where = f"after step {said(first['after_step'])} and by step {said(first['by_step'])}"
    if pd.notna(first.get("by_tokens")):
        where += f" ({amount(first['by_tokens'])})"
    phase = f", {_phase(str(first['phase']))}" if said(first.get("phase")) != "–" else ""
    text = (
        f"Departure: {pair} first left the band {where}{phase}, in {len(rows)} tied "
        f"{'rows' if len(rows) > 1 else 'row'} of tensor and statistic. The largest |z| is "
        f"{_size(float(rows['observed'].abs().max()))} against a threshold of "
        f"{said(first['threshold'])}, which is on the maximum over {said(first.get('tests'))} "
        f"values looked at"
    )
    if first.get("label") == "calibrated":
        return (
            f"{text}, for a familywise level of {said(first.get('familywise'))} from "
            f"{said(first.get('placebos'))} placebo branch"
            f"{'' if first.get('placebos') == 1 else 'es'} ({said(first.get('status'))})."
        )
    return (
        f"{text}. There were not enough placebo branches to calibrate it: z is descriptive, in "
        "units of the scatter between tensors, and no false-positive rate belongs to it."
    )


def _size(z: float) -> str:
    return "infinite (there the undisturbed branches are all equal)" if z == inf else said(z)


def _phase(name: str) -> str:
    known = {
        "before": "before the onset of the spike", "onset": "in the interval that holds the onset",
        "after": "after the onset, when most differences are consequences",
    }  # fmt: skip
    return known.get(name, name)


def _phases(section: Section, scores: pd.DataFrame) -> None:
    """Count values and their largest |z| before, in and after the interval of the onset."""
    rows = scores[scores["z"].notna()]
    if "phase" not in rows.columns or rows.empty:
        return
    lines = []
    for phase, mine in rows.groupby("phase", sort=False):
        top = mine.iloc[[int(mine["z"].abs().to_numpy(dtype=float).argmax())]].to_dict("records")[0]
        lines.append({
            "phase": str(phase) or "no onset given", "checkpoints": mine["step"].nunique(),
            "values": len(mine), "largest |z|": abs(float(top["z"])),
            "in": top.get("name") or top.get("module") or "all tensors",
            "statistic": top["statistic"], "step": top["step"],
        })  # fmt: skip
    label = ", ".join(dict.fromkeys(rows["label"].astype(str)))
    section.add(frame_table(
        pd.DataFrame(lines), f"Scores by phase (n = {len(rows):,} values; z is {label}). The "
        "largest of many is large by chance too: only the threshold above is corrected for it.",
    ))  # fmt: skip


def _crossings(section: Section, made: Material) -> None:
    found = made.pieces.get("crossings")
    if found is None or found.empty:
        return
    alt = "When each series first left its band"
    caption = (
        f"When each of {len(found)} series first left its band, as the interval between its last "
        "sample inside and its first outside. Series are sampled at different rates: an interval "
        "that begins earlier did not for that reason begin to move earlier."
    )
    section.attempt(lambda: plot_crossings(found), caption, alt)
    columns = [c for c in ("kind", "name", "after_step", "by_step", "after_tokens", "by_tokens",
                           "z", "threshold", "n", "status") if c in found.columns]  # fmt: skip
    shown = frame_table(found[columns], f"{escape(alt)} (n = {len(found)} series).", most=100)
    section.add(shown)
