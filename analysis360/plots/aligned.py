"""All events over one another: each at its own onset, with a median for the eye."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis360.errors import TableError
from analysis360.plots.axes import given_axes, legend_above
from analysis360.plots.style import (
    DENSE,
    PAGE,
    Drawing,
    Scale,
    branch_colours,
    need_columns,
    owner,
    page,
    scale,
    styled,
)

__all__ = ["plot_aligned"]

TITLE = "plot_aligned"
SAID = {
    "change": "change since\nthe onset", "value": "value",
    "log2_ratio": "log2(value / value\nbefore the onset)",
}  # fmt: skip
SERIES = ("name", "layer", "module", "param", "expert", "head", "state", "against", "statistic")
MEDIAN = "#222222"


@styled
def plot_aligned(
    aligned: pd.DataFrame,
    *,
    column: str = "change",
    by: str | None = None,
    label: str | None = None,
    size: str = "page",
    ax: Axes | Sequence[Axes] | None = None,
) -> Figure:
    """Draw every event from before its onset to after it, with the onsets at zero.

    A thin line is one event, or one tensor in one event. The thick line is the median of the
    lines, for the eye: where the points of different events do not fall together, in bins as wide
    as the points are apart.

    Parameters
    ----------
    aligned : DataFrame
        As ``align_spikes`` returns it: ``branch, event, since_tokens`` or ``since_steps`` and
        `column`, with the columns that tell the series of one event apart.
    column : str
        ``"change"`` (value less the last one before the onset), ``"log2_ratio"``, ``"value"``, or
        another column of the frame.
    by : str, optional
        A panel for each value of this column, for example ``"module"``.
    label : str, optional
        Label of the y axis, with its unit.
    size : str
        ``"column"`` (3.3 inches wide), ``"page"`` (7) or ``"slide"`` (10, with larger type).
    ax : Axes or sequence of Axes, optional
        An axes for each panel.

    Returns
    -------
    Figure

    Raises
    ------
    TableError
        If the frame is empty, lacks columns, has no value to draw or repeats a point, or the axes
        are not one for each panel.

    Examples
    --------
    >>> aligned = pd.DataFrame({
    ...     "run": "demo", "branch": "spike", "event": [1, 1, 2, 2], "since_tokens": [-1, 1, -1, 1],
    ...     "change": [0.0, 0.5, 0.0, 0.7],
    ... })
    >>> [t.get_text() for t in plot_aligned(aligned).axes[0].get_legend().get_texts()][0]
    'spike (n = 2 events)'
    """
    need_columns(aligned, ["branch", "event", column, *([by] if by else [])], TITLE)
    time = _time(aligned)
    rows = aligned[aligned[column].notna()]
    if rows.empty:
        raise TableError(f"{TITLE}: no row has a {column}; draw another column of the frame")
    keys = ["event", *(c for c in ("run", "branch", *SERIES) if c in rows.columns)]
    twice = rows.duplicated([*keys, time.column])
    if twice.any():
        raise TableError(
            f"{TITLE}: {int(twice.sum())} rows repeat a point of one event and series; keep one "
            "run, or the columns that tell the series apart"
        )
    parts = list(dict.fromkeys(rows[by])) if by else [""]
    axes = given_axes(ax, [str(part) for part in parts] if by else [column], TITLE)
    if axes is None:
        axes = _axes(len(parts))
    colours = branch_colours(list(rows["branch"].unique()))
    for part, panel in zip(parts, axes, strict=True):
        mine = rows[rows[by] == part] if by else rows
        _panel(panel, mine, keys, column, time, colours)
        if by:
            panel.set_title(str(part))
    for panel in axes:
        panel.set_xlabel(time.label if ax is not None or panel in axes[-_across(axes) :] else "")
    for panel in axes if ax is not None else axes[:: _across(axes)]:
        panel.set_ylabel(label or SAID.get(column, column))
    _legend(axes[0], rows, keys, colours, time, alone=ax is not None)
    return owner(axes[0])


def _time(aligned: pd.DataFrame) -> Scale:
    for column, what in (("since_tokens", "tokens"), ("since_steps", "steps")):
        if column in aligned.columns and aligned[column].notna().all():
            found = scale(what, float(aligned[column].abs().max()))
            unit = f" ({found.unit})" if found.unit else ""
            return Scale(column, found.factor, f"{what} since the onset{unit}", found.unit)
    raise TableError(
        f"{TITLE}: neither since_tokens nor since_steps is known in every row; "
        "use align_spikes(frame, spikes, column)"
    )


def _across(axes: list[Axes]) -> int:
    """Panels side by side of a new figure."""
    return min(len(axes), 3 if page() >= PAGE else 1)


def _axes(panels: int) -> list[Axes]:
    wide = min(panels, 3 if page() >= PAGE else 1)
    high = -(-panels // wide)
    tall = 2.6 if panels == 1 else 1.5 * high + 0.7
    figure = Drawing(figsize=(PAGE if wide > 1 else 0.7 * PAGE, tall), layout="constrained")
    made = list(figure.subplots(high, wide, sharex=True, squeeze=False).ravel())
    for ax in made[panels:]:
        ax.remove()
    for ax in made[max(panels - wide, 0) : panels]:
        ax.tick_params(labelbottom=True)
    return made[:panels]


def _panel(
    ax: Axes, rows: pd.DataFrame, keys: list[str], column: str, time: Scale, colours: dict[str, str]
) -> None:
    """Draw the lines of one panel and their median."""
    ax.axvline(0.0, color="#555555", lw=0.7, ls=(0, (4, 2)), zorder=1.7)
    if column != "value":
        ax.axhline(0.0, color="#222222", lw=0.5, zorder=1.6)
    dense = len(rows) > DENSE
    groups = rows.groupby(keys, sort=False, dropna=False)
    for _, line in groups:
        line = line.sort_values(time.column, kind="stable")
        y = line[column].to_numpy(dtype=float, na_value=np.nan)
        ax.plot(
            time.of(line[time.column]), y, color=colours[str(line["branch"].iloc[0])], lw=0.5,
            alpha=0.7 if groups.ngroups < 20 else 0.35, rasterized=dense, zorder=2,
            marker="o" if len(line) == 1 else "", ms=2,
        )  # fmt: skip
    if groups.ngroups > 1:
        x, y = _median(rows, keys, column, time)
        ax.plot(x, y, color=MEDIAN, lw=1.4, zorder=3)


def _spacing(rows: pd.DataFrame, keys: list[str], time: Scale) -> float:
    """How far the points of a line are apart, as a rule."""
    ordered = rows.sort_values(time.column, kind="stable")
    steps = ordered.groupby(keys, sort=False, dropna=False)[time.column].diff().dropna()
    return float(steps.median()) if len(steps) else 1.0


def _median(
    rows: pd.DataFrame, keys: list[str], column: str, time: Scale
) -> tuple[np.ndarray, np.ndarray]:
    """Median of the lines in bins about the onset; none where under two lines have a point.

    No bin holds points of both sides of the onset: a bin is left of zero, at it, or right of it.
    """
    width = _spacing(rows, keys, time)
    since = rows[time.column].astype(float)
    bins = np.sign(since) * np.ceil(since.abs() / width)
    found = pd.DataFrame({
        "bin": bins, "x": since, "y": rows[column].astype(float),
        "line": rows.groupby(keys, sort=False, dropna=False).ngroup(),
    }).groupby("bin")  # fmt: skip
    middle = found[["x", "y"]].median()[found["line"].nunique() > 1]
    return middle["x"].to_numpy() / time.factor, middle["y"].to_numpy()


def _legend(
    ax: Axes,
    rows: pd.DataFrame,
    keys: list[str],
    colours: dict[str, str],
    time: Scale,
    *,
    alone: bool,
) -> None:
    event = [c for c in ("run", "branch", "event") if c in rows.columns]
    handles = []
    for branch, mine in rows.groupby("branch", sort=False):
        events, lines = (len(mine[k].drop_duplicates()) for k in (event, keys))
        said = f"{events} event{'s' * (events != 1)}" + (f", {lines} lines" * (lines != events))
        handles.append(
            Line2D([], [], color=colours[str(branch)], lw=0.8, label=f"{branch} (n = {said})")
        )
    if len(rows[keys].drop_duplicates()) > 1:
        handles.append(
            Line2D([], [], color=MEDIAN, lw=1.4, label="median of the lines (for the eye)")
        )
    if alone or len(owner(ax).axes) == 1:
        legend_above(ax, 3, handles=handles)
    else:
        owner(ax).legend(handles=handles, loc="outside upper left", ncols=3)
