"""How a statistic goes with depth: its tilt over the layers, and how unequal they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis360.errors import TableError
from analysis360.table import KEY, check_table

__all__ = ["depth_profile"]

FEWEST = 3
"""Layers that a profile needs: two always lie on a line."""

_GROUP = [name for name in KEY if name not in ("name", "layer")]


def depth_profile(table: pd.DataFrame, statistic: str) -> pd.DataFrame:
    r"""Say how a statistic goes with depth: its slope, and the Gini coefficient of the layers.

    Parameters
    ----------
    table : DataFrame
        Measured table per tensor or per layer.
    statistic : str
        Any of its columns.

    Returns
    -------
    DataFrame
        One row per checkpoint, state, role and module (``run, branch, number, step, tokens,
        module, param, expert, head, state, against``): ``statistic``, ``slope`` of the value and
        ``log2_slope`` of its logarithm against relative depth layer/(L−1), by least squares;
        ``gini``; ``layers``, how many have a value; ``highest``, the layer of the largest;
        ``status``: ``"measured"``, or why there is no slope.

    Raises
    ------
    TableError
        If the statistic is missing or no number, or no row that has it belongs to a layer.

    Notes
    -----
    L counts the layers up to the last one in the table, of whatever module, so a slope is the
    change from the run's first layer to that one: ``log2_slope`` 1 is a doubling. Of a run from
    which layers were selected, that is not its last: compare tables of the same layers.

    :math:`G=\sum_{i,j}|x_i-x_j|/(2n^2\bar x)`: 0 where all layers are equal, 1 − 1/n where one has
    all. Both are undefined (NaN) under 3 layers; the Gini coefficient and the logarithm also where
    a value is negative, the logarithm where one is zero, the Gini coefficient where all are zero.
    Values that are not finite are left out, and are not among ``layers``.

    A description: no law says what an undisturbed model reads. Hold a spiked branch against the
    normal one.

    Examples
    --------
    >>> table = pd.DataFrame({"run": "r", "branch": "s", "number": 1, "step": 10, "tokens": 100,
    ...     "name": list("abc"), "layer": [0, 1, 2], "module": "mlp.up", "param": "weight",
    ...     "expert": None, "head": None, "state": "weight", "against": "",
    ...     "rms": [1.0, 2.0, 4.0]})
    >>> found = depth_profile(table, "rms")
    >>> found[["slope", "log2_slope", "gini", "layers", "highest"]].round(3).values.tolist()
    [[3.0, 2.0, 0.286, 3, 2]]
    """
    table = check_table(table, [statistic])
    if not pd.api.types.is_numeric_dtype(table[statistic]):
        raise TableError(f"column {statistic!r} is not a number")
    rows = table[table["layer"].notna()].copy()
    rows["value"] = rows[statistic].to_numpy(dtype=np.float64, na_value=np.nan)
    rows = rows[rows["value"].notna()]
    if rows.empty:
        raise TableError(f"no row with {statistic} has a layer; take a table per tensor or layer")
    layers = table.groupby("run")["layer"].max() + 1
    found = []
    for key, line in rows.groupby(_GROUP, dropna=False, sort=False):
        where = dict(zip(_GROUP, (*key,)))
        twice = line.duplicated("layer")
        if twice.any():
            raise TableError(
                f"{int(twice.sum())} rows of {where} are of a layer that has one already"
            )
        found.append(
            where | {"statistic": statistic} | _profile(line, int(layers.loc[str(where["run"])]))
        )
    whole = {name: kind for name, kind in KEY.items() if name in _GROUP}
    return pd.DataFrame(found).astype(whole | {"layers": "int64", "highest": "Int64"})


def _profile(line: pd.DataFrame, total: int) -> dict[str, Any]:
    line = line[np.isfinite(line["value"])]
    value = line["value"].to_numpy(dtype=np.float64)
    layer = line["layer"].to_numpy(dtype=np.float64)
    said: dict[str, Any] = {
        "slope": np.nan, "log2_slope": np.nan, "gini": np.nan, "layers": len(value),
        "highest": int(layer[value.argmax()]) if len(value) else pd.NA,
        "status": f"too few layers: {len(value)}, needs {FEWEST}",
    }  # fmt: skip
    if len(value) < FEWEST:
        return said
    depth = layer / (total - 1)
    said |= {"slope": _tilt(depth, value), "gini": gini(value), "status": "measured"}
    if (value > 0).all():
        said["log2_slope"] = _tilt(depth, np.log2(value))
    return said


def _tilt(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> float:
    """Slope by least squares."""
    x = x - x.mean()
    return float((x * (y - y.mean())).sum() / (x * x).sum())


def gini(values: npt.NDArray[np.float64]) -> float:
    """Gini coefficient; NaN where a value is negative or all are zero.

    Examples
    --------
    >>> gini(np.array([1.0, 1.0])), gini(np.array([0.0, 0.0, 0.0, 3.0]))
    (0.0, 0.75)
    """
    x, n = np.sort(values), len(values)
    if n == 0 or x[0] < 0 or not x[-1] > 0:
        return float("nan")
    x = x / x[-1]  # sums of second moments' fourth powers would leave the range
    return float(((2 * np.arange(1, n + 1) - n - 1) * x).sum() / (n * x.sum()))
