"""Where two branches differ: heat map of layer by checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Patch, Rectangle

from analysis360.errors import TableError
from analysis360.plots.axes import given_axes
from analysis360.plots.style import (
    PAGE,
    Drawing,
    Scale,
    clock,
    module_rank,
    need_columns,
    owner,
    page,
    short,
    styled,
)

__all__ = ["layer_panels", "plot_layers"]

TITLE = "plot_layers"
MAP = "PuOr_r"
FEW = 30
"""Hatched patches of a panel above which they are drawn as pixels."""


@dataclass(frozen=True, slots=True, eq=False)
class _Panel:
    title: str
    rows: list[str]
    cells: np.ndarray  # rows by checkpoints, log2 ratio, NaN where missing


@styled
def plot_layers(
    apart: pd.DataFrame,
    statistic: str,
    *,
    state: str = "weight",
    against: str = "",
    between: tuple[str, str] = ("spike", "normal"),
    limit: float | None = None,
    size: str = "page",
    ax: Axes | Sequence[Axes] | None = None,
) -> Figure:
    """Draw the ratio of a statistic in two branches, for each layer and checkpoint.

    A cell is ``log2(value / reference)`` as `analysis360.compare_branches` put it into the frame:
    +1 is twice the reference, 0 is equal. There is a panel for each module, in rows by component,
    and one for the tensors outside the blocks; a frame made from a table of layers has one panel.

    Parameters
    ----------
    apart : DataFrame
        As `analysis360.compare_branches` returns it.
    statistic, state, against : str
        Which rows to draw.
    between : tuple of str
        Names of the two branches, for the label of the colour bar.
    limit : float, optional
        The colours end at plus and minus this ratio; by default at the largest one, or at the 98th
        percentile of the sizes if the largest is over three times that. The bar then has arrows.
    size : str
        ``"column"`` (3.3 inches wide), ``"page"`` (7) or ``"slide"`` (10, with larger type).
    ax : Axes or sequence of Axes, optional
        An axes for each panel, in the order above.

    Returns
    -------
    Figure

    Raises
    ------
    TableError
        If no row is left, several rows fall on one cell, or the axes are not one for each panel.

    Examples
    --------
    >>> apart = pd.DataFrame({
    ...     "name": ["", ""], "layer": [0, 1], "module": "", "param": "", "state": "weight",
    ...     "against": "", "number": 3, "step": 30, "tokens": 3000, "statistic": "rms",
    ...     "log2_ratio": [0.5, -0.2],
    ... })
    >>> figure = plot_layers(apart, "rms")
    >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
    ['0', '1']
    """
    need = ["layer", "module", "state", "against", "statistic", "log2_ratio"]
    need_columns(apart, need, TITLE)
    rows = _chosen(apart, statistic, state, against)
    time = clock(rows, title=TITLE)
    columns = _columns(rows, time)
    panels = _panels(rows, time, columns)
    blank = [panel for panel in panels if not np.isfinite(panel.cells).any()]
    panels = [panel for panel in panels if panel not in blank] or panels
    edge, clipped = _limit(panels, limit)
    axes = given_axes(ax, [panel.title for panel in panels], TITLE)
    if axes is None:
        axes = _axes(panels, len(columns))
    image = None
    for panel, place in zip(panels, axes, strict=True):
        image = _draw(place, panel, edge)
    _label_checkpoints(axes, panels, columns, time, alone=ax is not None)
    figure = owner(axes[0])
    assert image is not None
    inside = axes[0].get_figure(root=False)
    assert inside is not None
    bar = inside.colorbar(
        image, ax=axes, extend="both" if clipped else "neither", shrink=0.9, aspect=30, pad=0.02
    )
    bar.set_label(f"{statistic}: log2({between[0]} / {between[1]})")
    bar.outline.set_linewidth(0.4)
    if ax is None:
        _caption(figure, panels, blank, f"{state}{', against ' + against if against else ''}")
    return figure


def _chosen(apart: pd.DataFrame, statistic: str, state: str, against: str) -> pd.DataFrame:
    rows = apart
    for column, wanted in (("statistic", statistic), ("state", state), ("against", against)):
        there = list(dict.fromkeys(rows[column].dropna()))
        rows = rows[rows[column] == wanted]
        if rows.empty:
            raise TableError(f"{TITLE}: no row has {column} {wanted!r}; there are {there}")
    return rows


def _columns(rows: pd.DataFrame, time: Scale) -> pd.DataFrame:
    keys = list(dict.fromkeys([time.column, *(c for c in ("number",) if c in rows.columns)]))
    return rows[keys].drop_duplicates(time.column).sort_values(time.column).reset_index(drop=True)


def _panels(rows: pd.DataFrame, time: Scale, columns: pd.DataFrame) -> list[_Panel]:
    module = rows["module"].fillna("").astype(str)
    param = rows["param"].fillna("").astype(str) if "param" in rows.columns else module * 0
    several = param.nunique() > 1
    title = module + ("." + param if several else "")
    inside = rows["layer"].notna()
    # a table of layers holds "" for the module of every row, also outside the blocks
    whole = bool((module == "").all())
    place = {x: i for i, x in enumerate(columns[time.column])}
    panels = []
    names = [""] if whole else sorted(dict.fromkeys(title[inside]), key=module_rank)
    for name in names:
        mine = rows[inside] if whole else rows[inside & (title == name)]
        layers = sorted(int(layer) for layer in mine["layer"].unique())
        label = [str(layer) for layer in layers]
        cells = _cells(mine, mine["layer"].astype(int).astype(str), label, place, time)
        if whole and (~inside).any():
            rest = rows[~inside]
            extra = _cells(rest, pd.Series("other", rest.index), ["other"], place, time)
            label, cells = [*label, "other"], np.vstack([cells, extra])
        panels.append(_Panel("all tensors of a layer" if whole else name, label, cells))
    if not whole and (~inside).any():
        rest = rows[~inside]
        label = sorted(dict.fromkeys(title[~inside]), key=lambda m: module_rank(m)[1])
        cells = _cells(rest, title[~inside], label, place, time)
        panels.append(_Panel("outside the layers", label, cells))
    return [panel for panel in panels if panel.rows]


def _cells(
    rows: pd.DataFrame, key: pd.Series, label: list[str], place: dict[object, int], time: Scale
) -> np.ndarray:
    cells = np.full((len(label), len(place)), np.nan)
    taken = np.zeros(cells.shape, dtype=bool)
    line = {name: i for i, name in enumerate(label)}
    values = rows["log2_ratio"].to_numpy(dtype=float, na_value=np.nan)
    for name, x, value in zip(key, rows[time.column], values, strict=True):
        at = line[name], place[x]
        if taken[at]:
            raise TableError(
                f"{TITLE}: several rows fall on row {name!r} at {time.column} {x}; keep one run, "
                f'expert and head, or compare a table from load_table(path, by="layer")'
            )
        taken[at], cells[at] = True, value if np.isfinite(value) else np.nan
    return cells


def _limit(panels: list[_Panel], limit: float | None) -> tuple[float, bool]:
    sizes = np.abs(np.concatenate([panel.cells.ravel() for panel in panels]))
    sizes = sizes[np.isfinite(sizes)]
    if not sizes.size:
        raise TableError(f"{TITLE}: no cell has a finite log2_ratio; no checkpoint was matched")
    largest = float(sizes.max())
    if limit is None:
        usual = float(np.percentile(sizes, 98, method="lower"))
        limit = usual if largest > 3 * usual > 0 else largest
    limit = limit if limit > 0 else 1e-6  # all equal: one colour, and a bar that is not degenerate
    return limit, largest > limit


def _axes(panels: list[_Panel], checkpoints: int) -> list[Axes]:
    if len(panels) == 1:
        rows = len(panels[0].rows)
        width = min(PAGE, max(3.4, 1.8 + 0.3 * checkpoints))
        figure = Drawing(figsize=(width, min(1.4 + 0.18 * rows, 8.0)), layout="constrained")
        return [figure.subplots()]
    lines = _lines(panels, 4 if page() >= PAGE else 2)
    width = max(len(line) for line in lines)
    heights = [max(len(panel.rows) for panel in line) for line in lines]
    tall = sum(min(max(0.11 * h, 0.75), 2.2) + 0.45 for h in heights) + 0.5
    figure = Drawing(figsize=(PAGE, min(tall, 9.0)), layout="constrained")
    ratios = [min(max(h, 7), 20) for h in heights]
    grid = figure.add_gridspec(len(lines), width, height_ratios=ratios)
    return [
        figure.add_subplot(grid[i, j]) for i, line in enumerate(lines) for j in range(len(line))
    ]


def _lines(panels: list[_Panel], width: int) -> list[list[_Panel]]:
    """Break the panels into lines: one for each component, at most `width` wide."""
    lines: list[list[_Panel]] = []
    last = None
    for panel in panels:
        group = _group(panel)
        if group != last or len(lines[-1]) == width:
            lines.append([])
        lines[-1].append(panel)
        last = group
    return lines


def _group(panel: _Panel) -> str:
    head = panel.title.split(".")[0]
    return "norm" if head.startswith("outside") else head


def _draw(ax: Axes, panel: _Panel, edge: float) -> AxesImage:
    image = ax.imshow(
        panel.cells, cmap=MAP, norm=Normalize(-edge, edge), aspect="auto", interpolation="nearest",
        rasterized=True,
    )  # fmt: skip
    gaps = _gaps(panel.cells)
    for first, last, column in gaps:
        ax.add_patch(
            Rectangle(
                (column - 0.5, first - 0.5), 1, last - first + 1, facecolor="#d9d9d9",
                edgecolor="#8c8c8c", hatch="////", lw=0, rasterized=len(gaps) > FEW,
            )
        )  # fmt: skip
    ax.grid(visible=False)
    named = not all(row.isdigit() for row in panel.rows)
    step = 1 if named and len(panel.rows) <= 30 else max(1, -(-len(panel.rows) // 8))
    ticks = list(range(0, len(panel.rows), step))
    if named and len(panel.rows) - 1 not in ticks:
        ticks.append(len(panel.rows) - 1)
    ax.set_yticks(ticks, [panel.rows[tick] for tick in ticks])
    ax.tick_params(length=2)
    ax.set_title(panel.title.replace("outside ", "outside\n") if page() < PAGE else panel.title)
    ax.spines[["left", "bottom"]].set_visible(False)
    return image


def _gaps(cells: np.ndarray) -> list[tuple[int, int, int]]:
    """First and last row, and column, of each unbroken run of missing cells down a column."""
    gaps: list[tuple[int, int, int]] = []
    for column, missing in enumerate(~np.isfinite(cells.T)):
        edges = np.flatnonzero(np.diff(np.r_[False, missing, False]))
        gaps += [(int(a), int(b) - 1, column) for a, b in edges.reshape(-1, 2)]
    return gaps


def _label_checkpoints(
    axes: list[Axes], panels: list[_Panel], columns: pd.DataFrame, time: Scale, *, alone: bool
) -> None:
    x = time.of(columns[time.column])
    labels = [short(value) for value in x]
    what = time.label
    if "number" in columns.columns and columns["number"].notna().any() and time.column != "number":
        number = ["–" if pd.isna(n) else str(n) for n in columns["number"]]
        labels = [f"{n}\n{v}" for n, v in zip(number, labels, strict=True)]
        what = f"checkpoint\n{time.label}"
    room = 4 if len(axes) > 1 else 9
    known = columns["number"].notna() if "number" in columns.columns else pd.Series(dtype=bool)
    named = [i for i in range(len(labels)) if not known.any() or known.iloc[i]]
    apart, ticks = max(1, -(-len(labels) // room)), named[:1]
    for place in named:
        if place - ticks[-1] >= apart:
            ticks.append(place)
    for ax in axes:
        ax.set_xticks(ticks, [labels[tick] for tick in ticks])
    if alone or len(axes) == 1:  # in a figure of somebody else's each panel says all itself
        for ax, panel in zip(axes, panels, strict=True):
            ax.set_xlabel(what)
            if panel.rows[0].isdigit():
                ax.set_ylabel("layer")
        return
    at = {_cell(ax): ax for ax in axes}
    names = {_cell(ax): panel.rows for ax, panel in zip(axes, panels, strict=True)}
    bottom = max(line for line, _ in at)
    for (line, column), ax in at.items():
        if (line + 1, column) in at:
            ax.set_xticklabels([])
        elif line == bottom:
            ax.set_xlabel(what)
        else:  # the cell below is empty: let the labels hang into it
            for text in ax.get_xticklabels():
                text.set_in_layout(False)
        rows = names[line, column]
        if rows == names.get((line, column - 1)):
            ax.tick_params(labelleft=False)
        elif rows[0].isdigit():
            ax.set_ylabel("layer")
        elif column > 0:  # long row names: to the right, where the line of panels has room
            ax.yaxis.tick_right()
            ax.tick_params(right=False)
            if (line, column + 1) not in at and any(c > column for _, c in at):
                for text in ax.get_yticklabels():
                    text.set_in_layout(False)


def _cell(ax: Axes) -> tuple[int, int]:
    spec = ax.get_subplotspec()
    return (0, 0) if spec is None else (spec.rowspan.start, spec.colspan.start)


def _caption(figure: Figure, panels: list[_Panel], blank: list[_Panel], what: str) -> None:
    missing = sum(int((~np.isfinite(panel.cells)).sum()) for panel in panels)
    total = sum(panel.cells.size for panel in panels)
    said = f"{what}; n = {total - missing:,} cells"
    if blank:
        said += f"; without a value, not drawn: {', '.join(panel.title for panel in blank)}"
    if missing:
        patch = Patch(
            facecolor="#d9d9d9", edgecolor="#8c8c8c", hatch="////", lw=0,
            label=f"no matched value ({missing:,} of {total:,} cells)",
        )  # fmt: skip
        figure.legend(handles=[patch], loc="outside lower right")
    figure.suptitle(said, x=0.01, ha="left", fontsize="medium", wrap=True)


def layer_panels(
    apart: pd.DataFrame, statistic: str, *, state: str = "weight", against: str = ""
) -> tuple[list[_Panel], pd.DataFrame]:
    """Cells that `plot_layers` draws, for whoever wants to say what is under a pointer.

    Parameters
    ----------
    apart : DataFrame
        As `analysis360.compare_branches` returns it.
    statistic, state, against : str
        Which rows.

    Returns
    -------
    panels : list
        In the order of the figure's axes: title, names of the rows, and cells (rows by
        checkpoints, log2 ratio, NaN where there is no matched value).
    columns : DataFrame
        One row a checkpoint: tokens (or step, or number), and number where it is known.

    Raises
    ------
    TableError
        If no row is left, or several rows fall on one cell.
    """
    rows = _chosen(apart, statistic, state, against)
    time = clock(rows, title=TITLE)
    columns = _columns(rows, time)
    panels = _panels(rows, time, columns)
    drawn = [panel for panel in panels if np.isfinite(panel.cells).any()]
    return drawn or panels, columns
