"""Signal and noise of the gradient, as Adam's two moments tell: over depth, or over training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from analysis360.errors import TableError
from analysis360.plots.axes import given_axes
from analysis360.plots.panels import (
    GUIDE,
    branches_of,
    colours_of,
    legend,
    numbers,
    one_shape,
    steps_of,
)  # fmt: skip
from analysis360.plots.style import Scale, clock, log_ticks, need_columns, styled

__all__ = ["plot_noise"]

TITLE = "plot_noise"
PANELS = ("adam_snr", "noise_scale")
HINT = (
    f"measure plan(run, {[*PANELS, 'adam_snr_null', 'adam_snr_se', 'noise_scale_se']}) of "
    "checkpoints that hold Adam's moments"
)
NULL, BATCH = (0, (4, 2)), (0, (3, 1, 1, 1))
MARKERS = {"spike": "o", "normal": "s", "placebo": "^"}


@styled
def plot_noise(
    table: pd.DataFrame,
    *,
    branches: Sequence[str] | None = None,
    steps: Iterable[int] | None = None,
    batch_tokens: float | None = None,
    size: str = "page",
    ax: Axes | Sequence[Axes] | None = None,
) -> Figure:
    r"""Draw the ratio of Adam's moments, and the gradient noise scale that follows from it.

    First panel: :math:`\rho=\sum\hat m^2/\sum\hat v`, with the value that noise alone gives as a
    dashed line. Second: the noise scale :math:`(1-\rho)/(\rho-c_t)`, logarithmic, with a line at
    one batch. Where :math:`\rho\le c_t` it is not defined (larger than can be seen), and the point
    is an open triangle at the upper edge, counted in the title. Bars are one standard error with
    coordinates taken as independent, so at least that. Both need gradients that were steady over
    the last ~60 steps: read a spike against the branch without one.

    Parameters
    ----------
    table : DataFrame
        Measured table with ``adam_snr``, ``noise_scale``, or both. Over depth: one row a layer,
        from ``load_table(path, by="layer")``, or one module of ``by="tensor"``; tensors outside
        the layers are drawn to the right of them. Over training: ``by="all"``. Columns
        ``adam_snr_null``, ``adam_snr_se`` and ``noise_scale_se`` are used where they are there.
    branches : sequence of str, optional
        By default all.
    steps : sequence of int, optional
        Checkpoints to draw over depth, up to four; by default the last that most branches have.
        Over training all are drawn.
    batch_tokens : float, optional
        Tokens of a step: the noise scale is then in tokens, not in batches.
    size : str
        ``"column"`` (3.3 inches wide), ``"page"`` (7) or ``"slide"`` (10, with larger type).
    ax : Axes or sequence of Axes, optional
        One axes takes the first panel alone.

    Returns
    -------
    Figure

    Raises
    ------
    TableError
        If the table has no such rows, branches or steps, or several rows for one point.

    Examples
    --------
    >>> table = pd.DataFrame({"branch": "a", "step": 10, "tokens": 100, "layer": [0, 1],
    ...     "state": "adam", "adam_snr": [0.06, 0.05], "adam_snr_null": 0.0526})
    >>> plot_noise(table).axes[0].get_xlabel()
    'layer'
    """
    need_columns(table, ["branch", "step", "state", "layer"], TITLE, HINT)
    rows = table[table["state"] == "adam"]
    if "against" in rows.columns:
        rows = rows[rows["against"].fillna("") == ""]
    panels = [name for name in PANELS if name in rows.columns and rows["adam_snr"].notna().any()]
    if rows.empty or not panels:
        raise TableError(f'{TITLE}: no row of state "adam" has an adam_snr; {HINT}')
    rows = rows[rows["adam_snr"].notna()]  # none before the first step
    names = branches_of(rows, branches, TITLE)
    rows = rows[rows["branch"].isin(names)]
    deep = bool(rows["layer"].notna().any())
    chosen = steps_of(rows, names, steps, TITLE) if deep else []
    if deep:
        rows = rows[rows["step"].isin(chosen)]
    time = Scale("layer", 1.0, "layer", "") if deep else clock(rows, title=TITLE)
    keys = ["branch", "step", *(["layer"] if deep else [])]
    if rows.duplicated(keys).any():
        raise TableError(
            f'{TITLE}: several rows for one {" and ".join(keys)}; use load_table(path, by="layer") '
            'or by="all", or choose one module'
        )
    axes = given_axes(ax, panels, TITLE, first=True) or one_shape(len(panels), 2.1)
    handles: list[Artist] = []
    for panel, name in zip(axes, panels, strict=False):
        unit = (batch_tokens or 1.0) if name == "noise_scale" else 1.0
        found = _panel(panel, rows, name, time, names, chosen, unit)
        handles = handles or found
        _dress(panel, name, rows, time, batch_tokens)
    if "adam_snr_null" in rows.columns and "adam_snr" in panels:
        handles.append(Line2D([], [], color=GUIDE, lw=0.9, ls=NULL, label="noise alone (null)"))
    if "noise_scale" in panels and len(axes) > 1:
        said = "one batch" if batch_tokens is None else f"one batch ({batch_tokens:,.0f})"
        handles.append(Line2D([], [], color=GUIDE, lw=0.9, ls=BATCH, label=said))
    return legend(ax, axes[0], handles)


def _panel(
    ax: Axes, rows: pd.DataFrame, name: str, time: Scale, names: Sequence[str],
    steps: Sequence[int], unit: float,
) -> list[Artist]:  # fmt: skip
    """One line a branch, over depth one a branch and step."""
    handles: list[Artist] = []
    undefined, total = 0, 0
    _null(ax, rows, name, time)
    for (branch, step), (colour, dashes) in colours_of(names, steps or [0]).items():
        mine = rows[rows["branch"] == branch]
        mine = mine[mine["step"] == step] if steps else mine
        if mine.empty:
            continue
        mine = mine.sort_values(time.column, na_position="last", kind="stable")
        x, y = _x(mine, time, rows), unit * numbers(mine, name)
        look: dict[str, Any] = {"color": colour, "marker": MARKERS.get(branch, "D"), "lw": 0.9}
        error = None
        if f"{name}_se" in mine.columns:
            error = unit * numbers(mine, f"{name}_se")
            if name == "noise_scale":  # to the lower edge of a logarithmic axis, and not beyond
                error = np.stack([np.minimum(error, 0.9 * y), error])
        _joined(ax, x, y, error, mine["layer"].isna().to_numpy() & bool(steps), dashes, look)
        lost = np.isnan(y)
        undefined, total = undefined + int(lost.sum()), total + len(y)
        ax.plot(
            x[lost], np.full(int(lost.sum()), 0.97 - 0.045 * len(handles)), color=colour,
            marker="^", mfc="none", ls="none", transform=ax.get_xaxis_transform(), mew=0.6,
        )  # fmt: skip
        said = f"{branch}, step {step:,} (n = {len(y)})" if steps else f"{branch} (n = {len(y)})"
        handles.append(Line2D([], [], ls=dashes, label=said, **look))
    said = f"undefined, ρ ≤ null: {undefined} of {total}" if name == "noise_scale" else ""
    if f"{name}_se" in rows.columns:
        said = f"bars: ± 1 s.e. or more; {said}".removesuffix("; ")
    ax.set_title(said, fontsize="small")
    return handles


def _joined(
    ax: Axes, x: np.ndarray, y: np.ndarray, error: np.ndarray | None, outside: np.ndarray,
    dashes: Any, look: dict[str, Any],
) -> None:  # fmt: skip
    """Points, joined within the layers; what lies outside of them stands alone."""
    ax.plot(x, y, ls="none", **look)
    ax.plot(x[~outside], y[~outside], ls=dashes, color=look["color"], lw=look["lw"])
    if error is not None:
        ax.errorbar(x, y, error, fmt="none", ecolor=look["color"], elinewidth=0.8, capsize=1.5)


def _x(mine: pd.DataFrame, time: Scale, rows: pd.DataFrame) -> np.ndarray:
    x = time.of(mine[time.column])
    if time.column == "layer":
        last = float(rows["layer"].max())
        x = np.where(np.isnan(x), last + max(1.0, 0.06 * last), x)
    return x


def _null(ax: Axes, rows: pd.DataFrame, name: str, time: Scale) -> None:
    """Draw the null once: it depends on the step alone."""
    if name != "adam_snr" or "adam_snr_null" not in rows.columns:
        return
    look: dict[str, Any] = {"color": GUIDE, "lw": 0.9, "ls": NULL, "zorder": 1.8}
    known = rows[rows["adam_snr_null"].notna()]
    if time.column == "layer":
        for level in sorted(set(numbers(known, "adam_snr_null").round(6))):
            ax.axhline(level, **look)
    else:
        line = known.sort_values(time.column).drop_duplicates(time.column)
        ax.plot(time.of(line[time.column]), numbers(line, "adam_snr_null"), **look)


def _dress(
    ax: Axes, name: str, rows: pd.DataFrame, time: Scale, batch_tokens: float | None
) -> None:
    ax.set_xlabel(time.label)
    if name == "adam_snr":
        ax.set_ylabel("Σm̂² / Σv̂ (ratio)")
        ax.set_ylim(bottom=0)
    else:
        ax.set_ylabel(f"noise scale ({'batches' if batch_tokens is None else 'tokens'})")
        ax.set_yscale("log")
        one = batch_tokens or 1.0
        ax.axhline(one, color=GUIDE, lw=0.9, ls=BATCH, zorder=1.8)
        if not np.isfinite(numbers(rows, name)).any():
            ax.set_ylim(one / 10, one * 1000)
            ax.text(
                0.5, 0.5, "undefined everywhere:\nlarger than can be seen",
                transform=ax.transAxes, ha="center", va="center",
            )  # fmt: skip
        else:
            low, high = ax.get_ylim()
            ax.set_ylim(low, high * (high / low) ** 0.2)  # room for what is not defined
        log_ticks(ax.yaxis)
    if time.column == "layer":
        ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        if rows["layer"].isna().any():
            last = int(rows["layer"].max())
            shown = [t for t in ax.get_xticks() if 0 <= t <= last]
            there = last + max(1.0, 0.06 * last)
            ax.set_xticks([*shown, there], [*(f"{t:g}" for t in shown), "other"])
