"""Benchmark results of checkpoints, read into one frame and joined to a measured table.

Results are those of lm-evaluation-harness, old and new style. They are aligned on tokens seen,
never on the index, and never interpolated.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis360.core import Run
from analysis360.errors import LogError, TableError
from analysis360.table import KEY, check_table

__all__ = ["join_benchmarks", "read_benchmarks"]

_COLUMNS = {
    "run": "str", "branch": "str", "number": "Int64", "step": "Int64", "tokens": "Int64",
    "benchmark": "str", "shots": "Int64", "metric": "str", "value": "float64", "stderr": "float64",
    "n": "Int64", "higher_is_better": "boolean", "source": "str",
}  # fmt: skip
_CHECKPOINT = ["run", "branch", "number", "step", "tokens"]
_MEASURE = ["benchmark", "shots", "metric"]

_NUMBERED = re.compile(r"(?:(?P<branch>.+?)_)??ckpt_(?P<number>\d+)")
_STEPPED = re.compile(
    r"(?:(?P<branch>.+?)_)??(?:checkpoint|global_step|iter|step)[-_]?(?P<step>\d+)"
)
_NO_METRIC = {"alias", "name", "samples", "sample_len", "sample_count"}


def read_benchmarks(source: Run | str | PathLike[str], *, run: Run | None = None) -> pd.DataFrame:
    """Read results of lm-evaluation-harness into a BENCHMARKS frame.

    Parameters
    ----------
    source : Run or path
        A `Run` says in ``run.sources["benchmarks"]`` where its results lie below ``run.home``. A
        path is a JSON file or a folder that is searched for such files.
    run : Run, optional
        For a path: the run whose checkpoints were evaluated.

    Returns
    -------
    DataFrame
        One row per checkpoint, benchmark and metric: ``run, branch, number, step, tokens`` (Int64;
        missing where not known), ``benchmark``, ``shots`` (Int64), ``metric`` (``"acc"``; with the
        filter, unless that is ``none``: ``"exact_match,strict-match"``), ``value``, ``stderr``
        (both as the file has them; NaN if not given), ``n`` (items, Int64), ``higher_is_better``
        (boolean, missing if not said) and ``source`` (path below the folder).

    Raises
    ------
    LogError
        If there is no result, a file is empty, damaged or no result of lm-evaluation-harness, its
        checkpoint is not told by its path, or two files disagree on one value.

    Notes
    -----
    *Which checkpoint* is told by the nearest folder (or file) name that is the name of a checkpoint
    of the run, or else of the form ``<branch>_ckpt_160`` or ``ckpt_160`` (the number), or
    ``step_500``, ``checkpoint-500`` and the like (the step). One that the run does not have keeps
    its rows, without tokens.

    *Styles.* New: ``"acc,none"``, ``"acc_stderr,none"``, with ``n-shot``, ``n-samples`` (the
    effective number) and ``higher_is_better``. Old: ``"acc"``, ``"acc_stderr"``, with
    ``config.num_fewshot``.

    *Duplicates.* The same value of the same checkpoint, benchmark, shots and metric in several
    files is kept once.
    """
    if isinstance(source, Run):
        run = source
        roots = _roots(source)
    else:
        roots = [Path(source)]
    rows: list[dict[str, Any]] = []
    for root in roots:
        for file in _files(root):
            base = Path(run.home) if isinstance(source, Run) and run is not None else root
            shown = str(file.relative_to(base)) if file != base else file.name
            point = _checkpoint(file, run)
            rows += [{**point, **row, "source": shown} for row in _results(file)]
    frame = pd.DataFrame(rows, columns=list(_COLUMNS)).astype(_COLUMNS)
    return _once(frame)


def _roots(run: Run) -> list[Path]:
    paths = run.sources.get("benchmarks", ())
    if not paths:
        raise LogError(f"{run.name}: the run names no benchmark results; pass their path")
    if "://" in run.home:
        raise LogError(
            f"{run.name}: its benchmark results {list(paths)} are at {run.home}, not on this "
            "machine; download them and pass the path: read_benchmarks('benchmarks', run=run)"
        )
    return [Path(run.home) / path for path in paths]


def _files(root: Path) -> list[Path]:
    if root.is_file():
        return [root]
    if not root.is_dir():
        raise LogError(f"{root}: there is no such file or folder of benchmark results")
    files = sorted(f for f in root.rglob("*.json") if f.is_file())
    if not files:
        raise LogError(f"{root}: the folder has no .json file of benchmark results")
    return files


def _checkpoint(file: Path, run: Run | None) -> dict[str, Any]:
    """Which checkpoint a result belongs to, from the names on its path, innermost first."""
    names = [file.stem, *(parent.name for parent in file.absolute().parents)]
    entries = () if run is None else run.entries
    for name in names:
        for entry in entries:
            if name in (entry.name, Path(entry.name).stem) and name:
                return _point(entry.run, entry.branch, entry.number, entry.step, entry.tokens)
        match = _NUMBERED.fullmatch(name) or _STEPPED.fullmatch(name)
        if match is None:
            continue
        said = match.groupdict()
        branch = said["branch"] or ""
        number, step = (None if said.get(k) is None else int(said[k]) for k in ("number", "step"))
        for entry in entries:
            same = (entry.number == number) if number is not None else (entry.step == step)
            if entry.branch == branch and same:
                return _point(entry.run, branch, entry.number, entry.step, entry.tokens)
        return _point("" if run is None else run.name, branch, number, step, None)
    raise LogError(
        f"{file}: no folder on its path says which checkpoint was evaluated; accepted are the name "
        "of a checkpoint of the run, '<branch>_ckpt_<number>', 'ckpt_<number>' and 'step_<step>'"
    )


def _point(run: str, branch: str, *rest: int | None) -> dict[str, Any]:
    return dict(zip(_CHECKPOINT, (run, branch, *rest), strict=True))


def _results(file: Path) -> Iterator[dict[str, Any]]:
    """Rows of one file of results."""
    try:
        text = file.read_text(encoding="utf-8")
        said = json.loads(text) if text.strip() else None
    except (OSError, ValueError) as problem:
        raise LogError(f"{file}: cannot be read as benchmark results: {problem}") from problem
    if said is None:
        raise LogError(f"{file}: the file is empty")
    results = said.get("results") if isinstance(said, dict) else None
    if not isinstance(results, dict) or not all(isinstance(v, dict) for v in results.values()):
        raise LogError(f"{file}: no 'results' of benchmarks, as lm-evaluation-harness writes them")
    found = [row for task, metrics in results.items() for row in _task(file, said, task, metrics)]
    if not found:
        raise LogError(f"{file}: its 'results' hold no metric")
    yield from found


def _task(
    file: Path, said: Mapping[str, Any], task: str, metrics: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    new = any("," in key for key in metrics)
    for key, value in metrics.items():
        metric, _, sieve = key.partition(",")
        if metric.endswith("_stderr") or metric in _NO_METRIC or (new and not sieve):
            continue
        spread = f"{metric}_stderr,{sieve}" if new else f"{metric}_stderr"
        yield {
            "benchmark": task,
            "shots": _shots(said, task),
            "metric": metric if sieve in ("", "none") else key,
            "value": _number(value, file, f"{task}: {key}"),
            "stderr": _number(metrics.get(spread), file, f"{task}: {spread}", optional=True),
            "n": _lookup(said, "n-samples", task, "effective"),
            "higher_is_better": _lookup(said, "higher_is_better", task, metric),
        }


def _lookup(said: Mapping[str, Any], *keys: str) -> Any:
    """Get what lies under nested keys, or None."""
    value: Any = said
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _shots(said: Mapping[str, Any], task: str) -> int | None:
    """Take the harness's ``n-shot``, the task's own configuration, or the old style's for all."""
    places = (("n-shot", task), ("configs", task, "num_fewshot"), ("config", "num_fewshot"))
    found = (_lookup(said, *place) for place in places)
    return next((value for value in found if isinstance(value, int)), None)


def _number(value: Any, file: Path, what: str, *, optional: bool = False) -> float:
    if isinstance(value, (int, float)):
        return float(value)
    if optional and (value is None or isinstance(value, str)):  # the harness writes "N/A"
        return float("nan")
    raise LogError(f"{file}: {what} is {value!r}, no number")


def _once(frame: pd.DataFrame) -> pd.DataFrame:
    """Drop repeated rows; an error where they disagree."""
    key = [*_CHECKPOINT, *_MEASURE]
    twice = frame[frame.duplicated(key, keep=False)]
    for _, rows in twice.groupby(key, dropna=False, sort=False):
        if len(rows[["value", "stderr"]].drop_duplicates()) > 1:
            one = rows.iloc[0]
            raise LogError(
                f"{' and '.join(rows['source'])} disagree on {one['benchmark']} {one['metric']} of "
                f"one checkpoint ({one['branch']!r}, number {one['number']}, step {one['step']}): "
                f"{', '.join(f'{value:.6g}' for value in rows['value'])}; keep one"
            )
    return _sorted(frame.drop_duplicates(key))


def _sorted(frame: pd.DataFrame) -> pd.DataFrame:
    """Order by run and branch as they appear, then by step (by number where that is missing)."""
    place = [pd.Series(pd.factorize(frame[c])[0], frame.index) for c in ("run", "branch")]
    keys = pd.DataFrame({"run": place[0], "branch": place[1]})
    keys["at"] = frame["step"].fillna(frame["number"])
    order = keys.sort_values(["run", "branch", "at"], kind="stable").index
    return frame.loc[order].reset_index(drop=True)


def join_benchmarks(
    table: pd.DataFrame, benchmarks: pd.DataFrame, *, to: str | None = None
) -> pd.DataFrame:
    """Align benchmarks with the checkpoints of a table, and take the gap to a branch.

    Parameters
    ----------
    table : DataFrame
        Measured table, or any frame with ``run, branch, number, step, tokens`` of checkpoints.
    benchmarks : DataFrame
        BENCHMARKS frame, from `read_benchmarks`.
    to : str, optional
        Reference branch; by default ``"normal"`` where the benchmarks have one, else none.

    Returns
    -------
    DataFrame
        JOINED frame: the rows of `benchmarks` whose checkpoint is in the table, with its tokens,
        and ``reference_branch``, ``reference`` (its value at equal tokens, same benchmark, shots
        and metric), ``gap`` = value - reference, ``gap_stderr``. The reference's own rows, and rows
        without a partner, have no gap. ``.attrs["joined"]`` counts ``left_out`` rows, whose
        checkpoint is not in the table, and ``no_reference`` ones.

    Raises
    ------
    TableError
        If `to` is not a branch of the benchmarks, columns are missing, or no benchmark belongs to
        a checkpoint of the table.

    Notes
    -----
    A benchmark belongs to the checkpoint of its branch with the same tokens (where tokens are
    missing, the same step, else the same number). Nothing is interpolated, and nothing is matched
    by position.

    ``gap_stderr = sqrt(stderr^2 + stderr_reference^2)`` is that of two independent samples. Both
    branches answered the same items, and mostly alike, so the paired standard error is smaller:
    this one is conservative. It holds the noise of the items only, not that between checkpoints.
    """
    need = [c for c in _COLUMNS if c not in benchmarks.columns]
    if need:
        raise TableError(f"not a BENCHMARKS frame: columns {need} are missing")
    branches = [str(name) for name in pd.unique(benchmarks["branch"])]
    if to is not None and to not in branches:
        raise TableError(f"no branch {to!r} in the benchmarks; they have {branches}")
    if to is None and "normal" in branches:
        to = "normal"
    points = _points(table)
    rows = _placed(benchmarks.astype(_COLUMNS), points)
    here = rows["here"].to_numpy(dtype=bool)
    if not here.any():
        raise TableError(
            "no benchmark belongs to a checkpoint of the table; the table has "
            f"{_said(points)}; the benchmarks have {_said(benchmarks)}"
        )
    joined = _sorted(_gaps(rows, to)[here].drop(columns="here"))
    lacking = joined["reference"].isna() & (joined["branch"] != to)
    joined.attrs["joined"] = {
        "left_out": int((~here).sum()),
        "no_reference": int(lacking.sum()) if to is not None else len(joined),
    }
    return joined


def _points(table: pd.DataFrame) -> pd.DataFrame:
    """Checkpoints of a measured table."""
    checked = check_table(table) if set(KEY) <= set(table.columns) else table
    missing = [c for c in _CHECKPOINT if c not in checked.columns]
    if missing:
        raise TableError(f"not a table of checkpoints: columns {missing} are missing")
    kinds = {c: _COLUMNS[c] for c in _CHECKPOINT}
    return checked[_CHECKPOINT].drop_duplicates().astype(kinds).reset_index(drop=True)


def _placed(rows: pd.DataFrame, points: pd.DataFrame) -> pd.DataFrame:
    """Rows with the number, step and tokens of their checkpoint of the table, and whether it is."""
    rows = rows.reset_index(drop=True)
    runs = list(pd.unique(points["run"]))
    nameless = rows["run"].isna() | rows["run"].eq("")
    if len(runs) == 1:
        rows["run"] = rows["run"].mask(nameless, runs[0])
    rows["here"] = False
    for clock in ("tokens", "step", "number"):
        open_ = ~rows["here"] & rows[clock].notna()
        if clock != "tokens":  # known tokens decide alone
            open_ &= rows["tokens"].isna() | _lacks(rows, points, "tokens")
        known = points[points[clock].notna()].drop_duplicates(["run", "branch", clock])
        place = pd.MultiIndex.from_frame(known[["run", "branch", clock]])
        at = place.get_indexer(pd.MultiIndex.from_frame(rows[["run", "branch", clock]]))
        found = open_.to_numpy() & (at >= 0)
        for column in ("number", "step", "tokens"):
            filled = known[column].iloc[at[found]].array
            rows.loc[found, column] = rows.loc[found, column].fillna(
                pd.Series(filled, index=rows.index[found])
            )
        rows.loc[found, "here"] = True
    return rows


def _lacks(rows: pd.DataFrame, points: pd.DataFrame, clock: str) -> pd.Series:
    """Whether a row's branch of the table has nothing in column `clock`."""
    has = points[points[clock].notna()][["run", "branch"]].drop_duplicates()
    place = pd.MultiIndex.from_frame(has)
    at = place.get_indexer(pd.MultiIndex.from_frame(rows[["run", "branch"]]))
    return pd.Series(at < 0, rows.index)


def _gaps(rows: pd.DataFrame, to: str | None) -> pd.DataFrame:
    """Add the reference of every row, at equal tokens (equal steps where tokens are missing)."""
    rows["reference_branch"] = pd.Series(pd.NA, rows.index, dtype="str")
    for column in ("reference", "gap", "gap_stderr"):
        rows[column] = np.nan
    if to is None:
        return rows
    rows["reference_branch"] = rows["reference_branch"].mask(rows["branch"] != to, to)
    for clock in ("tokens", "step"):
        key = ["run", clock, *_MEASURE]
        theirs = rows[(rows["branch"] == to) & rows[clock].notna()].drop_duplicates(key)
        mine = (rows["branch"] != to) & rows[clock].notna() & rows["reference"].isna()
        if clock == "step":
            mine &= rows["tokens"].isna()
        place = pd.MultiIndex.from_frame(theirs[key])
        at = place.get_indexer(pd.MultiIndex.from_frame(rows[key]))
        found = mine.to_numpy() & (at >= 0)
        partner = theirs.iloc[at[found]]
        rows.loc[found, "reference"] = partner["value"].to_numpy()
        both = rows.loc[found, "stderr"].to_numpy() ** 2 + partner["stderr"].to_numpy() ** 2
        rows.loc[found, "gap_stderr"] = np.sqrt(both)
    rows["gap"] = rows["value"] - rows["reference"]
    return rows


def _said(frame: pd.DataFrame) -> str:
    said = []
    for (run, branch), rows in frame.groupby(["run", "branch"], sort=False):
        clock = next((c for c in ("tokens", "step", "number") if rows[c].notna().any()), "number")
        points = sorted({int(p) for p in rows[clock].dropna()})
        span = f"{clock} {points[0]} … {points[-1]}" if points else "no tokens"
        said.append(f"{branch!r} of run {run!r} {span}")
    return "; ".join(said)
