"""What several figures of checkpoints share: their panels, which branches, and which steps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis360.errors import TableError
from analysis360.plots.axes import legend_above
from analysis360.plots.style import (
    OKABE_ITO,
    PAGE,
    Drawing,
    Scale,
    branch_colours,
    owner,
    page,
)

__all__ = [
    "DASHES", "GUIDE", "branches_of", "colours_of", "legend", "numbers", "one_shape", "place",
    "steps_of",
]  # fmt: skip

GUIDE = "#222222"
"""Colour of lines that are no data: nulls, bounds, laws."""

DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1, 1, 1)))
"""Line styles of up to four checkpoints of one branch."""


def one_shape(count: int, tall: float, columns: int = 2) -> list[Axes]:
    """Make `count` panels, one below the other in a column of a paper, side by side elsewhere."""
    beside = min(count, columns if page() >= PAGE else 1)
    high = -(-count // beside)
    figure = Drawing(figsize=(PAGE, tall * high + 0.5), layout="constrained")
    made: list[Axes] = list(figure.subplots(high, beside, squeeze=False).ravel())
    for empty in made[count:]:
        empty.remove()
    return made[:count]


def legend(ax: Axes | Sequence[Axes] | None, first: Axes, handles: Sequence[Artist]) -> Figure:
    """Put the legend above a figure of one's own, or above the first axes that were given."""
    figure = owner(first)
    if ax is None and handles:
        figure.legend(handles=list(handles), loc="outside upper left", ncols=5, columnspacing=1.2)
    elif handles:
        legend_above(first, 5, handles=list(handles))
    return figure


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
