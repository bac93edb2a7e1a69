"""What stands under the pointer in a heat map: the cells, small enough to lie in the page."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis360.plots.layers import layer_panels
from analysis360.plots.style import scale, short

__all__ = ["MISSING", "heat_data"]

MISSING = -32768
"""In place of a cell without a matched value."""
STEPS = 32767


def heat_data(
    figure: Figure,
    apart: pd.DataFrame,
    statistic: str,
    *,
    state: str = "weight",
    between: tuple[str, str] = ("spike", "normal"),
) -> str:
    """Cells of a drawn heat map and where they lie, as JSON for the script of the page.

    A value is kept as a 16-bit multiple of ``unit``, so it is off by no more than 1 / 65,534 of the
    largest size in the figure: less than the four digits that are shown of it.

    Parameters
    ----------
    figure : Figure
        As `plot_layers` drew it, saved at least once, so that its layout is final.
    apart : DataFrame
    statistic, state : str
    between : tuple of str
        What it was drawn from.

    Returns
    -------
    str
        With no ``<`` in it.
    """
    panels, columns = layer_panels(apart, statistic, state=state)
    axes = [ax for ax in figure.axes if ax.images]
    if len(axes) != len(panels):
        raise ValueError(f"{len(axes)} heat maps were drawn of {len(panels)} panels")
    sizes = [np.abs(panel.cells[np.isfinite(panel.cells)]).max(initial=0.0) for panel in panels]
    unit = max([*map(float, sizes), 1e-12]) / STEPS
    found: dict[str, Any] = {
        "statistic": statistic, "branch": between[0], "to": between[1], "unit": unit,
        "times": _times(columns), "panels": [],
    }  # fmt: skip
    for panel, ax in zip(panels, axes, strict=True):
        place = ax.get_position()
        box = place.x0, 1 - place.y1, place.width, place.height
        # a panel of what is outside the layers names its tensors in the rows
        module = panel.title if panel.rows[0].isdigit() else ""
        found["panels"].append({
            "module": module, "rows": panel.rows, "box": [round(float(v), 5) for v in box],
            "cells": _packed(panel.cells, unit),
        })  # fmt: skip
    return json.dumps(found, separators=(",", ":")).replace("<", "\\u003c")


def _packed(cells: np.ndarray, unit: float) -> str:
    missing = ~np.isfinite(cells)
    whole = np.rint(np.where(missing, 0.0, cells) / unit).astype("<i2")
    whole[missing] = MISSING
    return base64.b64encode(whole.tobytes()).decode("ascii")


def _times(columns: pd.DataFrame) -> list[str]:
    """Name of each checkpoint: its number where it has one, and where it lies."""
    what = str(columns.columns[0])
    if what == "number":
        return [f"checkpoint {n}" for n in columns["number"]]
    names = []
    for row in columns.to_dict("records"):
        unit = scale(what, float(row[what]))
        where = f"{short(float(row[what]) / unit.factor)} {unit.unit}".strip()
        where = f"step {row[what]:,}" if what == "step" else f"{where} {what}"
        known = "number" in row and pd.notna(row["number"])
        names.append(f"checkpoint {row['number']} ({where})" if known else where)
    return names
