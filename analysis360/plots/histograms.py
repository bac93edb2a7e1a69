"""Distributions of what Adam divides by, and of its update: one line a branch and checkpoint."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis360.errors import TableError
from analysis360.plots.axes import given_axes
from analysis360.plots.panels import (
    GUIDE,
    branches_of,
    colours_of,
    legend,
    one_shape,
    steps_of,
)  # fmt: skip
from analysis360.plots.style import OKABE_ITO, need_columns, short, styled
from analysis360.recipe import Adam

__all__ = ["magnitude_edges", "plot_moment_histograms"]

TITLE = "plot_moment_histograms"
ROOT, UPDATE = "root_v_bins", "update_bins"
MEASURE = {ROOT: "v_anisotropy", UPDATE: "update_p50"}
"""A statistic that rests on each histogram: measuring it keeps the histogram."""

HINT = 'measure v_anisotropy and update_p50, then load_table(path, kind="vectors")'

SMALLEST = 2.0**-6
"""Width of the first bin drawn of the update: those below it, each with few elements, are one."""

TOGETHER = 4
"""Stored bins of the second moment that are drawn as one: half an octave."""

Values = npt.NDArray[np.float64]


def magnitude_edges(bins: int) -> Values:
    """Where the bins of stored histograms of magnitudes begin and end.

    Each octave from 2**-96 on is cut into 8 equal bins; the first bin begins at 0, and the last
    has no end.

    Examples
    --------
    >>> [float(edge) for edge in magnitude_edges(1026)[[0, -2, -1]]]
    [0.0, 4294967296.0, inf]
    """
    at = np.arange(bins - 1)
    inner = np.ldexp(1 + at % 8 / 8, at // 8 - 96)
    return np.concatenate([[0.0], inner, [np.inf]])


@styled
def plot_moment_histograms(
    vectors: pd.DataFrame,
    *,
    branches: Sequence[str] | None = None,
    steps: Iterable[int] | None = None,
    adam: Adam | None = None,
    size: str = "page",
    ax: Axes | Sequence[Axes] | None = None,
) -> Figure:
    r"""Draw how :math:`\sqrt{\hat v}` and Adam's update are distributed over the elements.

    The counts of all tensors in the frame are added, so choose rows to see fewer:
    ``vectors[vectors["module"] == "embed"]``. Under both logarithmic axes the area is the share of
    the elements. How far the branches without a spike differ is the scatter to read a spike
    against.

    Parameters
    ----------
    vectors : DataFrame
        From ``load_table(path, kind="vectors")``, with ``root_v_bins`` (kept by measuring
        ``v_anisotropy``), ``update_bins`` (by ``update_p50``), or both; one panel each.
    branches : sequence of str, optional
        By default all.
    steps : sequence of int, optional
        Up to four; by default the last that most of the branches have.
    adam : Adam, optional
        ``run.adam``: marks epsilon, the bound of the update (1.165 for β = 0.9 and 0.95), and a
        Gaussian of RMS :math:`\sqrt{(1-\beta_1)/(1+\beta_1)}`, which the update is under steady
        zero-mean noise with :math:`\hat v` held fixed.
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
        If the frame is empty or has no such histograms, branches, steps, or finite counts.

    Examples
    --------
    >>> counts = np.bincount([700, 700, 710], minlength=1026).astype(float)
    >>> vectors = pd.DataFrame({"branch": "a", "step": [7], "vector": "root_v_bins",
    ...     "name": "w", "values": [counts]})
    >>> plot_moment_histograms(vectors).axes[0].get_xlabel()
    '√v̂ (unit of the gradient)'
    """
    need_columns(vectors, ["branch", "step", "vector", "name", "values"], TITLE, HINT)
    rows = vectors[vectors["vector"].isin(list(MEASURE))]
    if "against" in rows.columns:
        rows = rows[rows["against"].fillna("") == ""]
    if rows.empty:
        there = list(dict.fromkeys(vectors["vector"]))
        raise TableError(
            f"{TITLE}: no row is a histogram of the moments, there are {there}; {HINT}"
        )
    names = branches_of(rows, branches, TITLE)
    chosen = steps_of(rows, names, steps, TITLE)
    panels = [name for name in MEASURE if (rows["vector"] == name).any()]
    axes = given_axes(ax, panels, TITLE, first=True) or one_shape(len(panels), 2.3)
    handles: dict[str, Artist] = {}
    for panel, name in zip(axes, panels, strict=False):
        mine = rows[rows["vector"] == name]
        handles |= {str(h.get_label()): h for h in _lines(panel, mine, names, chosen)}
        panel.set_yscale("log")
        dress = _root if name == ROOT else _update
        handles |= {str(h.get_label()): h for h in dress(panel, adam)}
    return legend(ax, axes[0], list(handles.values()))


def _lines(
    ax: Axes, rows: pd.DataFrame, names: Sequence[str], steps: Sequence[int]
) -> list[Artist]:
    """One line a branch and step, and who they are."""
    handles: list[Artist] = []
    sizes, lost, linear = set(), 0.0, bool((rows["vector"] == UPDATE).all())
    for (branch, step), (colour, dashes) in colours_of(names, steps).items():
        mine = rows[(rows["branch"] == branch) & (rows["step"] == step)]
        finite = [np.asarray(v, dtype=np.float64) for v in mine["values"]]
        finite = [values for values in finite if np.isfinite(values).all() and values.sum() > 0]
        if not finite:
            continue
        if mine["name"].duplicated().any() or len({len(values) for values in finite}) > 1:
            raise TableError(
                f"{TITLE}: branch {branch!r}, step {step}: a tensor is there twice, or bins differ"
            )
        counts = np.sum(finite, axis=0)
        sizes.add((int(counts.sum()), len(finite)))
        lost = max(lost, float((counts[0] + counts[-1]) / counts.sum()))
        _stairs(ax, counts, linear, colour, dashes)
        handles.append(
            Line2D([], [], color=colour, ls=dashes, lw=1.1, label=f"{branch}, step {step:,}")
        )
    if not handles:
        raise TableError(
            f"{TITLE}: branches {list(names)} at the steps {list(steps)} have no finite counts: "
            "before the first step there are no moments"
        )
    few, many = min(sizes), max(sizes)
    said = f"n = {few[0]:,} elements, tensors: {few[1]}"
    if few != many:
        said = f"n = {few[0]:,} to {many[0]:,} elements, tensors: {few[1]} to {many[1]}"
    if lost > 0:
        where = "in the first bin" if linear else "not drawn"
        said += f";\nup to {short(100 * lost)} % are 0, {where}"
    ax.set_title(said, fontsize="small")
    return handles


def _stairs(ax: Axes, counts: Values, linear: bool, colour: Any, dashes: Any) -> None:
    """Share of the elements per decade of √v̂, or per unit of the update."""
    edges = magnitude_edges(len(counts))
    share = counts / counts.sum()
    if linear:
        first = int(np.searchsorted(edges, SMALLEST))
        edges = np.concatenate([[0.0], edges[first:]])
        share = np.concatenate([[share[:first].sum()], share[first:]])
    else:
        edges = np.concatenate([edges[:1], edges[1:-1:TOGETHER], edges[-1:]])
        share = np.concatenate(
            [[0.0], share[1:-1].reshape(-1, TOGETHER).sum(1), share[-1:]]
        )  # zeros have no logarithm
    share[-1] = 0.0
    there = np.flatnonzero(share)
    if not len(there):
        return
    kept = slice(int(there[0]), int(there[-1]) + 1)
    edges, share = edges[kept.start : kept.stop + 1], share[kept]
    with np.errstate(divide="ignore"):
        wide = np.diff(edges) if linear else np.diff(np.log10(edges))
    height = np.where(share > 0, share / wide, np.nan)
    ax.plot(
        edges, np.append(height, height[-1]), color=colour, ls=dashes, lw=1.1,
        drawstyle="steps-post",
    )  # fmt: skip


def _root(ax: Axes, adam: Adam | None) -> list[Artist]:
    ax.set_xscale("log")
    ax.set_xlabel("√v̂ (unit of the gradient)")
    ax.set_ylabel("share per decade")
    if adam is None or not adam.eps:
        return []
    look: dict[str, Any] = {"color": GUIDE, "lw": 0.9, "ls": (0, (1, 1.2))}
    ax.axvline(adam.eps, **look)
    return [Line2D([], [], label=f"epsilon ({adam.eps:g})", **look)]


def _update(ax: Axes, adam: Adam | None) -> list[Artist]:
    ax.set_xlabel("size of the update |u| (learning rates)")
    ax.set_ylabel("share per unit of |u|")
    ax.set_xlim(left=0)
    if adam is None or adam.beta1 is None or adam.beta2 is None:
        return []
    handles: list[Artist] = []
    low, high = ax.get_ylim()
    spread = math.sqrt((1 - adam.beta1) / (1 + adam.beta1))
    x = np.linspace(0, 6 * spread, 200)
    y = 2 / (spread * math.sqrt(2 * math.pi)) * np.exp(-0.5 * (x / spread) ** 2)
    kept = y >= low
    look: dict[str, Any] = {"color": GUIDE, "lw": 0.9, "ls": (0, (5, 1, 1, 1))}
    ax.plot(x[kept], y[kept], **look)
    handles.append(Line2D([], [], label=f"Gaussian of RMS {spread:.3f}", **look))
    ax.set_ylim(low, max(high, 2 * float(y[0])))
    if adam.beta1**2 < adam.beta2:
        ratio = (1 - adam.beta2) * (1 - adam.beta1**2 / adam.beta2)
        bound = (1 - adam.beta1) / math.sqrt(ratio)
        look = {"color": OKABE_ITO["purple"], "lw": 0.9, "ls": (0, (3, 1, 1, 1))}
        ax.axvline(bound, **look)
        ax.set_xlim(0, 1.05 * max(bound, ax.dataLim.xmax))
        handles.append(Line2D([], [], label=f"bound ({bound:.3f})", **look))
    return handles
