"""Benchmark scores over training, with standard errors and the gap between branches."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from analysis360.plots.style import (
    PAGE,
    Drawing,
    Scale,
    branch_colours,
    clock,
    need_columns,
    styled,
)

__all__ = ["plot_benchmarks"]

TITLE = "plot_benchmarks"
NORMAL_95 = 1.959964


@styled
def plot_benchmarks(joined: pd.DataFrame, *, columns: int = 4) -> Figure:
    """Draw every benchmark of every branch, and below it the gap at matched tokens.

    Parameters
    ----------
    joined : DataFrame
        As `analysis360.join_benchmarks` returns it; a frame of `analysis360.read_benchmarks` has
        no gaps and gives the upper panels alone.
    columns : int
        Benchmarks side by side.

    Returns
    -------
    Figure
        Above: value plus and minus one standard error. Below: value less reference, with
        1.96 standard errors of the difference (95 %) and a line at zero.

    Raises
    ------
    TableError
        If the frame is empty or lacks columns.

    Examples
    --------
    >>> scores = pd.DataFrame({
    ...     "branch": "normal", "step": [10, 20], "tokens": [1000, 2000], "benchmark": "digits",
    ...     "metric": "acc", "value": [0.3, 0.4], "stderr": 0.02,
    ... })
    >>> plot_benchmarks(scores).axes[0].get_title(loc="left")
    'digits'
    """
    need_columns(joined, ["branch", "benchmark", "metric", "value"], TITLE)
    if columns < 1:
        raise ValueError(f"{TITLE}: columns must be at least 1, not {columns}")
    time = clock(joined, title=TITLE)
    keys = [c for c in ("benchmark", "shots", "metric") if c in joined.columns]
    groups = list(joined.groupby(keys, sort=False, dropna=False))
    gaps = "gap" in joined.columns and bool(joined["gap"].notna().any())
    high = -(-len(groups) // columns)
    wide = -(-len(groups) // high)
    tall = (2.25 if gaps else 1.5) * high + 0.6
    figure = Drawing(figsize=(PAGE if wide > 1 else PAGE / 2, tall), layout="constrained")
    each = 2 if gaps else 1
    grid = figure.add_gridspec(each * high, wide, height_ratios=[1.5, 1.0][:each] * high)
    colours = branch_colours(list(joined["branch"].unique()))
    same = joined["metric"].nunique() == 1
    for place, (_, rows) in enumerate(groups):
        line, column = divmod(place, wide)
        top = figure.add_subplot(grid[each * line, column])
        _scores(top, rows, time, colours)
        if column > 0 and same:
            top.set_ylabel("")
        bottom = top
        if gaps:
            bottom = figure.add_subplot(grid[each * line + 1, column], sharex=top)
            top.tick_params(labelbottom=False)
            _gap(bottom, rows, time, colours)
            if column == 0:
                bottom.set_ylabel(_gap_label(rows))
        top.set_title(_name(rows))
        if place + wide >= len(groups):
            bottom.set_xlabel(time.label)
    _legend(figure, joined, colours, gaps)
    return figure


def _name(rows: pd.DataFrame) -> str:
    first = rows.iloc[0]
    name = str(first["benchmark"])
    more = []
    if "shots" in rows.columns and pd.notna(first["shots"]) and int(first["shots"]) > 0:
        more.append(f"{int(first['shots'])}-shot")
    if "n" in rows.columns and rows["n"].notna().any():
        low, high = int(rows["n"].min()), int(rows["n"].max())
        more.append(f"n = {low:,}" if low == high else f"n = {low:,}–{high:,}")
    return name + (f"\n{', '.join(more)}" if more else "")


def _scores(ax: Axes, rows: pd.DataFrame, time: Scale, colours: dict[str, str]) -> None:
    for branch, line in rows.groupby("branch", sort=False):
        line = line.sort_values(time.column, kind="stable")
        x, y = time.of(line[time.column]), line["value"].to_numpy(dtype=float, na_value=np.nan)
        colour = colours[str(branch)]
        ax.plot(x, y, color=colour, marker="o", ms=2, lw=0.9)
        if "stderr" in line.columns and line["stderr"].notna().any():
            error = line["stderr"].to_numpy(dtype=float, na_value=np.nan)
            ax.fill_between(x, y - error, y + error, color=colour, alpha=0.22, lw=0)
    better = list(rows["higher_is_better"].dropna()) if "higher_is_better" in rows.columns else []
    arrow = "" if not better else (" ↑" if better[0] else " ↓")
    metric = str(rows["metric"].iloc[0])
    ax.set_ylabel(metric + arrow if len(metric) < 16 else metric.replace("_", "\n", 1) + arrow)


def _gap(ax: Axes, rows: pd.DataFrame, time: Scale, colours: dict[str, str]) -> None:
    ax.axhline(0.0, color="#222222", lw=0.7, zorder=1.6)
    known = rows[rows["gap"].notna()]
    if "reference_branch" in known.columns:
        known = known[known["branch"] != known["reference_branch"]]
    for branch, line in known.groupby("branch", sort=False):
        line = line.sort_values(time.column, kind="stable")
        x, y = time.of(line[time.column]), line["gap"].to_numpy(dtype=float, na_value=np.nan)
        colour = colours[str(branch)]
        ax.plot(x, y, color=colour, marker="o", ms=2, lw=0.9)
        if "gap_stderr" in line.columns and line["gap_stderr"].notna().any():
            band = NORMAL_95 * line["gap_stderr"].to_numpy(dtype=float, na_value=np.nan)
            ax.fill_between(x, y - band, y + band, color=colour, alpha=0.22, lw=0)
    if known.empty:
        ax.text(0.5, 0.5, "no matched checkpoint", transform=ax.transAxes, ha="center", va="center")


def _gap_label(rows: pd.DataFrame) -> str:
    if "reference_branch" in rows.columns and rows["reference_branch"].notna().any():
        return f"gap to\n{rows['reference_branch'].dropna().iloc[0]}"
    return "gap"


def _legend(figure: Figure, joined: pd.DataFrame, colours: dict[str, str], gaps: bool) -> None:
    handles: list[Line2D | Patch] = [
        Line2D([], [], color=colour, marker="o", label=branch) for branch, colour in colours.items()
    ]
    if "stderr" in joined.columns and joined["stderr"].notna().any():
        said = "band: ± 1 standard error" + ("; of the gap: 95 %" if gaps else "")
        handles.append(Patch(facecolor="#888888", alpha=0.3, label=said))
    figure.legend(handles=handles, loc="outside upper left", ncols=min(len(handles), 5))
