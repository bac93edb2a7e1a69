"""Axes and legends: which axes a figure draws into, and legends that fit the width there is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.legend import Legend

from analysis360.errors import TableError
from analysis360.plots.wrapping import wrapped

__all__ = ["fitted", "given_axes", "legend_above"]


def given_axes(
    ax: Axes | Iterable[Axes] | None, panels: Sequence[str], title: str, *, first: bool = False
) -> list[Axes] | None:
    """Axes that a caller gave, one for each panel, or None if the figure is to be made.

    Parameters
    ----------
    ax : Axes, sequence of Axes or None
        As the caller gave it; an array of axes is read line by line.
    panels : sequence of str
        What each axes is for, in order.
    title : str
        Who asks, for the message.
    first : bool
        Whether one axes takes the first panel alone, where there are several.

    Raises
    ------
    TableError
        If the number of axes is not that of the panels: it names the panels.

    Examples
    --------
    >>> given_axes(None, ["loss"], "plot_loss") is None
    True
    """
    if ax is None:
        return None
    if isinstance(ax, Axes):
        axes: list[Any] = [ax]
    else:
        axes = list(np.ravel(np.array(list(ax), dtype=object)))
    wrong = [type(one).__name__ for one in axes if not isinstance(one, Axes)]
    if wrong:
        raise TableError(f"{title}: ax= takes matplotlib axes, and was given {wrong}")
    if len(axes) != len(panels) and not (first and len(axes) == 1):
        more = ", or one for the first panel alone" if first and len(panels) > 1 else ""
        raise TableError(
            f"{title}: {len(axes)} axes were given for {len(panels)} panels {list(panels)}; "
            f"ax= takes one axes for each panel{more}"
        )
    return axes


def fitted(make: Callable[[int], Legend], columns: int, room: float) -> Legend:
    """Legend in as many columns, up to `columns`, as `room` pixels hold."""
    for count in range(max(columns, 1), 1, -1):
        legend = make(count)
        if legend.get_window_extent().width <= room:
            return legend
        legend.remove()
    return make(1)


def legend_above(ax: Axes, columns: int = 4, **given: Any) -> None:
    """Put the legend above the axes, where it covers no data, in the columns that fit."""
    handles, labels = given.pop("handles", None), given.pop("labels", None)
    if handles is None:
        handles, labels = ax.get_legend_handles_labels()
    if not handles:
        return
    if labels is None:
        labels = [str(handle.get_label()) for handle in handles]
    lifted = 1.0 if not ax.get_title(loc="left") else _above_title(ax)

    room, dpi = 0.95 * ax.get_window_extent().width, _dpi(ax)

    def make(count: int) -> Legend:
        said = labels
        if count == 1:  # the last resort: longer labels in several lines
            size = float(rcParams["legend.fontsize"])
            width = room / dpi * 72 - 4 * size
            said = ["\n".join(wrapped(str(label), width, size)) for label in labels]
        return ax.legend(
            handles, said, loc="lower left", bbox_to_anchor=(0.0, lifted), ncols=count,
            columnspacing=1.2, **given,
        )  # fmt: skip

    legend = fitted(make, min(columns, len(handles)), room)
    if legend.get_window_extent().width > 0.6 * room:
        # a wide legend may grow to the left, over the labels of the axis, and so never past an edge
        legend.set_loc("lower right")
        legend.set_bbox_to_anchor((1.0, lifted), ax.transAxes)


def _above_title(ax: Axes) -> float:
    """Height above the axes, in units of it, that its own title takes."""
    lines = ax.get_title(loc="left").count("\n") + 1
    tall = ax.get_window_extent().height / _dpi(ax) * 72
    return 1.0 + lines * 12.0 / max(tall, 1.0)


def _dpi(ax: Axes) -> float:
    figure = ax.get_figure(root=True)
    return 72.0 if figure is None else float(figure.dpi)
