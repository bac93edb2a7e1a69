"""One loss spike from near: the loss with what was found in it, and what moved around it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rcParams
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis360.errors import TableError
from analysis360.plots.axes import given_axes
from analysis360.plots.panels import GUIDE, legend, numbers, place
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
    short,
    styled,
)  # fmt: skip
from analysis360.plots.wrapping import wrapped
from analysis360.recipe import Adam

__all__ = ["plot_anatomy"]

TITLE = "plot_anatomy"
LABELS = {
    "grad_norm": "gradient\nnorm",
    "lr": "learning\nrate",
    "grad_norm_ema": "√Σv̂\n(grad. norm)",
    "update_rms": "update RMS\n(unit: lr)",
}
LOGARITHMIC = ("grad_norm", "grad_norm_ema")
MARKS = {"onset": "-", "peak": (0, (1, 1.2)), "end": (0, (4, 2)), "recovery": (0, (5, 1, 1, 1))}
CLIP = OKABE_ITO["purple"]
LEAST = 20
"""Samples drawn before the onset, if the spike is not longer."""


@dataclass(frozen=True)
class _View:
    """Rows in the window, what the x axis counts, and the colours of the branches."""

    branch: str
    rows: pd.DataFrame
    time: Scale
    colours: dict[str, str]
    low: int
    high: int


@styled
def plot_anatomy(
    loss: pd.DataFrame,
    spike: pd.DataFrame | pd.Series | Mapping[str, Any],
    *,
    table: pd.DataFrame | None = None,
    to: str | None = None,
    statistics: Sequence[str] = ("grad_norm_ema", "update_rms"),
    adam: Adam | None = None,
    column: str = "loss",
    label: str = "loss\n(nats per token)",
    smooth: int = 5,
    before: int | None = None,
    after: int | None = None,
    size: str = "page",
    ax: Axes | Sequence[Axes] | None = None,
) -> Figure:
    r"""Draw one spike from shortly before its onset to after its end.

    Panels from top to bottom, as far as there are data: the loss as logged (thin) under its rolling
    median (thick; for the eye only) with the baseline that the spike was measured against, the
    gradient norm, the learning rate, and statistics of the checkpoints. The branch that the spike's
    branch left is drawn too: it is the reference, and no level of a statistic is one by itself.

    Parameters
    ----------
    loss : DataFrame
        As `analysis360.read_loss` returns it: branch, step and `column`; ``parent``, ``grad_norm``
        and ``lr`` are used where they are there.
    spike : DataFrame, Series or mapping
        One row of `analysis360.find_spikes`: branch, onset and end, and as far as known peak,
        recovery, baseline, sigma, height and z.
    table : DataFrame, optional
        Measured table, at most one row a branch, state and checkpoint: from
        ``load_table(path, by="all")``, or one tensor's.
    to : str, optional
        One more branch to draw beside.
    statistics : sequence of str
        Columns of `table`, one panel each; by default the averaged gradient norm
        :math:`\sqrt{\sum\hat v}` and the RMS of Adam's update.
    adam : Adam, optional
        ``run.adam``: the clip is drawn in the panels of the gradient norm, and, from the highest
        point of :math:`\sqrt{\sum\hat v}` on, :math:`\beta_2^{t/2}`: how fast it would fall if no
        gradient came any more.
    column, label : str
        What to draw in the first panel, and its unit.
    smooth : int
        Rows of the rolling median; 1 draws raw values only.
    before, after : int, optional
        Steps drawn before the onset and after the end; by default half of the spike's length
        before, and all of it after, and at least 20 rows.
    size : str
        ``"column"`` (3.3 inches wide), ``"page"`` (7) or ``"slide"`` (10, with larger type).
    ax : Axes or sequence of Axes, optional
        One axes takes the loss alone; a sequence takes all panels in order.

    Returns
    -------
    Figure

    Raises
    ------
    TableError
        If `spike` is not one row, its branch is not in `loss`, a frame lacks columns, or the table
        has several rows for one point.

    Examples
    --------
    >>> log = pd.DataFrame({"branch": "a", "step": range(9), "loss": [2.0] * 4 + [3.0] + [2.0] * 4})
    >>> figure = plot_anatomy(log, {"branch": "a", "onset": 4, "end": 5, "baseline": 2.0})
    >>> figure.axes[0].get_title(loc="left")
    'a: spike, step 4 to 5'
    """
    found = _one(spike)
    need_columns(loss, ["branch", "step", column], TITLE)
    view = _view(loss, found, to, before, after)
    measured = _measured(table, statistics, view)
    panels = [column, *_logged(view.rows, column), *measured]
    axes = given_axes(ax, panels, TITLE, first=True) or _make(len(panels))
    handles = _loss(axes[0], view, found, column, smooth)
    axes[0].set_ylabel(label)
    _title(axes[0], _said(found))
    for name, panel in zip(panels[1:], axes[1:], strict=False):
        if name in measured:
            handles += _points(panel, measured[name], view, name, adam)
        else:
            _series(panel, view, name, smooth)
        if adam is not None and adam.clip is not None and name in LOGARITHMIC:
            look: dict[str, Any] = {"color": CLIP, "lw": 0.9, "ls": (0, (3, 1, 1, 1))}
            panel.axhline(adam.clip, **look)
            handles.append(_line(f"clip ({short(adam.clip)})", **look))
        panel.set_ylabel(LABELS.get(name, name.replace("_", " ")))
    handles += _marks(axes, view, found)
    for panel in axes:
        panel.set_xlim(*(place(view.rows, view.time, s) for s in (view.low, view.high)))
        if panel.get_yscale() == "log":
            log_ticks(panel.yaxis)
    axes[-1].set_xlabel(view.time.label)
    once = {str(handle.get_label()): handle for handle in handles}
    return legend(ax, axes[0], list(once.values()))


def _title(ax: Axes, said: str) -> None:
    """Write lines above the axes that are no wider than it."""
    size = float(rcParams["axes.titlesize"])
    room = ax.get_window_extent().width / owner(ax).dpi * 72
    lines = [one for line in said.splitlines() for one in wrapped(line, 0.8 * room, size)]
    ax.set_title("\n".join(lines))


def _line(label: str, **look: Any) -> Line2D:
    return Line2D([], [], **{"color": GUIDE, "label": label, **look})


def _one(spike: pd.DataFrame | pd.Series | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(spike, pd.DataFrame):
        if len(spike) != 1:
            raise TableError(
                f"{TITLE}: spike must be one row of find_spikes, not {len(spike)}; "
                "take one, as spikes.iloc[0]"
            )
        spike = spike.iloc[0]
    found = {str(key): value for key, value in dict(spike).items()}
    missing = [name for name in ("branch", "onset", "end") if name not in found]
    if missing:
        raise TableError(f"{TITLE}: the spike has no {missing}; take a row of find_spikes")
    if pd.isna(found["onset"]):
        raise TableError(f"{TITLE}: the spike has no onset, so it is nowhere")
    return found


def _said(found: Mapping[str, Any]) -> str:
    end = "on, no end in the log" if pd.isna(found["end"]) else f"to {int(found['end']):,}"
    words = f"{found['branch']}: spike, step {int(found['onset']):,} {end}"
    if pd.notna(found.get("height")):
        words += f"\nheight {found['height']:+.2f}"
        words += f" (z = {found['z']:.0f})" if pd.notna(found.get("z")) else ""
        words += f", n = {int(found['points']):,} samples" if pd.notna(found.get("points")) else ""
    return words


def _view(
    loss: pd.DataFrame, found: Mapping[str, Any], to: str | None, before: int | None,
    after: int | None,
) -> _View:  # fmt: skip
    branch = str(found["branch"])
    known = [str(name) for name in dict.fromkeys(loss["branch"])]
    for name in (branch, to):
        if name is not None and name not in known:
            raise TableError(f"{TITLE}: no branch {name!r} in the loss; there are {known}")
    names = list(dict.fromkeys([*_line_of(loss, branch), *([to] if to else [])]))
    rows = loss[loss["branch"].isin(names) & loss["step"].notna()]
    own = rows[rows["branch"] == branch]
    onset = int(found["onset"])
    end = int(own["step"].max()) if pd.isna(found["end"]) else int(found["end"])
    every = max(1, int(own["step"].sort_values().diff().median())) if len(own) > 1 else 1
    low = onset - (max((end - onset) // 2, LEAST * every) if before is None else before)
    high = end + (max(end - onset, LEAST * every) if after is None else after)
    rows = rows[rows["step"].between(low, high)]
    if not rows["branch"].eq(branch).any():
        raise TableError(f"{TITLE}: branch {branch!r} has no row from step {low} to {high}")
    low, high = max(low, int(rows["step"].min())), min(high, int(rows["step"].max()))
    return _View(branch, rows, clock(rows, title=TITLE), branch_colours(names), low, high)


def _line_of(loss: pd.DataFrame, branch: str) -> list[str]:
    """Branch, and those that it left, the nearest first."""
    found = [branch]
    while "parent" in loss.columns:
        parent = loss.loc[loss["branch"] == found[-1], "parent"].iloc[0]
        if pd.isna(parent) or parent in found or not loss["branch"].eq(parent).any():
            break
        found.append(str(parent))
    return found


def _logged(rows: pd.DataFrame, column: str) -> list[str]:
    there = [name for name in ("grad_norm", "lr") if name in rows.columns and name != column]
    return [name for name in there if rows[name].gt(0).any()]


def _measured(
    table: pd.DataFrame | None, statistics: Sequence[str], view: _View
) -> dict[str, pd.DataFrame]:
    """Rows of each statistic inside the window."""
    if table is None:
        return {}
    need_columns(table, ["branch", "step", "state", view.time.column], f"{TITLE}, table")
    rows = table[table["branch"].isin(list(view.colours))]
    if "against" in rows.columns:
        rows = rows[rows["against"].fillna("") == ""]
    found = {}
    for name in statistics:
        need_columns(table, [name], f"{TITLE}, table: measure it with plan(run, [{name!r}])")
        mine = rows[rows[name].notna() & rows["step"].between(view.low, view.high)]
        if mine.empty:
            raise TableError(
                f"{TITLE}: no checkpoint from step {view.low} to {view.high} has {name!r}; "
                "widen before= and after=, or leave it out of statistics="
            )
        if mine.duplicated(["branch", "state", "step"]).any() or mine["state"].nunique() > 1:
            raise TableError(
                f"{TITLE}: several rows of {name!r} for one checkpoint; "
                'use load_table(path, by="all"), and one run and state'
            )
        found[name] = mine
    return found


def _make(count: int) -> list[Axes]:
    figure = Drawing(figsize=(PAGE, 1.5 + 1.0 * count), layout="constrained")
    ratios = [1.9] + [1.0] * (count - 1)
    made = figure.subplots(count, 1, sharex=True, squeeze=False, height_ratios=ratios)
    figure.align_ylabels(list(made[:, 0]))
    return list(made[:, 0])


def _series(ax: Axes, view: _View, column: str, smooth: int) -> dict[str, int]:
    """Raw values and their rolling median; how many values each branch has."""
    counts = {}
    for branch, rows in view.rows.groupby("branch", sort=False):
        rows = rows.sort_values("step", kind="stable")
        x, y = view.time.of(rows[view.time.column]), numbers(rows, column)
        name, dense = str(branch), len(rows) > DENSE
        colour, front = view.colours[name], 0.3 * (name == view.branch)
        counts[name] = int(np.isfinite(y).sum())
        look: dict[str, Any] = {"color": colour, "rasterized": dense}
        if smooth <= 1 or column == "lr":
            ax.plot(x, y, lw=1.0, zorder=2.2 + front, **look)
            continue
        ax.plot(x, y, lw=0.5, alpha=0.5, zorder=2.1 + front, **look)
        median = pd.Series(y).rolling(smooth, center=True, min_periods=1).median()
        ax.plot(x, median, lw=1.3, zorder=2.3 + front, **look)
    if column in LOGARITHMIC:
        ax.set_yscale("log", nonpositive="mask")
    return counts


def _loss(
    ax: Axes, view: _View, found: Mapping[str, Any], column: str, smooth: int
) -> list[Artist]:
    counts = _series(ax, view, column, smooth)
    handles: list[Artist] = [
        _line(f"{name} (n = {counts[name]:,})", color=colour)
        for name, colour in view.colours.items()
        if name in counts
    ]
    if smooth > 1:
        handles.append(_line(f"thick: rolling median of {smooth}", color="#666666"))
    if pd.notna(found.get("baseline")):
        level = float(found["baseline"])
        ax.axhline(level, color=GUIDE, lw=0.7, ls=(0, (1, 1)), zorder=2)
        said = "baseline"
        if pd.notna(found.get("sigma")):
            sigma = float(found["sigma"])
            ax.axhspan(level - 3 * sigma, level + 3 * sigma, color="#888888", alpha=0.2, lw=0)
            said = "baseline ± 3 σ"
        handles.append(_line(said, lw=0.7, ls=(0, (1, 1))))
    return handles


def _marks(axes: Sequence[Axes], view: _View, found: Mapping[str, Any]) -> list[Artist]:
    """Lines through all panels where the spike begins, peaks and ends."""
    handles: list[Artist] = []
    own = view.rows[view.rows["branch"] == view.branch]
    for name, dashes in MARKS.items():
        step = found.get(name)
        if pd.isna(step) or not view.low <= int(step) <= view.high:
            continue
        x = place(own if own["step"].min() <= step else view.rows, view.time, step)
        for ax in axes:
            ax.axvline(x, color="#555555", lw=0.8, ls=dashes, zorder=1.5)
        handles.append(_line(f"{name} (step {int(step):,})", color="#555555", lw=0.8, ls=dashes))
    return handles


def _points(
    ax: Axes, rows: pd.DataFrame, view: _View, name: str, adam: Adam | None
) -> list[Artist]:
    """Checkpoints, joined for the eye; of the averaged gradient norm also how fast it can fall."""
    for branch, line in rows.groupby("branch", sort=False):
        line = line.sort_values("step", kind="stable")
        ax.plot(
            view.time.of(line[view.time.column]), numbers(line, name), marker="o", lw=0.8,
            color=view.colours[str(branch)], zorder=2.2 + 0.3 * (branch == view.branch),
        )  # fmt: skip
    sizes = ", ".join(f"{n} ({b})" for b, n in rows.groupby("branch", sort=False).size().items())
    ax.set_title(f"checkpoints: n = {sizes}", loc="right", fontsize="small", pad=2)
    if name in LOGARITHMIC:
        ax.set_yscale("log")
    if name != "grad_norm_ema" or adam is None or adam.beta2 is None:
        return []
    own = rows[rows["branch"] == view.branch]
    if own.empty:
        return []
    top = own.loc[numbers(own, name).argmax() == np.arange(len(own))].iloc[0]
    steps = np.linspace(float(top["step"]), float(view.high), 50)
    line = float(top[name]) * adam.beta2 ** ((steps - steps[0]) / 2)
    low = 0.5 * float(np.nanmin(numbers(rows, name)))
    x = [place(view.rows, view.time, step) for step in steps]
    ax.plot(x, np.where(line < low, np.nan, line), color=GUIDE, lw=0.8, ls=(0, (4, 2)))
    return [_line(r"$\beta_2^{t/2}$: no gradients", lw=0.8, ls=(0, (4, 2)))]
