"""Text that must fit a width: measured in the figure's own letters, and broken into lines."""

from __future__ import annotations

import re
from functools import lru_cache

from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

__all__ = ["line_height", "text_width", "wrapped"]

SPACING = 1.25
"""Distance of two lines in units of their size."""


@lru_cache(maxsize=4096)
def text_width(text: str, size: float, weight: str = "normal") -> float:
    """Width of one line of text in points, at `size` points.

    Examples
    --------
    >>> 2 * text_width("mm", 8) == text_width("mm", 16) > text_width("il", 16)
    True
    """
    letters = FontProperties(family="DejaVu Sans", size=100, weight=weight)
    wide, _, _ = text_to_path.get_text_width_height_descent(text, letters, ismath=False)
    return float(wide) * size / 100


def line_height(size: float) -> float:
    """Distance between two lines of text in points."""
    return SPACING * size


def wrapped(text: str, width: float, size: float, weight: str = "normal") -> list[str]:
    """Lines of `text`, none wider than `width` points; a longer word is broken.

    Examples
    --------
    >>> wrapped("grad norm rises first", 60, 8)
    ['grad norm', 'rises first']
    """
    lines: list[str] = []
    line = ""
    for word in re.split(r"[ \t\n]+", text.strip()):  # not at a no-break space
        tried = f"{line} {word}" if line else word
        if text_width(tried, size, weight) <= width:
            line = tried
            continue
        if line:
            lines.append(line)
        while text_width(word, size, weight) > width and len(word) > 1:
            fits = max(_fits(word, width, size, weight), 1)
            lines.append(word[:fits])
            word = word[fits:]
        line = word
    return [*lines, line] if line else lines


def _fits(word: str, width: float, size: float, weight: str) -> int:
    """Letters of a word that fit; a break after a dot or an underscore is preferred."""
    count = next(
        (k for k in range(len(word), 0, -1) if text_width(word[:k], size, weight) <= width), 1
    )
    good = max(word.rfind(mark, 1, count) for mark in "._-/") + 1
    return good if good > count // 2 else count
