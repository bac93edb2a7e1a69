"""A results folder as a reader sees it: its table, and what it says of its origin."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis360.errors import TableError
from analysis360.results.contents import Contents, measure_key
from analysis360.results.parts import Parts
from analysis360.results.table import tabulate, vectors
from analysis360.stats import statistics as registry

__all__ = ["load_table", "read_provenance"]

_log = logging.getLogger(__name__)


def load_table(
    path: str | os.PathLike[str],
    *,
    by: str = "tensor",
    statistics: Sequence[str] | None = None,
    kind: str = "numbers",
) -> pd.DataFrame:
    r"""Make the measured table from a results folder.

    Parameters
    ----------
    path : path
        Folder that ``plan.run(path)`` wrote. Of an unfinished one only the tensors that are whole
        are given, with a warning in the log, and only by tensor.
    by : {"tensor", "layer", "module", "all"}
        Level. Sums are merged over the tensors of a level before the statistic is taken, so a
        layer's RMS is that of all its elements (a module's, over all layers) and a norm is
        :math:`\sqrt{\sum\|\cdot\|^2}`; ratios are never averaged. Spectra do not merge and are
        NaN above ``"tensor"``.
    statistics : sequence of str, optional
        Any registered statistics whose sums were measured; by default those of the plan.
    kind : {"numbers", "vectors"}
        With ``"vectors"`` what the statistics were taken of, where that is an array: singular
        values, histograms, sums of rows and columns. Only by tensor. Bins of magnitudes lie
        between `analysis360.stats.bins.edges`, those of ``shift_bins`` between
        `analysis360.stats.preconditioner.shift_edges`.

    Returns
    -------
    DataFrame
        Columns as in `analysis360.table`: key, information, one column per statistic. Of vectors
        one row each: key, information, ``vector`` (its name), and ``values`` (a float64 array).

    Raises
    ------
    TableError
        If there is no plan in the folder, a statistic's sums are not in it, it is unfinished and a
        coarser level is asked for, or there is no such kind.
    StatisticError
        If a statistic is unknown.
    """
    folder = Path(path)
    contents = Contents(**Contents.fields_from(_read_json(folder / "plan.json")))
    wanted = list(contents.statistics if statistics is None else statistics)
    parts = Parts(folder)
    _check_measured(wanted, parts, contents)
    if kind not in ("numbers", "vectors") or (kind == "vectors" and by != "tensor"):
        raise TableError(f"kind={kind!r}, by={by!r}: allowed are numbers, and vectors by tensor")
    if kind == "vectors":
        table, missing = vectors(contents, parts, wanted)
    else:
        table, missing = tabulate(contents, parts, wanted, by)
    if missing:
        count = len({name for mine in contents.tensors for name, _ in mine})
        said = f"{folder} is unfinished: {count - len(missing)} of {count} tensors are done"
        if by != "tensor":
            raise TableError(f"{said}; by={by!r} needs all, run the plan again to finish")
        _log.warning("%s; tensors that are not whole are left out", said)
    return table


def _check_measured(wanted: Sequence[str], parts: Parts, contents: Contents) -> None:
    """Refuse a statistic of whose sums there are none, unless the plan was only begun."""
    planned = {measure_key(m.name, m.version) for m in contents.measures}
    needed = {
        name: [measure_key(m.name, m.version) for m in registry[name].measures] for name in wanted
    }
    if all(key in planned for keys in needed.values() for key in keys):
        return
    there = planned | set(parts.measures())
    for name, keys in needed.items():
        for key in keys:
            if key not in there:
                raise TableError(
                    f"{name!r} rests on {key!r}, which this folder does not hold; it holds "
                    f"{', '.join(sorted(there))}; plan and run with {name!r} to add it"
                )


def read_provenance(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a results folder says of its origin: checkpoints, commits, versions, bytes.

    ``finished`` is None until the plan was run to its end; ``bytes_read`` and ``seconds`` are of
    the last time it ran, and ``sessions`` has those of every time.

    Raises
    ------
    TableError
        If there is no plan in the folder.
    """
    folder = Path(path)
    plan = _read_json(folder / "plan.json")
    written = folder / "provenance.json"
    said = _read_json(written) if written.exists() else {"finished": None}
    if said.get("plan") != plan["key"]:  # of another plan that was run here
        said = {"finished": None, "sessions": said.get("sessions", [])}
    kept = ["run", "checkpoints", "statistics", "states", "against", "skipped"]
    return {name: plan[name] for name in [*kept, "nbytes", "requests"]} | said


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise TableError(f"{path.parent} is not a results folder: it holds no {path.name}")
    try:
        loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TableError(f"{path} is not valid JSON: {error}") from error
    return loaded
