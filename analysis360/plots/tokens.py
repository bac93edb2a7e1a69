"""Which tokens the gradients were about: rows of an embedding or a head, ranked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter, StrMethodFormatter

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
from analysis360.plots.style import DENSE, log_ticks, module_rank, need_columns, styled

__all__ = ["plot_tokens"]

TITLE = "plot_tokens"
LABELS = {"row_v_sum": "Σv̂ of the row\n(gradient squared)"}
NORMS = "row_square_sum"
HINT = 'measure v_row_top_share, then rank_tokens(load_table(path, kind="vectors"))'
BINS = 40
LEAST = 1e-6
"""Of the largest value: smaller ones lie below the axis. They have not been seen for long."""

ROOM = 1.2
"""Height of the list of names over that of the first rows, both in decades."""

SIGNS = str.maketrans({"Ġ": "␣", "▁": "␣", "Ċ": "↵"})
"""Signs by which tokenizers write a space and a new line, as people know them."""


@styled
def plot_tokens(
    ranked: pd.DataFrame,
    vectors: pd.DataFrame | None = None,
    *,
    branches: Sequence[str] | None = None,
    steps: Iterable[int] | None = None,
    label: int = 6,
    size: str = "page",
    ax: Axes | Sequence[Axes] | None = None,
) -> Figure:
    r"""Draw the rows of each matrix by rank, and name the first of them.

    A panel for each matrix: the value of each row against its rank, both logarithmic. The first
    rows of the branch ``"spike"`` (or of the last one drawn) are named, with their share of the
    sum. With `vectors` all rows are
    drawn, not the ranked ones alone, and below them is a histogram of the norms of the rows where
    those were kept: tokens never trained are small and alike. Frequent tokens come first in any
    batch, so read a branch against the others.

    Parameters
    ----------
    ranked : DataFrame
        As `analysis360.rank_tokens` returns it.
    vectors : DataFrame, optional
        From ``load_table(path, kind="vectors")``, which `ranked` was made of; norms need
        ``row_norm_median`` to have been measured.
    branches : sequence of str, optional
        By default all.
    steps : sequence of int, optional
        Up to four; by default the last that most of the branches have. The second moment forgets a
        batch in some 15 steps (β2 = 0.95).
    label : int
        How many rows to name.
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
        If a frame lacks columns, or there are no such branches or steps.

    Examples
    --------
    >>> ranked = pd.DataFrame({"branch": "a", "step": 9, "name": "embed", "module": "embed",
    ...     "vector": "row_v_sum", "rank": [1, 2], "token": [32, 7], "text": ["the", ""],
    ...     "value": [4.0, 1.0]})
    >>> plot_tokens(ranked).axes[0].texts[0].get_text().splitlines()
    ['a, step 9:', '1  the', '2  #7']
    """
    columns = ["branch", "step", "name", "module", "vector", "rank", "token", "text", "value"]
    need_columns(ranked, columns, f"{TITLE} (of rank_tokens)", HINT)
    names = branches_of(ranked, branches, TITLE)
    chosen = steps_of(ranked, names, steps, TITLE)
    rows = ranked[ranked["branch"].isin(names) & ranked["step"].isin(chosen)]
    if rows["vector"].nunique() > 1 or rows.duplicated(["branch", "step", "name", "rank"]).any():
        raise TableError(f"{TITLE}: the ranks of several vectors or runs; choose one")
    first = rows.drop_duplicates("name")
    of = dict(zip(first["name"].astype(str), first["module"].astype(str), strict=True))
    matrices = sorted(of, key=lambda name: module_rank(of[name]))
    norms = _norms(vectors, matrices, chosen)
    panels = [*matrices, *(f"{name}, norms" for name in matrices if norms is not None)]
    axes = given_axes(ax, panels, TITLE, first=True) or one_shape(len(panels), 2.1, len(matrices))
    looks = colours_of(names, chosen)
    handles: list[Artist] = []
    for panel, name in zip(axes, matrices, strict=False):
        mine = rows[rows["name"] == name]
        handles = _ranks(panel, mine, _all(vectors, mine), looks) or handles
        _names(panel, mine, names, chosen, label)
        panel.set_title(f"{of[name]}: {panel.get_title(loc='left')}", fontsize="small")
    for panel, name in zip(axes[len(matrices) :], matrices, strict=False):
        if norms is not None:
            _histogram(panel, norms[norms["name"] == name], looks, of[name])
    return legend(ax, axes[0], handles)


def _norms(
    vectors: pd.DataFrame | None, matrices: Sequence[str], steps: Sequence[int]
) -> pd.DataFrame | None:
    if vectors is None:
        return None
    need_columns(vectors, ["branch", "step", "name", "vector", "values"], f"{TITLE}, vectors")
    rows = vectors[vectors["vector"].eq(NORMS) & vectors["name"].isin(list(matrices))]
    rows = rows[rows["step"].isin(list(steps))]
    return None if rows.empty else pd.DataFrame(rows)


def _all(vectors: pd.DataFrame | None, mine: pd.DataFrame) -> pd.DataFrame | None:
    """Vectors that the ranks of one matrix were made of."""
    if vectors is None:
        return None
    first = mine.iloc[0]
    rows = vectors[(vectors["vector"] == first["vector"]) & (vectors["name"] == first["name"])]
    if rows.empty:
        raise TableError(
            f"{TITLE}: vectors has no {first['vector']} of {first['name']}, which was ranked"
        )
    return pd.DataFrame(rows)


def _ranks(
    ax: Axes, mine: pd.DataFrame, whole: pd.DataFrame | None, looks: dict[tuple[str, int], Any]
) -> list[Artist]:
    """One line a branch and step."""
    handles: list[Artist] = []
    counts, unseen = set(), 0
    for (branch, step), (colour, dashes) in looks.items():
        line = mine[(mine["branch"] == branch) & (mine["step"] == step)].sort_values("rank")
        if line.empty:
            continue
        x, y = numbers(line, "rank"), numbers(line, "value")
        if whole is not None:
            at = whole[(whole["branch"] == branch) & (whole["step"] == step)]
            if len(at) == 1:
                values = np.asarray(at["values"].iloc[0], dtype=np.float64)
                y = np.sort(values[np.isfinite(values)])[::-1]
                x = np.arange(1, len(y) + 1, dtype=np.float64)
        counts.add(len(y))
        unseen = max(unseen, int((y <= 0).sum()))
        seen = y > 0
        ax.plot(x[seen], y[seen], color=colour, ls=dashes, lw=1.1, rasterized=len(y) > DENSE)
        handles.append(Line2D([], [], color=colour, ls=dashes, label=f"{branch}, step {step:,}"))
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("rank of the row")
    vector = str(mine["vector"].iloc[0])
    ax.set_ylabel(LABELS.get(vector, vector.replace("_", " ")))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    top, bottom = ax.dataLim.ymax, ax.dataLim.minposy
    if top > 0 and bottom < LEAST * top:
        ax.set_ylim(LEAST * top, 3 * top)
        drawn = [np.asarray(line.get_ydata(), dtype=np.float64) for line in ax.lines]
        unseen += max(int((y < LEAST * top).sum()) for y in drawn)
    log_ticks(ax.yaxis)
    said = f"n = {max(counts):,} {'rows' if whole is not None else 'first rows'}"
    ax.set_title(said + (f", up to {unseen:,} below the axis" if unseen else ""))
    return handles


@cache
def _glyphs() -> frozenset[int]:
    """Characters that the font of the figures has."""
    return frozenset(get_font(findfont("DejaVu Sans")).get_charmap())


def _text(text: Any, token: Any) -> str:
    """The token as it can be drawn, or its number."""
    words = "" if pd.isna(text) else str(text).translate(SIGNS)
    drawn = words.strip() and words.isprintable() and _glyphs().issuperset(map(ord, words))
    return words[:14] if drawn else f"#{int(token)}"


def _names(
    ax: Axes, mine: pd.DataFrame, names: Sequence[str], steps: Sequence[int], label: int
) -> None:
    """Name the first rows of the branch that spiked, at the first step that is drawn."""
    branch = "spike" if "spike" in names else names[-1]
    first = mine[(mine["branch"] == branch) & (mine["step"] == steps[0])]
    first = first[first["value"] > 0].sort_values("rank").head(label)
    if first.empty:
        return
    lines = [f"{branch}, step {steps[0]:,}:"]
    for row in first.to_dict("records"):
        ax.plot([row["rank"]], [row["value"]], marker="o", ms=2.5, ls="none", color=GUIDE)
        share = row.get("share")
        said = "" if pd.isna(share) else f"  ({100 * share:.2g} %)"
        lines.append(f"{int(row['rank'])}  {_text(row['text'], row['token'])}{said}")
    low, high = ax.get_ylim()
    least = float(numbers(mine[(mine["rank"] <= label) & (mine["value"] > 0)], "value").min())
    ax.set_ylim(min(low, least * (least / high) ** ROOM), high)  # room below the falling lines
    log_ticks(ax.yaxis)
    ax.text(
        0.03, 0.04, "\n".join(lines), transform=ax.transAxes, fontsize="small", va="bottom",
        parse_math=False, zorder=5, bbox={"facecolor": "white", "alpha": 0.8, "pad": 1, "lw": 0},
    )  # fmt: skip


def _histogram(
    ax: Axes, rows: pd.DataFrame, looks: dict[tuple[str, int], Any], module: str
) -> None:
    """Norms of the rows, in bins of equal width on a logarithmic axis."""
    drawn = []
    for (branch, step), look in looks.items():
        at = rows[(rows["branch"] == branch) & (rows["step"] == step)]
        if len(at):
            norms = np.sqrt(np.asarray(at["values"].iloc[0], dtype=np.float64))
            drawn.append((norms[np.isfinite(norms) & (norms > 0)], look))
    drawn = [(norms, look) for norms, look in drawn if len(norms)]
    if drawn:
        low, high = min(n.min() for n, _ in drawn), max(n.max() for n, _ in drawn)
        edges = np.geomspace(low * 0.98, high * 1.02, BINS + 1)
        for norms, (colour, dashes) in drawn:
            ax.hist(norms, list(edges), histtype="step", color=colour, ls=dashes, lw=1.1)
    ax.set_xscale("log")
    log_ticks(ax.xaxis)
    ax.set_xlabel("row norm (unit of the weights)")
    ax.set_ylabel("rows")
    ax.set_title(f"{module}: n = {len(drawn[0][0]) if drawn else 0:,} rows", fontsize="small")
