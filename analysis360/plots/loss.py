"""Training loss of all branches, with the spikes that were found shaded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from analysis360.core import Event
from analysis360.errors import TableError
from analysis360.plots.axes import given_axes, legend_above
from analysis360.plots.style import (
    DENSE,
    PAGE,
    Drawing,
    Scale,
    branch_colours,
    clock,
    log_ticks,
    need_columns,
    owner,
    styled,
)

__all__ = ["plot_loss"]

TITLE = "plot_loss"


@styled
def plot_loss(
    loss: pd.DataFrame,
    spikes: pd.DataFrame | None = None,
    *,
    events: Iterable[Event] = (),
    heldout: pd.DataFrame | None = None,
    checkpoints: pd.DataFrame | None = None,
    column: str = "loss",
    label: str = "loss (nats per token)",
    smooth: int | None = None,
    size: str = "page",
    ax: Axes | Sequence[Axes] | None = None,
) -> Figure:
    """Draw the loss of every branch over the tokens seen, and shade the spikes.

    Panels from top to bottom: the loss as logged (thin) under its rolling median (thick; for the
    eye only), the held-out loss with a band of one standard error, and the gradient norm on a
    logarithmic axis where the log has it.

    Parameters
    ----------
    loss : DataFrame
        As `analysis360.read_loss` returns it: branch, step, tokens and `column`.
    spikes : DataFrame, optional
        As `analysis360.find_spikes` returns it. Sustained spikes are bands from onset to end, or
        hatched to the branch's last row where the end is not in the log; fast ones are triangles.
    events : iterable of Event, optional
        Thin vertical lines with a label.
    heldout : DataFrame, optional
        Held-out loss: branch, step, tokens, loss and, if known, stderr.
    checkpoints : DataFrame, optional
        ``run.checkpoints``: ticks along the top of the loss panel.
    column, label : str
        What to draw from `loss` and the unit it is in.
    smooth : int, optional
        Rows of the rolling median; by default a hundredth of the longest branch, and none for
        branches of under 200 rows. 1 draws raw values only.
    size : str
        ``"column"`` (3.3 inches wide), ``"page"`` (7) or ``"slide"`` (10, with larger type).
    ax : Axes or sequence of Axes, optional
        One axes takes the loss panel alone; a sequence takes all panels in order.

    Returns
    -------
    Figure

    Raises
    ------
    TableError
        If the frame is empty, lacks columns, or is in no order, or the axes are not one, nor one
        for each panel.

    Examples
    --------
    >>> loss = pd.DataFrame({"branch": "normal", "step": [1, 2], "loss": [4.0, 3.9]})
    >>> plot_loss(loss).axes[0].get_xlabel()
    'step'
    """
    need_columns(loss, ["branch", "step", column], TITLE)
    time = clock(loss, title=TITLE)
    panels = _panels(loss, heldout)
    axes = _axes(panels, ax)
    colours = branch_colours(list(loss["branch"].unique()))
    _raw_and_median(axes[0], loss, column, time, colours, smooth)
    axes[0].set_ylabel(label)
    window = _window(loss, smooth)
    for name, panel in zip(panels[1:], axes[1:], strict=False):
        if name == "heldout" and heldout is not None:
            _heldout(panel, heldout, time, colours)
            panel.set_ylabel(f"held-out {label}".replace(" (", "\n(", 1))
        elif name == "grad_norm":
            _raw_and_median(panel, loss, "grad_norm", time, colours, smooth)
            panel.set_yscale("log")
            panel.set_ylabel("gradient norm")
            log_ticks(panel.yaxis)
    handles, labels = axes[0].get_legend_handles_labels()
    if window > 1:
        handles.append(Line2D([], [], color="#444444", lw=1.2))
        labels.append(f"thick: rolling median of {window} (for the eye)")
    if spikes is not None and not spikes.empty:
        for place, panel in enumerate(axes):
            found = _shade(panel, spikes, loss, time, colours, marks=place == 0)
        handles, labels = [*handles, *found], [*labels, *(str(h.get_label()) for h in found)]
    _lines(axes, list(events), loss, time)
    if checkpoints is not None and time.column in checkpoints.columns:
        _ticks(axes[0], checkpoints, time)
    axes[-1].set_xlabel(time.label)
    figure = owner(axes[0])
    if ax is None:
        figure.legend(handles, labels, loc="outside upper left", ncols=3)
    else:
        legend_above(axes[0], 3, handles=handles, labels=labels)
    return figure


def _panels(loss: pd.DataFrame, heldout: pd.DataFrame | None) -> list[str]:
    panels = ["loss"]
    if heldout is not None:
        need_columns(heldout, ["branch", "step", "loss"], f"{TITLE}, heldout")
        panels.append("heldout")
    if "grad_norm" in loss.columns and loss["grad_norm"].gt(0).any():
        panels.append("grad_norm")
    return panels


def _axes(panels: list[str], ax: Axes | Sequence[Axes] | None) -> list[Axes]:
    given = given_axes(ax, panels, TITLE, first=True)
    if given is not None:
        return given
    figure = Drawing(figsize=(PAGE, 1.2 + 1.35 * len(panels)), layout="constrained")
    ratios = [2.0 if name == "loss" else 1.2 for name in panels]
    made = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=ratios)
    return [made[row, 0] for row in range(len(panels))]


def _window(frame: pd.DataFrame, smooth: int | None) -> int:
    if smooth is not None:
        return max(int(smooth), 1)
    longest = int(frame.groupby("branch", sort=False).size().max())
    return 1 if longest < 200 else max(longest // 100, 5) | 1


def _raw_and_median(
    ax: Axes,
    loss: pd.DataFrame,
    column: str,
    time: Scale,
    colours: dict[str, str],
    smooth: int | None,
) -> None:
    window = _window(loss, smooth)
    for branch, rows in loss.groupby("branch", sort=False):
        rows = rows.sort_values(time.column, kind="stable")
        x, y = time.of(rows[time.column]), rows[column].to_numpy(dtype=float, na_value=np.nan)
        colour, dense = colours[str(branch)], len(rows) > DENSE
        name = f"{branch} (n = {int(np.isfinite(y).sum()):,} steps)"
        if window == 1:
            ax.plot(x, y, color=colour, lw=1.0, label=name, rasterized=dense, zorder=2.2)
            continue
        ax.plot(x, y, color=colour, lw=0.4, alpha=0.45, rasterized=dense, zorder=2.1)
        median = pd.Series(y).rolling(window, center=True, min_periods=1).median()
        many = len(rows) > 10 * DENSE
        ax.plot(x, median, color=colour, lw=1.2, label=name, zorder=2.3, rasterized=many)


def _heldout(ax: Axes, heldout: pd.DataFrame, time: Scale, colours: dict[str, str]) -> None:
    if time.column not in heldout.columns:
        raise TableError(
            f"{TITLE}, heldout: column {time.column!r} is missing, which the loss is drawn over"
        )
    for branch, rows in heldout.groupby("branch", sort=False):
        rows = rows.sort_values(time.column, kind="stable")
        x, y = time.of(rows[time.column]), rows["loss"].to_numpy(dtype=float, na_value=np.nan)
        colour = colours.get(str(branch)) or branch_colours([*colours, branch])[str(branch)]
        ax.plot(x, y, color=colour, marker="o", ms=2, lw=1.0)
        if "stderr" in rows.columns and rows["stderr"].notna().any():
            error = rows["stderr"].to_numpy(dtype=float, na_value=np.nan)
            ax.fill_between(x, y - error, y + error, color=colour, alpha=0.25, lw=0)
    said = "band: ± 1 standard error; " if "stderr" in heldout.columns else ""
    ax.set_title(f"{said}n = {len(heldout):,} evaluations", fontsize="small", loc="right", pad=2)


def _place(rows: pd.DataFrame, time: Scale, step: Any) -> float:
    """Where on the axis a training step of this branch lies."""
    if pd.isna(step):
        return float("nan")
    steps = rows["step"].to_numpy(dtype=float, na_value=np.nan)
    order = np.argsort(steps, kind="stable")
    return float(np.interp(float(step), steps[order], time.of(rows[time.column])[order]))


def _shade(
    ax: Axes,
    spikes: pd.DataFrame,
    loss: pd.DataFrame,
    time: Scale,
    colours: dict[str, str],
    *,
    marks: bool,
) -> list[Artist]:
    """Shade each spike; return one legend entry for each kind that was drawn."""
    need_columns(spikes, ["branch", "onset", "end"], f"{TITLE}, spikes")
    legend: dict[str, Artist] = {}
    counts: dict[str, int] = {}
    for spike in spikes.to_dict("records"):
        branch = str(spike["branch"])
        rows = loss[loss["branch"] == spike["branch"]]
        if rows.empty:
            continue
        colour = colours[branch]
        if spike.get("channel", "sustained") == "fast":
            if marks:
                _mark(ax, spike, rows, time, colour)
            kind = f"{branch}: fast spike"
            legend.setdefault(kind, Line2D([], [], color=colour, marker="v", ms=4, ls="none"))
        else:
            start, cut = _place(rows, time, spike["onset"]), pd.isna(spike["end"])
            stop = time.of(rows[time.column]).max() if cut else _place(rows, time, spike["end"])
            kind = f"{branch}: sustained spike" + (", no end in the log" if cut else "")
            look: dict[str, Any] = {"facecolor": colour, "alpha": 0.14, "lw": 0}
            look["hatch"] = "///" if cut else None
            ax.axvspan(start, stop, zorder=0.5, edgecolor=colour, **look)
            if cut and marks:
                ax.annotate(
                    "", (1.0, 0.06), xytext=(0.94, 0.06), xycoords="axes fraction",
                    arrowprops={"arrowstyle": "->", "color": colour},
                )  # fmt: skip
            legend.setdefault(kind, Patch(edgecolor=colour, **look))
        counts[kind] = counts.get(kind, 0) + 1
    for kind, patch in legend.items():
        patch.set_label(f"{kind} (n = {counts[kind]})")
    return list(legend.values())


def _mark(ax: Axes, spike: dict[Any, Any], rows: pd.DataFrame, time: Scale, colour: str) -> None:
    peak = spike.get("peak")
    x = _place(rows, time, spike["onset"] if pd.isna(peak) else peak)
    ax.plot(
        [x], [1.0], transform=ax.get_xaxis_transform(), marker="v", ms=4, color=colour,
        clip_on=False, ls="none", zorder=4,
    )  # fmt: skip


def _lines(axes: Sequence[Axes], events: list[Event], loss: pd.DataFrame, time: Scale) -> None:
    """Draw events as thin lines; labels step down so that neighbours do not overlap."""
    for place, event in enumerate(events):
        rows = loss[loss["branch"] == event.branch]
        x = _place(rows if len(rows) else loss, time, event.step)
        for ax in axes:
            ax.axvline(x, color="#555555", lw=0.6, ls=(0, (4, 2)), zorder=1)
        right = x > np.mean(axes[0].get_xlim())
        axes[0].annotate(
            event.label, (x, 0.97 - 0.09 * (place % 4)), xycoords=("data", "axes fraction"),
            xytext=(-3 if right else 3, 0), textcoords="offset points", fontsize="small", va="top",
            ha="right" if right else "left", color="#333333",
            bbox={"facecolor": "white", "alpha": 0.75, "pad": 0.6, "lw": 0}, zorder=5,
        )  # fmt: skip


def _ticks(ax: Axes, checkpoints: pd.DataFrame, time: Scale) -> None:
    known = checkpoints[checkpoints[time.column].notna()]
    x = time.of(known[time.column])
    ax.plot(
        x, np.full(len(x), 0.0), transform=ax.get_xaxis_transform(), marker="|", ms=5, mew=0.5,
        color="#333333", ls="none", label=f"checkpoints (n = {len(x):,})", zorder=3,
    )  # fmt: skip
