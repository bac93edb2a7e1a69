"""Evidence matrix: what speaks for and against each mechanism, in words with numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from analysis360.errors import TableError
from analysis360.plots.axes import given_axes
from analysis360.plots.style import Drawing, need_columns, owner, page, styled
from analysis360.plots.wrapping import line_height, text_width, wrapped

__all__ = ["plot_evidence"]

TITLE = "plot_evidence"
KINDS = {
    "for": ("+", "#fbdcc6"), "against": ("−", "#cfe2f3"), "untestable": ("?", "#e6e6e6"),
    "inconclusive": ("~", "#fdf3c4"),
}  # fmt: skip
"""Sign and colour of each direction; the sign tells them apart without the colour."""
LEAST = 5.0
"""Inches under which the directions stand below one another, not side by side."""
PAD = 3.0  # points between text and the edge of its cell


@dataclass(frozen=True, slots=True)
class _Piece:
    """Text at a place, in points from the upper left corner, over a coloured ground."""

    x: float
    y: float
    width: float
    height: float
    text: str
    colour: str = "none"
    weight: str = "normal"


@styled
def plot_evidence(
    matrix: pd.DataFrame,
    *,
    longest: int = 200,
    size: str = "page",
    ax: Axes | Sequence[Axes] | None = None,
) -> Figure:
    """Draw the evidence for and against each mechanism as a table of short texts.

    On a figure of 5 inches and more there is a column for each direction. On a narrower one the
    directions of a mechanism stand below one another, under its name and verdict.

    Parameters
    ----------
    matrix : DataFrame
        As ``evidence_matrix`` returns it: ``mechanism, name, for, against, untestable,
        inconclusive, verdict``, with an empty text where there is nothing.
    longest : int
        Letters of a cell; a longer text is cut and ends in "…". The frame holds it whole.
    size : str
        ``"column"`` (3.3 inches wide), ``"page"`` (7) or ``"slide"`` (10, with larger type).
    ax : Axes, optional
        Where to draw. The texts have a fixed size, so the axes must be large enough.

    Returns
    -------
    Figure

    Raises
    ------
    TableError
        If the frame is empty or lacks columns, or the axes are too small for the texts: it says
        which size they need.

    Examples
    --------
    >>> matrix = pd.DataFrame({
    ...     "mechanism": ["M1"], "name": ["stale second moment"], "for": ["RMS(u) 2.1 > 1.1"],
    ...     "against": [""], "untestable": [""], "inconclusive": [""], "verdict": ["for"],
    ... })
    >>> [t.get_text() for t in plot_evidence(matrix).axes[0].texts][-3:]
    ['M1 stale second moment', 'RMS(u) 2.1 > 1.1', 'for']
    """
    need_columns(matrix, ["mechanism", "name", *KINDS, "verdict"], TITLE)
    cells = (
        matrix.astype(object)
        .where(matrix.notna(), "")
        .astype(str)
        .map(lambda text: _cut(" ".join(text.split()), longest))
    )
    points = 0.833 * float(rcParams["font.size"])
    axes = given_axes(ax, ["evidence"], TITLE)
    if axes is not None:
        box = axes[0].get_window_extent()
        dpi = owner(axes[0]).dpi
        wide, room = box.width / dpi * 72, box.height / dpi * 72
        pieces, tall = _pieces(cells, wide, points)
        if tall > 1.01 * room:
            raise TableError(
                f"{TITLE}: the texts need axes {tall / 72:.1f} inches high at this width of "
                f"{wide / 72:.1f}, and these are {room / 72:.1f}; give a taller figure, or none, "
                "or cut the texts with longest="
            )
        tall = room if tall > room else tall
        place = axes[0]
    else:
        wide = 72 * (page() - 0.1)
        pieces, tall = _pieces(cells, wide, points)
        high = tall / 72 + 0.1
        figure = Drawing(figsize=(page(), 1.0))
        figure.set_size_inches(page(), high)  # as high as the texts, at any width
        place = figure.add_axes((0.05 / page(), 0.05 / high, 1 - 0.1 / page(), 1 - 0.1 / high))
    _draw(place, pieces, wide, tall, points)
    return owner(place)


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: max(longest - 1, 1)].rstrip() + "…"


def _pieces(cells: pd.DataFrame, wide: float, size: float) -> tuple[list[_Piece], float]:
    """Texts at their places, and the height in points that they take."""
    lay_out = _table if wide >= LEAST * 72 else _stack
    return lay_out(cells, wide, size)


def _table(cells: pd.DataFrame, wide: float, size: float) -> tuple[list[_Piece], float]:
    names = cells["mechanism"] + " " + cells["name"]
    columns = {
        "mechanism": names,
        **{kind: cells[kind] for kind in KINDS},
        "verdict": cells["verdict"],
    }
    heads = {
        kind: f"{sign} {kind} (n = {int((cells[kind] != '').sum())})"
        for kind, (sign, _) in KINDS.items()
    }
    widths = _widths(columns, heads, wide, size)
    step = line_height(size)
    pieces: list[_Piece] = []
    tall = step + 2 * PAD
    x = 0.0
    for name, width in widths.items():
        pieces.append(_Piece(x, 0.0, width, tall, heads.get(name, name), weight="bold"))
        x += width
    for line in range(len(cells)):
        lines = {
            name: wrapped(texts.iloc[line], widths[name] - 2 * PAD, size, _weight(name))
            for name, texts in columns.items()
        }
        high = step * max(len(found) for found in lines.values()) + 2 * PAD
        x = 0.0
        for name, found in lines.items():
            colour = KINDS[name][1] if name in KINDS and found else "none"
            text = "\n".join(found)
            pieces.append(_Piece(x, tall, widths[name], high, text, colour, _weight(name)))
            x += widths[name]
        tall += high
    return pieces, tall


def _weight(column: str) -> str:
    return "bold" if column == "verdict" else "normal"


def _widths(
    columns: dict[str, pd.Series], heads: dict[str, str], wide: float, size: float
) -> dict[str, float]:
    """Share the width by the text there is: each column holds its head and its longest word."""
    least, weight = {}, {}
    for name, texts in columns.items():
        words = [word for text in texts for word in text.split()]
        longest = max((text_width(word, size, _weight(name)) for word in words), default=0.0)
        head = text_width(heads.get(name, name), size, "bold")
        least[name] = min(max(head, min(longest, 90.0)) + 2 * PAD + 1, wide / 3)
        weight[name] = sum(len(text) for text in texts) ** 0.5
    spare = max(wide - sum(least.values()), 0.0)
    total = sum(weight.values()) or 1.0
    widths = {name: least[name] + spare * weight[name] / total for name in columns}
    more = wide / sum(widths.values())
    return {name: width * min(more, 1.0) for name, width in widths.items()}


def _stack(cells: pd.DataFrame, wide: float, size: float) -> tuple[list[_Piece], float]:
    step = line_height(size)
    pieces: list[_Piece] = []
    tall = 0.0
    for row in cells.to_dict("records"):
        head = f"{row['mechanism']} {row['name']}: {row['verdict'] or 'no verdict'}"
        found = wrapped(head, wide - 2 * PAD, size, "bold")
        high = step * len(found) + 2 * PAD
        pieces.append(_Piece(0.0, tall, wide, high, "\n".join(found), weight="bold"))
        tall += high
        for kind, (sign, colour) in KINDS.items():
            if not row[kind]:
                continue
            lines = wrapped(f"{sign} {kind}: {row[kind]}", wide - 4 * PAD, size)
            high = step * len(lines) + 2
            pieces.append(_Piece(2 * PAD, tall, wide - 2 * PAD, high, "\n".join(lines), colour))
            tall += high
    return pieces, tall


def _draw(ax: Axes, pieces: list[_Piece], wide: float, tall: float, size: float) -> None:
    ax.set_axis_off()
    ax.set_xlim(0, wide)
    ax.set_ylim(tall, 0)
    edges = sorted({piece.y for piece in pieces if piece.x == 0.0})
    for edge in edges[1:]:
        ax.axhline(edge, color="#999999", lw=0.5, zorder=3)
    for piece in pieces:
        if piece.colour != "none":
            ax.add_patch(
                Rectangle(
                    (piece.x, piece.y), piece.width, piece.height, facecolor=piece.colour, lw=0
                )
            )
        for line, text in enumerate(piece.text.split("\n") if piece.text else ()):
            ax.text(
                piece.x + PAD, piece.y + PAD + 0.9 * size + line * line_height(size), text,
                va="baseline", ha="left", fontsize=size, weight=piece.weight, parse_math=False,
            )  # fmt: skip
