"""Pieces of the page: escaped text, tables, figures and downloads."""

from __future__ import annotations

import base64
import hashlib
import html
import math
import numbers
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from string import Template
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from analysis360.errors import Analysis360Error
from analysis360.plots.style import save_svg

__all__ = [
    "MAX_DOWNLOAD", "Downloads", "Section", "absent", "bullets", "definitions", "escape", "fill",
    "frame_table", "said",
]  # fmt: skip

MAX_DOWNLOAD = 2_000_000
"""Characters of all data: links of a page together."""
SHORT = 20
"""Rows of a table that is kept on one printed page."""


@dataclass(slots=True)
class Section:
    """One part of the page: an anchor, a heading, and finished HTML."""

    anchor: str
    heading: str
    parts: list[str] = field(default_factory=list)

    def add(self, part: str) -> None:
        """Append finished HTML."""
        self.parts.append(part)

    def say(self, text: str, kind: str = "") -> None:
        """Append a paragraph of plain text."""
        look = f' class="{escape(kind)}"' if kind else ""
        self.add(f"<p{look}>{escape(text)}</p>")

    def draw(
        self,
        figure: Figure,
        caption: str,
        alt: str,
        source: str = "",
        heat: Callable[[Figure], str] | None = None,
    ) -> None:
        """Append a figure as inline SVG, with what it shows and from which bytes in words."""
        place = f"{self.anchor}-{sum('<figure' in part for part in self.parts) + 1}"
        self.add(_figure(figure, caption, alt, place, source, heat))

    def attempt(
        self,
        draw: Callable[[], Figure],
        caption: str,
        alt: str,
        source: str = "",
        heat: Callable[[Figure], str] | None = None,
    ) -> bool:
        """Draw, or say in a sentence why the frames do not hold this figure.

        `heat` gives the JSON of the cells of a heat map, once it is drawn.
        """
        try:
            figure = draw()
        except Analysis360Error as error:
            self.add(absent(f"Not drawn: {alt}. {error}"))
            return False
        self.draw(figure, caption, alt, source, heat)
        return True

    def html(self) -> str:
        """Return the section element."""
        body = "\n".join(self.parts)
        return f'<section id="{self.anchor}">\n<h2>{escape(self.heading)}</h2>\n{body}\n</section>'


def escape(value: object) -> str:
    """Text that is safe between tags and inside quotes.

    Examples
    --------
    >>> escape('<b>"x"')
    '&lt;b&gt;&quot;x&quot;'
    """
    return html.escape(str(value), quote=True)


def said(value: Any) -> str:
    """How a number or a name is written in a table: four digits, thousands apart, – for missing.

    Examples
    --------
    >>> said(1234567), said(0.123456), said(1e-9), said(float("nan")), said(True)
    ('1,234,567', '0.1235', '1e-09', '–', 'yes')
    """
    if value is None or value is pd.NA or value is pd.NaT:
        return "–"
    if isinstance(value, bool) or type(value).__name__ == "bool":
        return "yes" if value else "no"
    if isinstance(value, numbers.Integral):
        return f"{int(value):,}"
    if isinstance(value, numbers.Real):
        number = float(value)
        if not math.isfinite(number):
            return "–" if math.isnan(number) else str(number)
        if number and not 1e-3 <= abs(number) < 1e6:
            return f"{number:.3g}"
        return f"{number:,.4g}" if abs(number) < 1e4 else f"{number:,.0f}"
    return str(value) if str(value) else "–"


HOVER = "Point at a cell, tap it, or use the arrow keys, for its layer, module and value."


def _figure(
    figure: Figure,
    caption: str,
    alt: str,
    place: str,
    source: str = "",
    heat: Callable[[Figure], str] | None = None,
) -> str:
    svg = save_svg(figure)
    # several figures share a page: their ids must not meet
    svg = re.sub(r'\b(id="|xlink:href="#|href="#|url\(#)', rf"\g<1>{place}-", svg)
    wide = float(figure.get_figwidth())
    # in points; width and height would fix the size
    svg = re.sub(r'<svg ([^>]*?)\bheight="[^"]*" ', r"<svg \1", svg, count=1)
    svg = re.sub(r'<svg ([^>]*?)\bwidth="[^"]*" ', r"<svg \1", svg, count=1)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{escape(alt)}" ', 1)
    look = f'style="--most:{wide * 8.6:.1f}rem;--least:{wide * 5.6:.0f}rem"'
    cells = ""
    if heat is not None:
        data = f'<script type="application/json" data-heat>{heat(figure)}</script>'
        cells = f'<p class="readout" aria-live="polite">{escape(HOVER)}</p>{data}'
    swipe = '<p class="swipe">Wider than this screen: swipe the figure sideways.</p>'
    bytes_ = f' <span class="source">From: {escape(source)}</span>' if source else ""
    return (
        f'<figure id="{place}"><div class="paper" tabindex="0" {look}>{svg}</div>{swipe}{cells}'
        f"<figcaption>{escape(caption)}{bytes_}</figcaption></figure>"
    )


def bullets(lines: Sequence[str]) -> str:
    """Write plain sentences as a list."""
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def absent(what: str) -> str:
    """Write a sentence in place of what was not given."""
    return f'<p class="absent">{escape(what)}</p>'


def definitions(pairs: Mapping[str, object]) -> str:
    """Names and what they mean."""
    rows = "".join(
        f"<dt><code>{escape(k)}</code></dt><dd>{escape(said(v))}</dd>" for k, v in pairs.items()
    )
    return f"<dl>{rows}</dl>"


def frame_table(
    frame: pd.DataFrame, caption: str, *, most: int = 200, stacked: bool = False
) -> str:
    """Write a frame as a table that scrolls sideways where the screen is narrow.

    With `stacked`, for sentences: there a row becomes a card with one line a column.
    """
    numeric = {c: pd.api.types.is_numeric_dtype(frame[c]) for c in frame.columns}
    head = "".join(
        f'<th scope="col"{_class(numeric[c])}>{escape(str(c).replace("_", " "))}</th>'
        for c in frame.columns
    )
    lines = []
    for row in frame.head(most).itertuples(index=False, name=None):
        cells = "".join(
            f"<td{_class(numeric[c], str(v))}{_label(c, v) if stacked else ''}>{_broken(v)}</td>"
            for c, v in zip(frame.columns, row, strict=True)
        )
        lines.append(f"<tr>{cells}</tr>")
    if len(frame) > most:
        caption += f" The first {most:,} of {len(frame):,} rows."
    look = ' class="stack"' if stacked else ""
    size = " short" if min(len(frame), most) <= SHORT and not stacked else ""
    return (
        f'<div class="table{size}"><p class="above">{escape(caption)}</p>'
        '<div class="wide" tabindex="0">'
        f"<table{look}><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div></div>"
    )


def _class(number: bool, text: str = "") -> str:
    if number:
        return ' class="n"'
    if len(text) > 60:
        return ' class="long"'
    return ' class="name"' if len(text) > 20 and " " not in text else ""


def _label(column: object, value: Any) -> str:
    """Give a cell the name of its column, for a narrow screen, and mark one that is empty."""
    empty = " data-empty" if said(value) == "–" else ""
    return f' data-label="{escape(str(column).replace("_", " "))}"{empty}'


def _broken(value: Any) -> str:
    """Let a line break where the text has one."""
    return "<br>".join(escape(line) for line in said(value).splitlines()) or "–"


class Downloads:
    """Frames as links that hold their own CSV, up to `limit` characters together.

    `elsewhere` says where a reader finds what is too large.
    """

    def __init__(self, elsewhere: str, limit: int = MAX_DOWNLOAD) -> None:
        self._left = limit
        self._elsewhere = elsewhere
        self._lines: list[str] = []

    def add(
        self, name: str, frame: pd.DataFrame | None, what: str, elsewhere: str | None = None
    ) -> None:
        """Offer `frame` as ``name.csv``, or say where it is if there is no room."""
        if frame is None or frame.empty:
            return
        size = f"{len(frame):,} rows"
        # CSV of so many cells is never under two characters each: do not write it only to drop it
        data = "" if 2 * frame.size > self._left else _data(frame)
        if data and len(data) <= self._left:
            self._left -= len(data)
            link = f'<a download="{escape(name)}.csv" href="{data}">{escape(name)}.csv</a>'
            self._lines.append(f"<li>{link}: {escape(what)} ({size})</li>")
        else:
            where = f"{what} ({size}): too large for this page; {elsewhere or self._elsewhere}"
            self._lines.append(f"<li>{escape(name)}: {escape(where)}</li>")

    def html(self) -> str:
        """All links as one list."""
        return "<ul>" + "".join(self._lines) + "</ul>" if self._lines else ""


def _data(frame: pd.DataFrame) -> str:
    text = frame.to_csv(index=False).encode("utf-8")
    return "data:text/csv;charset=utf-8;base64," + base64.b64encode(text).decode("ascii")


def fill(title: str, lede: str, sections: Sequence[Section], footer: str) -> str:
    """Fill the template.

    The page names the digest of its one script and forbids everything else: a string from a log or
    a file name that would be taken for markup still could run nothing and ask for nothing.
    """
    folder = files("analysis360.report")
    template = folder.joinpath("template.html").read_text(encoding="utf-8")
    script = folder.joinpath("page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    links = " ".join(f'<a href="#{s.anchor}">{escape(s.heading)}</a>' for s in sections)
    body = "\n".join(section.html() for section in sections)
    return Template(template).substitute(
        title=escape(title), lede=lede, contents=links, body=body, footer=escape(footer),
        script=script, digest=digest,
    )  # fmt: skip
