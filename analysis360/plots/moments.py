"""Adam's two moments over training: update size, signal against noise, gradient scale, epsilon."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from analysis360.errors import TableError
from analysis360.plots.axes import given_axes, legend_above
from analysis360.plots.style import (
    DENSE,
    OKABE_ITO,
    PAGE,
    Drawing,
    Scale,
    branch_colours,
    clock,
    log_ticks,
    need_columns,
    owner,
    page,
    styled,
)
from analysis360.plots.wrapping import wrapped

__all__ = ["plot_moments"]

TITLE = "plot_moments"
PANELS: dict[str, str] = {
    "update_rms": "RMS of Adam's update\n(units of the learning rate)",
    "adam_snr": "signal to noise,\nm² against v (ratio)",
    "grad_norm_ema": "√Σv̂: averaged\ngradient norm",
    "eps_fraction": "elements with √v̂\nbelow epsilon (share)",
}
NULL = "adam_snr_null"
MAP = "viridis"
OUTSIDE = OKABE_ITO["vermilion"]


@styled
def plot_moments(
    table: pd.DataFrame,
    *,
    size: str = "page",
    ax: Axes | Sequence[Axes] | None = None,
) -> Figure:
    """Draw what the two moments of Adam say, over the tokens seen, for each branch.

    Four panels: RMS of the bias-corrected update, signal-to-noise ratio with the value that noise
    alone would give (column ``adam_snr_null``), root of the summed second moment (logarithmic),
    and the share of elements whose root second moment is below epsilon. A table of layers gives a
    column of panels for each branch and a line for each layer.

    Parameters
    ----------
    table : DataFrame
        Measured table with rows of state ``"adam"``, from ``load_table(path, by="all")`` or
        ``by="layer"``. Rows that compare two checkpoints are left out.
    size : str
        ``"column"`` (3.3 inches wide), ``"page"`` (7) or ``"slide"`` (10, with larger type).
    ax : Axes or sequence of Axes, optional
        An axes for each panel: one for each of the four columns that the table has; of a table of
        layers, those of the first branch, of the second, and so on.

    Returns
    -------
    Figure

    Raises
    ------
    TableError
        If the table has no such rows or none of the four columns, or the axes are not one for
        each panel.

    Examples
    --------
    >>> table = pd.DataFrame({
    ...     "branch": "normal", "step": [10, 20], "tokens": [1000, 2000], "layer": pd.NA,
    ...     "state": "adam", "update_rms": [0.3, 0.2],
    ... })
    >>> len(plot_moments(table).axes)
    1
    """
    need_columns(table, ["branch", "state", "layer"], TITLE)
    rows = table[table["state"] == "adam"]
    if "against" in rows.columns:  # moments compared with others are rows of this state too
        rows = rows[rows["against"].fillna("") == ""]
    if rows.empty:
        there = list(dict.fromkeys(table["state"]))
        raise TableError(f'{TITLE}: no row has state "adam"; there are {there}')
    columns = [c for c in PANELS if c in rows.columns and rows[c].notna().any()]
    if not columns:
        raise TableError(f'{TITLE}: the rows of state "adam" have none of {list(PANELS)}')
    time = clock(rows, title=TITLE)
    draw = _layers if rows["layer"].notna().any() else _all
    return draw(rows, columns, time, ax)


def _values(line: pd.DataFrame, column: str) -> np.ndarray:
    return line[column].to_numpy(dtype=float, na_value=np.nan)


def _all(
    rows: pd.DataFrame, columns: list[str], time: Scale, ax: Axes | Sequence[Axes] | None
) -> Figure:
    twice = rows.duplicated(["branch", time.column])
    if twice.any():
        raise TableError(
            f"{TITLE}: {int(twice.sum())} rows repeat a branch and {time.column}; "
            f'use load_table(path, by="all") or by="layer", and one run'
        )
    axes = given_axes(ax, columns, TITLE)
    if axes is None:
        axes = _grid(columns, time)
    colours = branch_colours(list(rows["branch"].unique()))
    for column, panel in zip(columns, axes, strict=True):
        for branch, line in rows.groupby("branch", sort=False):
            line = line.sort_values(time.column)
            _line(panel, time.of(line[time.column]), line, column, colours[str(branch)])
        _null(panel, rows, column, time)
        _dress(panel, column)
        if ax is not None:
            panel.set_xlabel(time.label)
    sizes = rows.groupby("branch", sort=False).size()
    handles = [
        Line2D([], [], color=colours[str(b)], marker="o", label=f"{b} (n = {n} checkpoints)")
        for b, n in sizes.items()
    ]
    _legend(axes[0], handles, rows, columns, alone=ax is not None)
    return owner(axes[0])


def _grid(columns: list[str], time: Scale) -> list[Axes]:
    """Axes of a new figure, two side by side where there is room."""
    wide = min(len(columns), 2 if page() >= PAGE else 1)
    high = -(-len(columns) // wide)
    figure = Drawing(
        figsize=(PAGE if wide == 2 else PAGE / 2, 1.75 * high + 0.5), layout="constrained"
    )
    made = figure.subplots(high, wide, sharex=True, squeeze=False)
    axes = list(made.ravel())
    for ax in axes[len(columns) :]:
        ax.remove()
    axes = axes[: len(columns)]
    for ax in axes[-wide:]:
        ax.set_xlabel(time.label)
        ax.tick_params(labelbottom=True)
    return axes


def _line(
    ax: Axes, x: np.ndarray, line: pd.DataFrame, column: str, colour: Any, dense: bool = False
) -> None:
    ax.plot(x, _values(line, column), color=colour, marker="o", lw=1.0, rasterized=dense)


def _null(ax: Axes, rows: pd.DataFrame, column: str, time: Scale) -> None:
    """Draw the null once: it is a function of the step, so branches and layers share it."""
    if column == "adam_snr" and NULL in rows.columns:
        line = rows[rows[NULL].notna()].sort_values(time.column).drop_duplicates(time.column)
        x, y = time.of(line[time.column]), _values(line, NULL)
        ax.plot(x, y, color="#222222", ls=(0, (4, 2)), lw=0.8, zorder=1.8)


def _dress(ax: Axes, column: str, *, low: bool = False) -> None:
    label = PANELS[column]
    if low or page() < PAGE:  # rows of panels are 1.3 inches high
        label = "\n".join(wrapped(label, 88, 8))
    ax.set_ylabel(label)
    if column == "grad_norm_ema":
        ax.set_yscale("log")
        log_ticks(ax.yaxis)
    elif column == "eps_fraction":
        beside = ax.get_shared_y_axes().get_siblings(ax)
        ax.set_ylim(0.0, 1.08 * max(1e-12, *(other.dataLim.ymax for other in beside), 0.0))
        if ax.get_ylim()[1] < 1e-2:
            ax.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))


def _legend(
    ax: Axes, handles: list[Line2D], rows: pd.DataFrame, columns: list[str], *, alone: bool
) -> None:
    if "adam_snr" in columns and NULL in rows.columns and rows[NULL].notna().any():
        handles = [
            *handles,
            Line2D([], [], color="#222222", ls=(0, (4, 2)), lw=0.8, label="noise alone (null)"),
        ]
    if handles and alone:
        legend_above(ax, 2, handles=handles)
    elif handles:
        owner(ax).legend(handles=handles, loc="outside upper left", ncols=4)


def _layers(
    rows: pd.DataFrame, columns: list[str], time: Scale, ax: Axes | Sequence[Axes] | None
) -> Figure:
    keys = ["branch", time.column, "layer", *(c for c in ("module",) if c in rows.columns)]
    if rows.duplicated(keys).any() or rows.get("module", pd.Series("")).fillna("").nunique() > 1:
        raise TableError(
            f"{TITLE}: several tensors of one layer at one checkpoint; "
            f'use load_table(path, by="layer") and one run'
        )
    branches = list(rows["branch"].unique())
    grid = _layer_axes(branches, columns, ax)
    layers = rows["layer"].dropna().astype(int)
    norm = Normalize(int(layers.min()), max(int(layers.max()), int(layers.min()) + 1))
    dense = len(rows) > DENSE  # markers are dear in a vector figure
    for j, branch in enumerate(branches):
        mine = rows[rows["branch"] == branch]
        for i, column in enumerate(columns):
            for layer, line in mine.groupby("layer", sort=True, dropna=False):
                colour = OUTSIDE if pd.isna(layer) else colormaps[MAP](norm(int(layer)))
                line = line.sort_values(time.column)
                _line(grid[i, j], time.of(line[time.column]), line, column, colour, dense)
            _null(grid[i, j], mine, column, time)
        n = mine[time.column].nunique()
        said = f"\nn = {n}" if page() < PAGE else f" (n = {n} checkpoints)"
        grid[0, j].set_title(f"{branch}{said}")
        for panel in grid[:, j] if ax is not None else grid[-1:, j]:
            panel.set_xlabel(time.label)
    for i, column in enumerate(columns):
        for j in range(len(branches)):
            _dress(grid[i, j], column, low=ax is None)
            if j and ax is None:
                grid[i, j].set_ylabel("")
    _layer_bar(grid, norm)
    handles = []
    if rows["layer"].isna().any():
        handles = [Line2D([], [], color=OUTSIDE, marker="o", label="outside the layers")]
    _legend(grid[0, 0], handles, rows, columns, alone=ax is not None)
    return owner(grid[0, 0])


def _layer_axes(
    branches: list[Any], columns: list[str], ax: Axes | Sequence[Axes] | None
) -> np.ndarray:
    """Axes, a line for each column of the table and a column for each branch."""
    names = [f"{column} of {branch}" for branch in branches for column in columns]
    given = given_axes(ax, names, TITLE)
    if given is not None:
        return np.array(given, dtype=object).reshape(len(branches), len(columns)).T
    figure = Drawing(figsize=(PAGE, 1.35 * len(columns) + 0.7), layout="constrained")
    made: np.ndarray = figure.subplots(
        len(columns), len(branches), sharex=True, sharey="row", squeeze=False
    )
    return made


def _layer_bar(grid: np.ndarray, norm: Normalize) -> None:
    """Say which colour is which layer."""
    inside = grid[0, 0].get_figure(root=False)
    bar = inside.colorbar(
        ScalarMappable(norm, MAP), ax=list(grid.ravel()), shrink=0.8, aspect=40, pad=0.02
    )
    bar.set_label("layer")
    bar.locator = MaxNLocator(8, integer=True)
    bar.update_ticks()
