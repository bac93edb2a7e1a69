"""The one look of all figures: type sizes, colours, units, and figures without pyplot.

Nothing here changes matplotlib's global settings: `style` is a context, and a figure is a plain
`matplotlib.figure.Figure` that no window and no figure list knows of.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ParamSpec

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import Collection, PathCollection
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from analysis360.errors import TableError
from analysis360.plots.axes import fitted, legend_above

__all__ = [
    "COLUMN",
    "OKABE_ITO",
    "PAGE",
    "Drawing",
    "Scale",
    "branch_colours",
    "clock",
    "legend_above",
    "log_ticks",
    "module_rank",
    "need_columns",
    "owner",
    "page",
    "save_svg",
    "scale",
    "short",
    "style",
    "styled",
]

PAGE = 7.0
"""Width of a figure over both columns of a paper, in inches."""
COLUMN = 3.4
"""Width of a figure in one column of a paper, in inches."""

OKABE_ITO = {
    "blue": "#0072B2", "vermilion": "#D55E00", "green": "#009E73", "purple": "#CC79A7",
    "orange": "#E69F00", "sky": "#56B4E9", "yellow": "#F0E442", "black": "#000000",
    "grey": "#7F7F7F",
}  # fmt: skip
"""Okabe and Ito's colours, which people with any common colour vision tell apart, and a grey."""

_FIXED = {"normal": "blue", "spike": "vermilion", "placebo": "grey"}
_OTHERS = ("green", "purple", "orange", "sky", "black")

_SETTINGS: Any = {
    "font.family": "DejaVu Sans", "font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8,
    "xtick.labelsize": 7, "ytick.labelsize": 7, "legend.fontsize": 7, "figure.titlesize": 9,
    "axes.titlelocation": "left", "axes.titlepad": 4, "axes.linewidth": 0.6,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "axes.axisbelow": True, "grid.color": "#e4e4e4", "grid.linewidth": 0.5,
    "axes.formatter.useoffset": False,
    "lines.linewidth": 1.2, "lines.markersize": 3, "hatch.linewidth": 0.5,
    "legend.frameon": False, "legend.handlelength": 1.8, "legend.borderaxespad": 0.2,
    "figure.dpi": 110, "savefig.dpi": 200, "figure.facecolor": "white",
    "savefig.facecolor": "white", "svg.fonttype": "path", "svg.hashsalt": "analysis360",
    "pdf.fonttype": 42, "figure.constrained_layout.h_pad": 0.04,
    "figure.constrained_layout.w_pad": 0.04,
}  # fmt: skip

DENSE = 1000
"""Points of a line above which it is drawn as pixels inside a vector figure."""

PIXELS = 160
"""Those of such lines to an inch: at 200, 80 noisy layers take over a megabyte."""

Asked = ParamSpec("Asked")


_WIDTH: ContextVar[float] = ContextVar("width of new figures, inches", default=PAGE)


def page() -> float:
    """Width in inches that new figures have: `PAGE`, or what `style` was given."""
    return _WIDTH.get()


class Drawing(Figure):
    """A matplotlib Figure that is saved in the look it was drawn in, and shows itself.

    A notebook displays it also where pyplot is not loaded. It is as wide as asked on a page of
    `PAGE` inches; inside ``style(width=…)`` no wider than that, or enlarged to it.
    """

    def __init__(self, *args: Any, **given: Any) -> None:
        self.drawn_for = page()
        if not args and "figsize" in given:
            wide, tall = given["figsize"]
            more = max(page() / PAGE, 1.0)
            given["figsize"] = (min(wide * more, page()) if page() != PAGE else wide, tall * more)
        super().__init__(*args, **given)

    def legend(self, *args: Any, **given: Any) -> Legend:
        """Add a legend as `matplotlib.figure.Figure.legend` does, in the columns that fit."""
        columns = given.pop("ncols", 1)

        def make(count: int) -> Legend:
            return super(Drawing, self).legend(*args, ncols=count, **given)

        return fitted(make, columns, 0.97 * self.bbox.width)

    def savefig(self, fname: Any, **given: Any) -> None:
        """Save as `matplotlib.figure.Figure.savefig` does, with the settings of `style`."""
        with style(width=self.drawn_for):  # ticks are made now, and are as large as the rest
            super().savefig(fname, **given)

    def _repr_png_(self) -> bytes:
        with io.BytesIO() as buffer:
            self.savefig(buffer, format="png", dpi=self.dpi)
            return buffer.getvalue()


def _enlarged(key: str) -> bool:
    """Whether a setting grows with the width; `_thicken` sees to what is drawn in the axes."""
    return key.endswith(("size", "linewidth")) and not key.startswith("lines.")


@contextmanager
def style(width: float | None = None) -> Iterator[None]:
    """Draw in the look of this package inside the block, and as before after it.

    Parameters
    ----------
    width : float, optional
        Width of new figures in inches. Under 7 they are laid out anew with type of the same size,
        for one column of a paper (3.3); above, they are enlarged with their type, for a slide
        (10). By default that of the block around, or 7.

    Raises
    ------
    ValueError
        If the width is under 2 inches.

    Examples
    --------
    >>> import matplotlib
    >>> before = matplotlib.rcParams["font.size"]
    >>> with style():
    ...     matplotlib.rcParams["font.size"]
    8.0
    >>> matplotlib.rcParams["font.size"] == before
    True
    >>> with style(width=3.3):
    ...     float(Drawing(figsize=(7, 2)).get_size_inches()[0])
    3.3
    """
    width = page() if width is None else float(width)
    if not width >= 2:
        raise ValueError(f"style: a figure must be at least 2 inches wide, not {width}")
    more = max(width / PAGE, 1.0)
    larger = {key: more * _SETTINGS[key] for key in _SETTINGS if _enlarged(key)}
    before = _WIDTH.set(width)
    try:
        with rc_context(_SETTINGS | larger):
            yield
    finally:
        _WIDTH.reset(before)


SIZES: dict[str, float | None] = {"column": 3.3, "page": None, "slide": 10.0}
"""Width of a new figure in inches by name; a page is as wide as the block of `style` says."""


def styled(draw: Callable[Asked, Figure]) -> Callable[Asked, Figure]:
    """Let a drawing function run inside `style`, in the width that its ``size`` names."""

    @functools.wraps(draw)
    def inside(*args: Asked.args, **kwargs: Asked.kwargs) -> Figure:
        size = kwargs.get("size", "page")
        if size not in SIZES:
            raise ValueError(f"{draw.__name__}: size is one of {list(SIZES)}, not {size!r}")
        with style(width=SIZES[str(size)]):
            figure = draw(*args, **kwargs)
            if kwargs.get("ax") is None and page() > PAGE:
                _thicken(figure, page() / PAGE)
            return figure

    return inside


def _thicken(figure: Figure, more: float) -> None:
    """Make lines and markers as much larger as the type is."""
    drawn: list[Any] = []
    legends = [*figure.legends, *(ax.get_legend() for ax in figure.axes)]
    for ax in figure.axes:
        drawn += [*ax.lines, *ax.patches, *ax.collections]
    for legend in legends:
        if legend is not None:
            drawn += [*legend.get_lines(), *legend.get_patches(), *legend.findobj(Collection)]
    for one in drawn:
        if isinstance(one, Line2D):
            one.set_markersize(one.get_markersize() * more)
            one.set_markeredgewidth(one.get_markeredgewidth() * more)
        if isinstance(one, Line2D | Patch):
            one.set_linewidth(one.get_linewidth() * more)
        else:
            one.set_linewidth(list(more * np.atleast_1d(one.get_linewidth())))
        if isinstance(one, PathCollection):
            one.set_sizes(more**2 * np.asarray(one.get_sizes()))


def save_svg(figure: Figure) -> str:
    """Text of the SVG element of a figure, the same text for the same figure.

    Parameters
    ----------
    figure : Figure

    Returns
    -------
    str
        From ``<svg`` to ``</svg>``, without the XML prologue and without a date.

    Examples
    --------
    >>> save_svg(Drawing(figsize=(1, 1)))[:4]
    '<svg'
    """
    with style(width=getattr(figure, "drawn_for", None)), io.StringIO() as buffer:
        figure.savefig(buffer, format="svg", dpi=PIXELS, metadata={"Date": None, "Creator": None})
        text = buffer.getvalue()
    return text[text.index("<svg") :].rstrip()


@dataclass(frozen=True, slots=True)
class Scale:
    """How numbers become the numbers on an axis: divide by `factor`, and write `label`.

    Attributes
    ----------
    column : str
        Column of the frame.
    factor : float
    label : str
        Axis label with the unit, for example ``"tokens (B)"``.
    unit : str
        The prefix alone, ``"B"``, ``"M"``, ``"k"`` or nothing.
    """

    column: str
    factor: float
    label: str
    unit: str

    def of(self, values: Any) -> np.ndarray:
        """Values in the unit of the axis, as float64, NaN where missing."""
        series = pd.Series(values)
        return series.astype("Float64").to_numpy(dtype=np.float64, na_value=np.nan) / self.factor


def scale(column: str, largest: float) -> Scale:
    """Choose the unit for an axis whose largest value is `largest`.

    Examples
    --------
    >>> scale("tokens", 1.4e12).label, scale("step", 800).label, scale("tokens", 61440).label
    ('tokens (B)', 'step', 'tokens (k)')
    """
    name = column.replace("_", " ")
    for factor, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if largest >= factor:
            return Scale(column, factor, f"{name} ({unit})", unit)
    return Scale(column, 1.0, name, "")


def clock(frame: pd.DataFrame, *, title: str) -> Scale:
    """Choose what the x axis counts: tokens where every row has them, else steps, else numbers.

    Raises
    ------
    TableError
        If no such column is complete.
    """
    for column in ("tokens", "step", "number"):
        if column in frame.columns and frame[column].notna().all():
            found = scale(column, float(frame[column].max()))
            if column == "number":
                return Scale(column, 1.0, "checkpoint", "")
            return found
    raise TableError(f"{title}: no row order; tokens, step or number must be known in every row")


def need_columns(frame: pd.DataFrame, columns: Sequence[str], title: str, hint: str = "") -> None:
    """Refuse a frame that is empty or lacks columns, in one sentence that ends with the hint.

    Raises
    ------
    TableError
        Naming what is missing and what is there.
    """
    more = f"; {hint}" if hint else ""
    if not isinstance(frame, pd.DataFrame):
        kind = type(frame).__name__
        raise TableError(f"{title}: expected a pandas DataFrame, not {kind}{more}")
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        there = list(frame.columns)
        raise TableError(f"{title}: columns {missing} are missing; there are {there}{more}")
    if frame.empty:
        raise TableError(f"{title}: the frame has no rows, so there is nothing to draw{more}")


def branch_colours(branches: Sequence[Any]) -> dict[str, str]:
    """Colour of each branch: fixed for normal, spike and placebo, then by order.

    A name that only begins with a fixed one (``"spike-2"``) takes its colour if that is free.

    Examples
    --------
    >>> branch_colours(["spike", "main", "normal"])
    {'spike': '#D55E00', 'main': '#009E73', 'normal': '#0072B2'}
    """
    names = list(dict.fromkeys(str(branch) for branch in branches))
    chosen = {name: _FIXED[name] for name in names if name in _FIXED}
    for name in names:
        for stem, colour in _FIXED.items():
            if name not in chosen and name.startswith(stem) and colour not in chosen.values():
                chosen[name] = colour
    others = [colour for colour in _OTHERS if colour not in chosen.values()]
    for place, name in enumerate(name for name in names if name not in chosen):
        chosen[name] = others[place % len(others)]
    return {name: OKABE_ITO[chosen[name]] for name in names}


_MODULES = (
    "attn", "attn.q", "attn.k", "attn.v", "attn.qkv", "attn.o", "mlp", "mlp.gate", "mlp.up",
    "mlp.down", "norm", "norm.attn", "norm.mlp", "embed", "norm.final", "head",
)  # fmt: skip


def module_rank(module: str) -> tuple[int, int]:
    """Sort key of a module: attention, MLP, norms, the rest; within them as data flows.

    Examples
    --------
    >>> sorted(["head", "norm.attn", "mlp.up", "attn.k", "attn.q"], key=module_rank)
    ['attn.q', 'attn.k', 'mlp.up', 'norm.attn', 'head']
    """
    groups = ("attn", "mlp", "norm")
    head = module.split(".")[0]
    group = groups.index(head) if head in groups else len(groups)
    return group, _MODULES.index(module) if module in _MODULES else len(_MODULES)


def log_ticks(axis: Axis) -> None:
    """Write few and plain numbers on a logarithmic axis; call it when all is drawn."""
    low, high = sorted(axis.get_view_interval())
    if low > 0 and high / low < 4:
        axis.set_major_locator(MaxNLocator(5))
    elif low > 0 and high / low < 200:
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    else:
        return
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def short(value: float) -> str:
    """Three digits that matter, and no exponent for what an axis holds.

    Examples
    --------
    >>> short(1415.31), short(0.0123), short(62.9)
    ('1,415', '0.0123', '62.9')
    """
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def owner(ax: Axes) -> Figure:
    """Figure that an axes belongs to, also when it lies in a subfigure."""
    found = ax.get_figure(root=True)
    if found is None:
        raise ValueError("ax= was given an Axes that belongs to no figure")
    return found
