"""How far two branches move apart after their fork."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis360.core import Fork
from analysis360.errors import TableError
from analysis360.plots.axes import given_axes, legend_above
from analysis360.plots.style import (
    OKABE_ITO,
    PAGE,
    Drawing,
    Scale,
    branch_colours,
    clock,
    log_ticks,
    module_rank,
    need_columns,
    owner,
    page,
    scale,
    styled,
)

__all__ = ["plot_divergence"]

TITLE = "plot_divergence"
REFERENCE = "placebo"
GROUP_COLOURS = {
    "attn": OKABE_ITO["blue"], "mlp": OKABE_ITO["vermilion"], "norm": OKABE_ITO["green"],
}  # fmt: skip
OTHER = OKABE_ITO["purple"]
SIDE_BY_SIDE = 5.0
"""Inches that two panels beside one another need; in less they are one above the other."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")


@styled
def plot_divergence(
    table: pd.DataFrame,
    *,
    branches: Sequence[str] | None = None,
    against: str = "partner",
    statistic: str = "displacement",
    state: str = "weight",
    forks: Iterable[Fork] = (),
    size: str = "page",
    ax: Axes | Sequence[Axes] | None = None,
) -> Figure:
    """Draw the distance between branches over the tokens since they parted.

    With the fork known both axes are logarithmic and two guides start at the first point of the
    longest line: slope 1/2, the distance of two random walks, and slope 1, of a steady drift.
    Without it the x axis is the tokens seen, linear, and there are no guides.
    A second panel has the cosine between the two sets of weights, or the relative displacement.

    Parameters
    ----------
    table : DataFrame
        Measured table with rows `against`, at most one for each branch, checkpoint, module and
        parameter: from ``load_table(path, by="all")`` or ``by="module"``.
    branches : sequence of str, optional
        Which to draw. By default all that have such rows; ``"normal"`` is left out where
        ``"spike"`` is there, as the distance of a pair is that of both. Of several, with a table
        of modules, the first is drawn in the colours of its components and the others in grey.
    against, statistic, state : str
        Which rows and which column.
    forks : iterable of Fork, optional
        ``run.forks``: where each branch left its parent.
    size : str
        ``"column"`` (3.3 inches wide), ``"page"`` (7) or ``"slide"`` (10, with larger type).
    ax : Axes or sequence of Axes, optional
        One axes takes the first panel alone, two take both.

    Returns
    -------
    Figure

    Raises
    ------
    TableError
        If the table has no such rows, columns or branches, or several rows for one point, or the
        axes are not one, nor as many as the panels.

    Examples
    --------
    >>> table = pd.DataFrame({
    ...     "branch": "spike", "number": [3, 4], "step": [30, 40], "tokens": [3000, 4000],
    ...     "layer": pd.NA, "module": "", "state": "weight", "against": "partner",
    ...     "displacement": [0.5, 0.7],
    ... })
    >>> plot_divergence(table).axes[0].get_ylabel()
    'displacement to the partner'
    """
    need_columns(table, ["branch", "module", "state", "against", statistic], TITLE)
    forks = tuple(forks)
    rows = _rows(table, against, state, statistic, branches)
    since = _since(table, rows, forks)
    rows, time = _timed(rows, since)
    second = _second(table, against, state, statistic, list(rows["branch"].unique()))
    panels = [f"{statistic} to the {against}"]
    panels += [] if second is None else [f"{second[0]} to the {second[1]}"]
    axes = _axes(ax, panels)
    _panel(axes[0], rows, statistic, time)
    axes[0].set_yscale("log")
    axes[0].set_ylabel(f"{_said(statistic)} to the {against}")
    if since:
        for panel in axes:
            panel.set_xscale("log")
        _guides(axes[0], rows, statistic, time)
    if second is not None and len(axes) > 1:
        column, role, wanted = second
        mine, _ = _timed(wanted, since)
        _panel(axes[1], mine, column, time)
        axes[1].set_ylabel(f"{_said(column)} to the {role}")
        if column == "rel_displacement":
            axes[1].set_yscale("log")
    for panel in axes:
        if ax is not None or panel is axes[-1] or page() >= SIDE_BY_SIDE:
            panel.set_xlabel(time.label)
        for axis in (panel.xaxis, panel.yaxis):
            if axis.get_scale() == "log":
                log_ticks(axis)
    handles, labels = axes[0].get_legend_handles_labels()
    figure = owner(axes[0])
    title = _title(rows)
    if ax is None and len(labels) > 4 and page() < SIDE_BY_SIDE:
        figure.legend(handles, labels, loc="outside upper left", ncols=3, title=title)
    elif ax is None and len(labels) > 4:
        figure.legend(handles, labels, loc="outside right center", title=title)
    else:
        legend_above(axes[0], 3, title=title)
    return figure


def _title(rows: pd.DataFrame) -> str | None:
    """Title of a legend that names modules: which branch they are of, and how many points."""
    if rows["module"].fillna("").eq("").all():
        return None
    first = rows[rows["branch"] == rows["branch"].iloc[0]]
    return f"{first['branch'].iloc[0]} (n = {first['x'].nunique()} checkpoints)"


def _said(statistic: str) -> str:
    return statistic.replace("rel_", "relative ").replace("_", " ")


def _rows(
    table: pd.DataFrame, against: str, state: str, statistic: str, branches: Sequence[str] | None
) -> pd.DataFrame:
    rows = table[(table["against"] == against) & (table["state"] == state)]
    rows = rows[rows[statistic].notna()]
    if rows.empty:
        there = table[["state", "against"]].drop_duplicates().to_dict("records")
        raise TableError(
            f"{TITLE}: no row has state {state!r}, against {against!r} and a {statistic}; "
            f"there are {there}"
        )
    known = [str(branch) for branch in rows["branch"].unique()]
    if branches is None:
        branches = [b for b in known if not (b == "normal" and "spike" in known)]
        branches = sorted(branches, key=lambda b: (b.startswith(REFERENCE), b != "spike"))
    absent = [b for b in branches if b not in known]
    if absent:
        raise TableError(f"{TITLE}: no such rows for the branches {absent}; there are {known}")
    place = {branch: i for i, branch in enumerate(branches)}
    rows = rows[rows["branch"].isin(place)]
    return rows.sort_values("branch", key=lambda b: b.map(place), kind="stable")


def _since(table: pd.DataFrame, rows: pd.DataFrame, forks: tuple[Fork, ...]) -> dict[str, float]:
    """Tokens at the point where each branch parted from the others; empty if not known for all.

    A trunk that others left parted from them where the first of its forks is.
    """
    if "tokens" not in table.columns or "number" not in table.columns:
        return {}
    found: dict[str, float] = {}
    for branch in dict.fromkeys(rows["branch"]):
        mine = [f for f in forks if f.branch == branch] or [f for f in forks if f.parent == branch]
        for fork in mine:
            there = (
                table["number"] == fork.number
                if fork.number is not None
                else table["step"] == fork.step
            )
            at = table[(table["branch"] == fork.parent) & there.fillna(False)]
            tokens = at["tokens"].dropna()
            if len(tokens):
                found[branch] = min(found.get(branch, np.inf), float(tokens.iloc[0]))
    return found if len(found) == rows["branch"].nunique() else {}


def _timed(rows: pd.DataFrame, since: dict[str, float]) -> tuple[pd.DataFrame, Scale]:
    if not since:
        return rows.assign(x=rows[clock(rows, title=TITLE).column]), clock(rows, title=TITLE)
    x = rows["tokens"].astype("Float64") - rows["branch"].map(since).astype("Float64")
    rows = rows.assign(x=x)[x.gt(0).fillna(False)]
    if rows.empty:
        raise TableError(f"{TITLE}: no checkpoint lies after the forks at {since} tokens")
    time = scale("tokens", float(rows["x"].max()))
    label = f"tokens since the fork{f' ({time.unit})' if time.unit else ''}"
    return rows, Scale("x", time.factor, label, time.unit)


def _second(
    table: pd.DataFrame, against: str, state: str, statistic: str, branches: list[str]
) -> tuple[str, str, pd.DataFrame] | None:
    """Choose the second panel: cosine to the ancestor, or relative displacement."""
    for column, role in (("cosine", "ancestor"), ("rel_displacement", against)):
        if column == statistic or column not in table.columns:
            continue
        rows = table[
            (table["against"] == role) & (table["state"] == state)
            & table["branch"].isin(branches) & table[column].notna()
        ]  # fmt: skip
        if len(rows):
            place = {branch: i for i, branch in enumerate(branches)}
            return (
                column,
                role,
                rows.sort_values("branch", key=lambda b: b.map(place), kind="stable"),
            )
    return None


def _axes(ax: Axes | Sequence[Axes] | None, panels: list[str]) -> list[Axes]:
    given = given_axes(ax, panels, TITLE, first=True)
    if given is not None:
        return given
    two = len(panels) == 2
    if two and page() < SIDE_BY_SIDE:
        figure = Drawing(figsize=(PAGE, 5.0), layout="constrained")
        return list(figure.subplots(2, 1, sharex=True))
    figure = Drawing(figsize=(PAGE if two else 0.7 * PAGE, 2.7), layout="constrained")
    return list(figure.subplots(1, len(panels), squeeze=False)[0])


def _panel(ax: Axes, rows: pd.DataFrame, column: str, time: Scale) -> None:
    first = rows["branch"].iloc[0]
    rows = rows.sort_values("module", key=lambda m: m.fillna("").map(module_rank), kind="stable")
    rows = rows.sort_values("branch", key=lambda b: b.ne(first), kind="stable")
    key = [c for c in ("layer", "module", "param", "expert", "head", "name") if c in rows.columns]
    twice = rows.duplicated(["branch", "x", *key])
    if twice.any():
        raise TableError(f"{TITLE}: {int(twice.sum())} rows repeat a point; keep one run")
    modules = list(dict.fromkeys(rows["module"].fillna("")))
    whole = modules == [""]
    lines = rows.groupby(["branch", *key], sort=False, dropna=False)
    if not whole and rows.duplicated(["branch", "x", "module", *_param(rows)]).any():
        raise TableError(
            f"{TITLE}: several tensors of one module at one checkpoint; "
            f'use load_table(path, by="module") or by="all"'
        )
    colours = branch_colours(list(rows["branch"].unique()))
    placebos = [b for b in rows["branch"].unique() if str(b).startswith(REFERENCE)]
    looks = _looks(modules)
    said: set[str] = set()
    look: dict[str, Any]
    for keys, line in lines:
        branch = str(keys[0])
        line = line.sort_values("x", kind="stable")
        x, y = time.of(line["x"]), line[column].to_numpy(dtype=float, na_value=np.nan)
        if whole:
            label, look = f"{branch} (n = {len(line)})", {"color": colours[branch], "marker": "o"}
            if branch in placebos:
                look |= {"ls": "--", "color": OKABE_ITO["grey"]}
                if len(placebos) > 1:
                    label = f"placebos (n = {len(placebos)} branches)"
        elif branch == first:
            label, look = str(line["module"].iloc[0]), looks[str(line["module"].iloc[0])]
        else:
            label = f"{branch}, any module"
            look = {"color": OKABE_ITO["grey"], "ls": "--", "lw": 0.7, "alpha": 0.7, "zorder": 1.9}
        ax.plot(x, y, label=None if label in said else label, **look)
        said.add(label)


def _param(rows: pd.DataFrame) -> list[str]:
    return [c for c in ("param",) if c in rows.columns]


def _looks(modules: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Colour by component, marker by module inside it."""
    counts: dict[str, int] = {}
    looks: dict[str, dict[str, Any]] = {}
    for module in modules:
        colour = GROUP_COLOURS.get(module.split(".")[0], OTHER)
        place = counts.get(colour, 0)
        counts[colour] = place + 1
        looks[module] = {
            "color": colour, "marker": MARKERS[place % len(MARKERS)], "lw": 0.9, "mfc": "white",
            "mew": 0.8,
        }  # fmt: skip
    return looks


def _guides(ax: Axes, rows: pd.DataFrame, column: str, time: Scale) -> None:
    """Draw slopes 1/2 and 1 through the first point of the line that has most points."""
    size = rows.groupby(["branch", "module"], sort=False, dropna=False).size()
    branch, module = size.index[int(size.to_numpy().argmax())]
    line = rows[(rows["branch"] == branch) & (rows["module"] == module)].sort_values("x")
    x = time.of(line["x"])
    start = float(line[column].iloc[0])
    if x[0] <= 0 or not start > 0 or x[-1] <= x[0]:
        return
    limits = ax.get_ylim()  # the guides may leave the picture, the data may not shrink for them
    for slope, name, dash in ((0.5, "slope 1/2", (0, (1, 1.5))), (1.0, "slope 1", (0, (5, 2)))):
        y = start * (x / x[0]) ** slope
        ax.plot(x, y, color="#444444", lw=0.8, ls=dash, zorder=1.5, label=name)
    ax.set_ylim(limits)
