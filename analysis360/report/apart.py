"""The section on two branches: heat maps, distance, and the largest differences."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from analysis360.plots import plot_divergence, plot_layers
from analysis360.report.departure import check_table, departure_part
from analysis360.report.gather import Material
from analysis360.report.heat import heat_data
from analysis360.report.page import Section, absent, frame_table
from analysis360.report.pieces import RANKED
from analysis360.report.source import bytes_of
from analysis360.report.words import Point, definition, partner, points

__all__ = ["RANKED", "apart_section"]

MAPS = (("rms", "weight"), ("stable_rank", "weight"), ("grad_norm_ema", "adam"))
TOP = 15


def apart_section(made: Material) -> Section:
    """Hold two branches against each other: where they differ, how far, what most."""
    section = Section("branches", "Branches apart")
    if made.branch is None or made.to is None:
        section.add(absent(
            "Comparison of branches: not given. No pair was named (branch=, to=), the table has no "
            "branches “spike” and “normal”, and no fork of the run is in it."
        ))  # fmt: skip
        return section
    if "apart" in made.notes:
        section.add(absent(made.notes["apart"]))
    check_table(section, made)
    departure_part(section, made)
    section.add("<h3>Layer by checkpoint</h3>")
    _heat_maps(section, made)
    section.add("<h3>How far apart</h3>")
    _divergence(section, made)
    for point in points(made)[:1]:
        _top(section, made, point)
        _by_layer(section, made, point)
    return section


def _heat_maps(section: Section, made: Material) -> None:
    assert made.branch is not None and made.to is not None
    apart = made.apart.get("tensor", made.apart.get("layer"))
    if apart is None:
        section.add(absent("Layer by checkpoint: not given (needs a table of tensors or layers)."))
        return
    between = made.branch, made.to
    begin = apart.loc[apart["status"].eq("matched"), "step"].min()
    left = apart.loc[apart["step"].lt(begin), "step"].nunique()
    apart = apart[apart["step"].ge(begin).fillna(False)]
    for statistic, state in MAPS:
        rows = apart[apart["statistic"].eq(statistic) & apart["state"].eq(state)]
        rows = rows[rows["against"].eq("") & rows["log2_ratio"].notna()]
        if rows.empty:
            what = f"Heat map of {statistic} ({state})"
            section.add(absent(f"{what}: not measured in both branches."))
            continue
        source = "weights" if state == "weight" else "Adam's two moments"
        caption = (
            f"{statistic} of {source}, log2({made.branch} / {made.to}) at equal tokens: 0 is "
            f"equal, +1 twice. {definition(statistic)} n = {len(rows):,} pairs of tensors. "
            "Checkpoints are in order and not to scale; hatched: no matched value, such as a "
            "checkpoint of one branch only, or a spectrum of a vector."
        )
        if left:
            caption += f" {left} checkpoints before the first common one are not drawn."

        def draw(name: str = statistic, state: str = state) -> Figure:
            return plot_layers(apart, name, state=state, between=between)

        def heat(figure: Figure, name: str = statistic, state: str = state) -> str:
            return heat_data(figure, apart, name, state=state, between=between)

        alt = f"Heat map of {statistic} by layer and checkpoint"
        section.attempt(draw, caption, alt, bytes_of(made, state), heat)


def _divergence(section: Section, made: Material) -> None:
    level = next((lv for lv in ("module", "all") if lv in made.levels), None)
    table = made.levels[level] if level else made.table
    if level is None or "displacement" not in table.columns:
        section.add(absent(
            "Displacement over tokens: not given (needs a table by module or over all tensors, "
            "with the statistic displacement against the partner)."
        ))  # fmt: skip
        return
    forks = made.run.forks if made.run else ()
    known = "since the fork" if forks else "seen (the fork is not known)"
    placebo = any(str(b).startswith("placebo") for b in table["branch"].unique())
    reference = " Grey: the placebo branch, which postponed an ordinary chunk." if placebo else ""
    other = partner(made, str(made.branch))
    caption = (
        f"Left: Euclidean distance between the weights of {made.branch} and of {other} at equal "
        f"tokens, over the tokens {known}, one line per module.{reference} Guides: slope 1/2 as of "
        f"two random walks, slope 1 as of a steady drift. Right: {definition('cosine')} The "
        "reference is the fork point, or the partner where the label says so."
    )

    def draw() -> Figure:
        return plot_divergence(table, branches=_branches(made, table), forks=forks)

    section.attempt(
        draw, caption, "Distance between branches over tokens", bytes_of(made, "weight")
    )


def _branches(made: Material, table: pd.DataFrame) -> list[str] | None:
    rows = table[(table["against"] == "partner") & table["displacement"].notna()]
    there = [str(b) for b in rows["branch"].unique()]
    if made.branch not in there:
        return None
    return [made.branch, *(b for b in there if b.startswith("placebo") and b != made.branch)]


def _top(section: Section, made: Material, point: Point) -> None:
    level = next((lv for lv in ("tensor", "module", "layer", "all") if lv in made.apart), None)
    if level is None:
        return
    rows = point.of(made.apart[level])
    rows = rows[rows["against"].eq("") & rows["statistic"].isin(RANKED)]
    rows = rows[rows["log2_ratio"].notna()]
    total = len(rows)
    rows = rows.loc[rows["log2_ratio"].abs().sort_values(ascending=False).index].head(TOP)
    columns = ["name", "layer", "module", "state", "statistic", "value", "reference", "log2_ratio"]
    shown = rows[columns]
    shown = shown.rename(columns={"value": made.branch, "reference": made.to})
    section.add(
        frame_table(
            shown.loc[:, [c for c in shown if level == "tensor" or c != "name"]],
            f"The {len(shown)} largest of {total:,} ratios at {point.why}, {point.name}, among "
            f"{', '.join(RANKED)}. A list of the largest of many has large entries also where "
            "nothing in particular happened.",
        )
    )


def _by_layer(section: Section, made: Material, point: Point) -> None:
    apart = made.apart.get("layer")
    if apart is None:
        return
    rows = point.of(apart)
    rows = rows[rows["against"].eq("") & rows["statistic"].isin(RANKED)]
    rows = rows[rows["log2_ratio"].notna()]
    rows = rows[~(rows["statistic"].eq("rms") & rows["state"].ne("weight"))]
    rows = rows[~(rows["statistic"].eq("max_abs") & rows["state"].ne("weight"))]
    if rows.empty:
        return
    label = rows["layer"].astype("string").fillna("outside")
    wide = rows.assign(layer_=label).pivot(index="layer_", columns="statistic", values="log2_ratio")
    wide = wide.loc[list(dict.fromkeys(label)), [s for s in RANKED if s in wide.columns]]
    order = sorted(wide.index, key=lambda v: (not v.isdigit(), int(v) if v.isdigit() else 0))
    shown = wide.loc[order].reset_index(names="layer")
    section.add(
        frame_table(
            shown,
            f"log2({made.branch} / {made.to}) of every layer at {point.why}, {point.name}; "
            "statistics are taken over all elements of a layer.",
        )
    )
