"""What several figures share: their sizes, the axes they are given, and which checkpoints."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context, rcParams
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import Collection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from analysis360.errors import TableError
from analysis360.plots.style import (
    OKABE_ITO,
    Drawing,
    Scale,
    branch_colours,
    legend_above,
    need_columns,
    owner,
)

__all__ = [
    "DASHES", "GUIDE", "SIZES", "branches_of", "colours_of", "laid_out", "legend", "need",
    "numbers", "one_shape", "place", "sized", "steps_of",
]  # fmt: skip

SIZES = {"column": (3.3, 1.0), "page": (7.0, 1.0), "slide": (10.0, 1.6)}
"""Width in inches and how much larger than in print type and lines are."""

GUIDE = "#222222"
"""Colour of lines that are no data: nulls, bounds, laws."""

DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1, 1, 1)))
"""Line styles of up to four checkpoints of one branch."""

_SCALED = (
    "font.size", "axes.titlesize", "axes.labelsize", "xtick.labelsize", "ytick.labelsize",
    "legend.fontsize", "figure.titlesize", "axes.linewidth", "grid.linewidth", "hatch.linewidth",
)  # fmt: skip


@contextmanager
def sized(size: str, title: str) -> Iterator[tuple[float, float]]:
    """Enlarge type inside the block as the size asks; give the width and that factor.

    Lines and markers are enlarged by `legend`, which is called last.

    Raises
    ------
    ValueError
        If there is no such size.
    """
    if size not in SIZES:
        raise ValueError(f"{title}: size={size!r}; allowed: {', '.join(SIZES)}")
    wide, factor = SIZES[size]
    now: Any = rcParams
    larger: Any = {name: now[name] * factor for name in _SCALED}
    with rc_context(larger):
        yield wide, factor


def need(frame: pd.DataFrame, columns: Sequence[str], title: str, hint: str) -> None:
    """Refuse a frame that is empty or lacks columns, and say how to get one that does not.

    Raises
    ------
    TableError
        What `need_columns` says, and the hint.
    """
    try:
        need_columns(frame, columns, title)
    except TableError as error:
        raise TableError(f"{error}; {hint}") from None


def laid_out(
    ax: Axes | Sequence[Axes] | None,
    names: Sequence[str],
    title: str,
    make: Callable[[], Sequence[Axes]],
) -> list[Axes]:
    """Axes for the panels: new ones, one that is given for the first, or one for each.

    Raises
    ------
    TableError
        If a sequence of another length was given.
    """
    if isinstance(ax, Axes):
        return [ax]
    if ax is not None:
        given = list(ax)
        if len(given) != len(names):
            raise TableError(f"{title}: {len(given)} axes were given for the panels {list(names)}")
        return given
    made = list(make())
    for each in made:  # ticks are made when it is saved, and would take the size of print
        each.tick_params(axis="x", labelsize=rcParams["xtick.labelsize"])
        each.tick_params(axis="y", labelsize=rcParams["ytick.labelsize"])
    return made


def one_shape(count: int, size: str, tall: float, columns: int = 2) -> Callable[[], list[Axes]]:
    """Make `count` panels, one below the other in a column of a paper, side by side elsewhere."""

    def make() -> list[Axes]:
        wide, factor = SIZES[size]
        beside = 1 if size == "column" else min(count, columns)
        high = -(-count // beside)
        figure = Drawing(figsize=(wide, (tall * high + 0.5) * factor), layout="constrained")
        made: list[Axes] = list(figure.subplots(high, beside, squeeze=False).ravel())
        for empty in made[count:]:
            empty.remove()
        return made[:count]

    return make


def legend(
    ax: Axes | Sequence[Axes] | None, first: Axes, handles: Sequence[Artist], size: str
) -> Figure:
    """Put the legend above a figure of one's own, or above the first axes that were given."""
    figure = owner(first)
    if ax is None:
        kinds = ("lines", "patches", "collections")
        drawn = [one for axes in figure.axes for kind in kinds for one in getattr(axes, kind)]
        _enlarge([*drawn, *handles], SIZES[size][1])
    labels = [str(handle.get_label()) for handle in handles]
    room = {"column": 66, "page": 140, "slide": 125}[size]  # signs in a line, and 7 for a handle
    plain = [re.sub(r"\$[^$]*\$", "formula", label) for label in labels]
    longest = max((len(label) for label in plain), default=0) + 7
    columns = min(max(1, room // longest), 5)
    if ax is None and handles:
        figure.legend(
            list(handles), labels, loc="outside upper left", ncols=columns, columnspacing=1.2
        )
    elif handles:
        legend_above(first, columns, handles=list(handles), labels=labels)
    return figure


def _enlarge(drawn: Sequence[Artist], factor: float) -> None:
    """Lines as much wider as the type is larger."""
    for one in drawn if factor != 1 else ():
        if isinstance(one, Line2D):
            one.set_markersize(one.get_markersize() * factor)
            one.set_markeredgewidth(one.get_markeredgewidth() * factor)
        if isinstance(one, Line2D | Patch):
            one.set_linewidth(one.get_linewidth() * factor)
        elif isinstance(one, Collection):
            one.set_linewidth(list(factor * np.atleast_1d(one.get_linewidth())))


def numbers(frame: pd.DataFrame, column: str) -> np.ndarray:
    """One column as float64, NaN where missing."""
    found: np.ndarray = frame[column].to_numpy(dtype=np.float64, na_value=np.nan)
    return found


def place(rows: pd.DataFrame, time: Scale, step: Any) -> float:
    """Where on the axis a training step of these rows lies, between them in proportion."""
    if pd.isna(step):
        return float("nan")
    steps = numbers(rows, "step")
    order = np.argsort(steps, kind="stable")
    return float(np.interp(float(step), steps[order], time.of(rows[time.column])[order]))


def branches_of(frame: pd.DataFrame, wanted: Sequence[str] | None, title: str) -> list[str]:
    """Branches to draw, by default all, the reference before the others.

    Raises
    ------
    TableError
        If the frame lacks one that was asked for.
    """
    known = [str(branch) for branch in dict.fromkeys(frame["branch"])]
    if wanted is None:
        return sorted(known, key=lambda name: (name != "placebo", name != "normal"))
    absent = [name for name in wanted if name not in known]
    if absent:
        raise TableError(f"{title}: no such rows for the branches {absent}; there are {known}")
    return list(wanted)


def steps_of(
    frame: pd.DataFrame, branches: Sequence[str], wanted: Iterable[int] | None, title: str
) -> list[int]:
    """Steps to draw: those asked for, or the last one that most of the branches have.

    Raises
    ------
    TableError
        If no branch has one that was asked for, or more were than there are line styles.
    """
    rows = frame[frame["branch"].isin(list(branches)) & frame["step"].notna()]
    counts = rows.groupby("step")["branch"].nunique()
    if counts.empty:
        raise TableError(f"{title}: no row of the branches {list(branches)} has a step")
    if wanted is None:
        return [int(counts.index[counts == counts.max()].max())]
    steps = [int(step) for step in wanted]
    absent = [step for step in steps if step not in counts.index]
    if absent:
        there = [int(step) for step in counts.index]
        raise TableError(f"{title}: no checkpoint at the steps {absent}; there are {there}")
    if not 1 <= len(steps) <= len(DASHES):
        raise TableError(
            f"{title}: {len(steps)} steps were asked for; 1 to {len(DASHES)} are drawn"
        )
    return steps


def colours_of(branches: Sequence[str], steps: Sequence[int]) -> dict[tuple[str, int], Any]:
    """Colour and line style of each branch and step."""
    colours = branch_colours(branches)
    return {
        (branch, step): (colours.get(branch, OKABE_ITO["black"]), dashes)
        for branch in branches
        for step, dashes in zip(steps, DASHES, strict=False)
    }
