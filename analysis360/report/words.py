"""The summary in plain words: what was read, what was found, by which definition. No causes."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis360.core import Fork
from analysis360.plots.style import scale, short
from analysis360.report.gather import Material
from analysis360.report.page import said
from analysis360.report.plain import plain
from analysis360.table import statistic_columns

__all__ = [
    "Point", "amount", "compared", "definition", "partner", "points", "rounding", "rule",
    "summary",
]  # fmt: skip

CONTROL = (
    "This run is a positive control for the method: a small model, trained to have a spike, in "
    "which the tools should find what is known to be there. It is not a model of the cause of the "
    "spikes of K2."
)
ROUNDING = {"bfloat16": 0.235, "float16": 0.029}
"""Relative RMS difference, in percent, of two roundings of one and the same set of weights."""


@dataclass(frozen=True, slots=True)
class Point:
    """A checkpoint that both branches have; `row` holds number, step and tokens."""

    why: str
    row: dict[Any, Any]

    @property
    def heading(self) -> str:
        """Its reason and its name, with a capital."""
        return f"{self.why[:1].upper()}{self.why[1:]}: {self.name}"

    @property
    def name(self) -> str:
        """For example ``checkpoint 14 (1.43 M tokens)``."""
        return checkpoint(self.row)

    def of(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Rows of a frame at this checkpoint."""
        keep = pd.Series(True, frame.index)
        for column, value in self.row.items():
            same = frame[column].isna() if pd.isna(value) else frame[column].eq(value).fillna(False)
            keep &= same.astype(bool)
        return frame[keep]


def amount(tokens: Any) -> str:
    """Tokens with a unit, for example ``"1.43 M tokens"``."""
    unit = scale("tokens", float(tokens))
    number = short(float(tokens) / unit.factor)
    return f"{number}\u00a0{unit.unit}{' ' if unit.unit else ''}tokens"


def checkpoint(row: dict[Any, Any]) -> str:
    """Name a checkpoint by what is known of it."""
    known = f"checkpoint {row['number']}" if pd.notna(row.get("number")) else f"step {row['step']}"
    return f"{known} ({amount(row['tokens'])})" if pd.notna(row.get("tokens")) else known


def definition(statistic: str) -> str:
    """First line of the docstring of a registered statistic; empty if it is not registered."""
    from analysis360.stats import statistics

    return plain(statistics[statistic].summary) if statistic in statistics else ""


def rule(spikes: pd.DataFrame | None = None) -> str:
    """Define a spike, with the settings of `find_spikes` that are in force."""
    from analysis360.spikes import find_spikes, spike_presets

    s = {n: p.default for n, p in inspect.signature(find_spikes).parameters.items()}
    s["threshold"] = spike_presets().set_index("preset").loc["robust", "threshold"]
    counts = {} if spikes is None else spikes.attrs.get("spikes", {})
    windows = sorted({c["window"] for c in counts.values() if "window" in c})
    if windows:
        s["window"] = " or ".join(str(w) for w in windows)
    elif s["window"] is None:
        s["window"] = "128 (fewer in a short log)"
    return (
        f"A sustained spike starts where the running median of {s['smooth']} samples rises above "
        f"m + max({s['threshold']:g} s, {100 * s['floor']:g} % of m); m and s are the median and "
        f"1.4826 times the median absolute deviation of the {s['window']} samples before. It ends "
        f"where {s['smooth']} values in a row are below m + max({s['threshold'] / 2:g} s, "
        f"{50 * s['floor']:g} % of m), with m and s frozen at the onset. Single samples above the "
        f"first limit are fast spikes."
    )


def points(made: Material) -> list[Point]:
    """Checkpoints to compare at: the last before the reference has its first event, and the last.

    In a run whose restarted branch meets the postponed data later, the comparison that says most
    is the last one before that; an event of the reference branch after the fork marks it.
    """
    apart = next((made.apart[level] for level in made.apart), None)
    if apart is None:
        return []
    rows = apart.loc[apart["status"] == "matched", ["number", "step", "tokens"]]
    rows = rows.drop_duplicates().sort_values("step", kind="stable")
    if rows.empty:
        return []
    found = []
    forked = bool(made.run.forks) if made.run else False
    events = [e for e in made.run.events if e.branch == made.to] if made.run else []
    begin = rows["step"].min()
    for event in sorted(events, key=lambda e: e.step):
        before = rows[rows["step"].lt(event.step)]
        if forked and len(before) and event.step > begin:
            label = f"the last common checkpoint before the event “{event.label}” of {made.to}"
            found.append(Point(label, before.iloc[-1].to_dict()))
            break
    found.append(Point("the last common checkpoint", rows.iloc[-1].to_dict()))
    return found


def summary(made: Material) -> list[str]:
    """Sentences of the summary, in reading order."""
    lines = [_measured(made), *_forks(made)]
    lines += _spikes(made, made.spikes, "training loss")
    if made.heldout is not None and made.heldout_spikes is not None:
        lines += _spikes(made, made.heldout_spikes, "held-out loss")
    elif "heldout_spikes" in made.notes:
        lines.append(made.notes["heldout_spikes"])
    if made.own_spikes:
        lines.append(f"Definition. {rule(made.spikes)}")
    elif made.spikes is not None:
        lines.append("The table of spikes was given; its definition is that of who made it.")
    if made.branch is None or made.to is None:
        lines.append("Branches were not compared: no pair was given, and none could be chosen.")
    elif "apart" in made.notes and not made.apart:
        lines.append(made.notes["apart"])
    return [line for line in lines if line]


def _measured(made: Material) -> str:
    table, name = made.table, made.run.name if made.run else ", ".join(made.table["run"].unique())
    spans = []
    for branch, rows in table.groupby("branch", sort=False):
        first = rows[["number", "step", "tokens"]].drop_duplicates().sort_values("step")
        ends = checkpoint(first.iloc[0].to_dict()), checkpoint(first.iloc[-1].to_dict())
        spans.append(f"{branch}: {len(first)}, {ends[0]} to {ends[1]}")
    count = len(statistic_columns(table))
    states = ", ".join(dict.fromkeys(table["state"]))
    unit = {"tensor": "tensors", "layer": "layers", "module": "modules", "all": ""}[made.level]
    size = table[["name", "layer", "module"]].drop_duplicates().shape[0]
    what = f"{size:,} {unit}" if unit else "all tensors together"
    return (
        f"Run {name}. Measured were {count} statistics of {what} (states: {states}) at these "
        f"checkpoints. {'; '.join(spans)}."
    )


def _forks(made: Material) -> list[str]:
    if made.run is None:
        return []
    left = [f"{f.branch} left {f.parent} after {_point(f)}" for f in made.run.forks]
    return [f"Forks: {listed(left)}."] if left else []


def _spikes(made: Material, spikes: pd.DataFrame | None, where: str) -> list[str]:
    if spikes is None:
        return [f"The {where} was not given, so no spike was searched in it."]
    if spikes.empty:
        return [f"No spike was found in the {where}, by the definition below."]
    sustained = spikes[spikes["channel"] == "sustained"]
    first = sustained["branch"] == made.branch
    sustained = pd.concat([sustained[first], sustained[~first]])
    fast = spikes[spikes["channel"] == "fast"]
    lines = []
    if sustained.empty:
        lines.append(f"No sustained spike was found in the {where}.")
    for spike in sustained.head(8).to_dict("records"):
        lines.append(_one(spike, where) + _event(made, spike))
    if len(sustained) > 8:
        more = len(sustained) - 8
        lines.append(f"{more} more sustained spikes of the {where} are in the table.")
    if len(fast):
        sizes = fast.groupby("branch", sort=False).size()
        each = ", ".join(f"{n} in {branch}" for branch, n in sizes.items())
        lines.append(
            f"Fast spikes (a few samples, more often a matter of the batch) in the {where}: {each}."
        )
    return lines


def _one(spike: dict[Any, Any], where: str) -> str:
    tokens = f", {amount(spike['onset_tokens'])}" if pd.notna(spike.get("onset_tokens")) else ""
    start = (
        f"A spike was found in the {where} of {spike['branch']}: onset at step {spike['onset']:,}"
        f"{tokens}, {said(spike['height'])} nats above a baseline of {said(spike['baseline'])} at "
        f"its peak (step {spike['peak']:,})"
    )
    if pd.isna(spike["end"]):
        return f"{start}. It had not ended where the log ends."
    steps = spike["end"] - spike["onset"]
    return f"{start}, over at step {spike['end']:,}, after {steps:,} steps."


def _event(made: Material, spike: dict[Any, Any]) -> str:
    """Name the last event of the branch up to the onset, without saying that it did anything."""
    events = made.run.events if made.run else ()
    before = [e for e in events if e.branch == spike["branch"] and e.step <= spike["onset"]]
    if not before:
        return ""
    last = max(before, key=lambda e: e.step)
    return f" The last event before it on this branch: “{last.label}”, step {last.step:,}."


def compared(made: Material, point: Point) -> list[str]:
    """Sentences on how far the branches are apart at one checkpoint."""
    lines = []
    distance = _distance(made, point, str(made.branch))
    if distance:
        whom = partner(made, str(made.branch))
        lines.append(f"{made.branch} is apart from {whom} by {distance}.")
        for other in made.table["branch"].unique():
            scatter = _distance(made, point, other) if str(other).startswith("placebo") else ""
            if scatter:
                whom = partner(made, str(other))
                lines.append(f"For reference, {other} is apart from {whom} by {scatter}.")
    return lines + _layers(made, point) + _heldout(made, point)


def partner(made: Material, branch: str) -> str:
    """Name of the branch that a branch was measured against: the one it forked from."""
    parents = [f.parent for f in made.run.forks if f.branch == branch] if made.run else []
    return parents[0] if parents else "its partner"


def _distance(made: Material, point: Point, branch: str) -> str:
    table = made.levels.get("all")
    if table is None:
        return ""
    rows = point.of(table)
    rows = rows[
        (rows["branch"] == branch) & (rows["against"] == "partner") & (rows["state"] == "weight")
    ]
    if len(rows) != 1:
        return ""
    row, parts = rows.iloc[0], []
    if "displacement" in rows and pd.notna(row["displacement"]):
        parts.append(f"{said(row['displacement'])} (Euclidean distance of all weights)")
    if "rel_displacement" in rows and pd.notna(row["rel_displacement"]):
        parts.append(f"{100 * row['rel_displacement']:.3g} % of its norm")
    if "cosine" in rows and pd.notna(row["cosine"]):
        parts.append(f"cosine {row['cosine']:.5g}")
    return ", ".join(parts)


def _layers(made: Material, point: Point) -> list[str]:
    table = made.levels.get("layer")
    lines = []
    if table is not None and "rel_displacement" in table:
        rows = point.of(table)
        rows = rows[
            (rows["branch"] == made.branch) & (rows["against"] == "partner")
            & (rows["state"] == "weight") & rows["rel_displacement"].notna()
        ].nlargest(3, "rel_displacement")  # fmt: skip
        named = [
            f"{layer(r)} ({100 * r['rel_displacement']:.3g} %)" for r in rows.to_dict("records")
        ]
        if named:
            lines.append(f"The largest relative displacements are those of {listed(named)}.")
    apart = made.apart.get("layer")
    if apart is not None:
        rows = point.of(apart)
        rows = rows[rows["statistic"].eq("rms") & rows["state"].eq("weight")]
        rows = rows[rows["against"].eq("") & rows["log2_ratio"].notna()]
        rows = rows.loc[rows["log2_ratio"].abs().nlargest(3).index]
        named = [f"{layer(r)} ({r['log2_ratio']:+.3g})" for r in rows.to_dict("records")]
        if named:
            lines.append(
                f"The RMS of the weights differs most, in log2({made.branch} / {made.to}), in "
                f"{listed(named)}."
            )
    return lines


def _heldout(made: Material, point: Point) -> list[str]:
    frame = made.heldout
    if frame is None or "step" not in frame or pd.isna(point.row["step"]):
        return []
    rows = frame[frame["step"] == point.row["step"]].drop_duplicates("branch").set_index("branch")
    if made.branch not in rows.index or made.to not in rows.index:
        return []
    named = []
    for branch in (made.branch, made.to):
        error = rows.loc[branch].get("stderr")
        band = f" ± {said(float(error))}" if pd.notna(error) else ""
        named.append(f"{said(float(rows.loc[branch, 'loss']))}{band} ({branch})")
    return [f"The held-out loss is {named[0]} and {named[1]} nats per token (± standard error)."]


def layer(row: dict[Any, Any]) -> str:
    """Name of a layer, or of what is outside the layers."""
    return "the tensors outside the layers" if pd.isna(row["layer"]) else f"layer {row['layer']}"


def listed(names: Sequence[str]) -> str:
    """Join names with commas and an "and"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def rounding(made: Material) -> str:
    """Say what rounding alone does to a displacement; nothing for weights of over 16 bits."""
    if "dtype" not in made.table:
        return ""
    stored = made.table.loc[made.table["state"] == "weight", "dtype"].dropna().unique()
    found = [f"{d}: {ROUNDING[d]:g} %" for d in ROUNDING if d in stored]
    if not found:
        return ""
    return (
        "Rounding floor of a relative displacement, from storing two sets of weights in 16 bits: "
        f"about {', '.join(found)} (more where values of another 16-bit type were stored)."
    )


def _point(fork: Fork) -> str:
    return f"step {fork.step:,}" if fork.number is None else f"checkpoint {fork.number}"
