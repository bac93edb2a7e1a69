"""The folder that a plan writes, and the table that is made of it.

A results folder holds ``parts/*.parquet`` (results of accumulators, block by block), ``plan.json``
(which jobs belong to the table) and ``provenance.json``. What is stored is sums, not statistics: a
new statistic over old sums, and every aggregate over layers or modules, needs no byte of the
checkpoints again. Reading it needs no torch.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from analysis360.errors import StatisticError, StorageError, TableError
from analysis360.stats import SCALARS, Statistic, merge, statistics
from analysis360.stats.base import Values, accumulators, wholes
from analysis360.table import INFO, KEY, check_table

__all__ = ["Parts", "load_table", "read_provenance", "tabulate"]

_log = logging.getLogger(__name__)

NUMBERS = ("opt_step", "beta1", "beta2", "eps", "lr", "lr_sum", "weight_decay")
"""Scalars stored with every row; `opt_step` is the scalar that statistics call ``step``."""

SCHEMA = pa.schema(
    [pa.field("job", pa.string())]
    + [pa.field(c, pa.int64() if t == "Int64" else pa.string()) for c, t in (KEY | INFO).items()]
    + [pa.field(n, pa.float64()) for n in NUMBERS]
    + [
        pa.field("block", pa.int32()),
        pa.field("measure", pa.string()),
        pa.field("values", pa.list_(pa.float64())),
    ]
)
"""One row is one accumulator over one block of rows of one tensor; block -1 is the whole matrix."""

LEVELS = {
    "tensor": list(KEY),
    "layer": ["run", "branch", "number", "step", "tokens", "layer", "state", "against"],
    "module": ["run", "branch", "number", "step", "tokens", "module", "state", "against"],
    "all": ["run", "branch", "number", "step", "tokens", "state", "against"],
}


class Parts:
    """Finished jobs of a results folder; with no folder they are kept in memory.

    Rows land in whole Parquet files, written aside and renamed, so that a kill leaves either a part
    or no part. Rows of one job are never split over two parts.

    Parameters
    ----------
    folder : Path or None
    """

    FLUSH_ROWS = 20_000

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._rows: list[dict[str, Any]] = []
        self._tables: list[pa.Table] = []

    def clean(self) -> None:
        """Put away what an earlier writer left unfinished; only the writer may do this.

        A damaged part is set aside with a warning, and its jobs count as not done.
        """
        if self.folder is None:
            return
        folder = self.folder / "parts"
        folder.mkdir(parents=True, exist_ok=True)
        for aside in folder.glob("*.aside"):
            aside.unlink()
        for path in sorted(folder.glob("part-*.parquet")):
            if _read_part(path) is None:
                os.replace(path, path.with_suffix(".parquet.damaged"))

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Take the rows of one finished job."""
        self._rows.extend(dict(row) for row in rows)
        if len(self._rows) >= self.FLUSH_ROWS:
            self.flush()

    def flush(self) -> None:
        """Write what is held back."""
        if not self._rows:
            return
        table = pa.Table.from_pylist(self._rows, schema=SCHEMA)
        if self.folder is None:
            self._tables.append(table)
        else:
            self._write(table, self.folder / "parts")
        self._rows = []

    def _write(self, table: pa.Table, folder: Path) -> None:
        used = [int(p.name[5:11]) for p in folder.glob("part-*.parquet*")]
        path = folder / f"part-{max(used, default=0) + 1:06d}.parquet"
        with _aside(path) as file:
            pq.write_table(table, file, compression="zstd")

    def tables(self) -> Iterable[pa.Table]:
        """All parts that can be read."""
        yield from self._tables
        if self.folder is not None:
            paths = sorted((self.folder / "parts").glob("part-*.parquet"))
            yield from (table for p in paths if (table := _read_part(p)) is not None)

    def done(self) -> dict[str, set[str]]:
        """Measures that each job has finished."""
        found: dict[str, set[str]] = {}
        for table in self.tables():
            pairs = table.select(["job", "measure"]).group_by(["job", "measure"]).aggregate([])
            for job, measure in zip(pairs["job"].to_pylist(), pairs["measure"].to_pylist()):
                found.setdefault(job, set()).add(measure)
        return found

    def rows(self, jobs: Iterable[str]) -> pd.DataFrame:
        """Rows of the given jobs, as a frame with the columns of `SCHEMA`."""
        wanted = pa.array(list(jobs), pa.string())
        kept = [
            table.filter(
                pc.and_(
                    pc.is_in(table["job"], value_set=wanted),
                    pc.greater_equal(table["block"], -1),  # -2 marks that a job is done
                )
            )
            for table in self.tables()
        ]
        frame: pd.DataFrame = pa.concat_tables(kept or [SCHEMA.empty_table()]).to_pandas()
        return frame


def _read_part(path: Path) -> pa.Table | None:
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        _log.warning("%s is damaged (%s); its jobs count as not measured", path, error)
        return None
    if table.schema.names != SCHEMA.names:
        raise TableError(f"{path}: written by another version; columns {table.schema.names}")
    return table


@contextmanager
def _aside(path: Path) -> Iterator[IO[bytes]]:
    """Write a file aside and rename it, so that it is there whole or not at all."""
    aside = path.with_suffix(".aside")
    try:
        with open(aside, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError as error:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        raise StorageError(f"{path}: cannot be written: {error}; earlier parts are kept") from error


def write_json(path: Path, said: Mapping[str, Any]) -> None:
    """Write a JSON file, whole or not at all."""
    with _aside(path) as file:
        file.write(json.dumps(said, indent=None, separators=(",", ":")).encode())


def measure_key(name: str, version: int) -> str:
    """Name of an accumulator or whole-matrix step with the version of its definition."""
    return f"{name}@{version}"


def tabulate(rows: pd.DataFrame, wanted: Sequence[str], by: str = "tensor") -> pd.DataFrame:
    """Merge rows of accumulators to a level, and compute statistics from them.

    Parameters
    ----------
    rows : DataFrame
        As `Parts.rows` gives them.
    wanted : sequence of str
        Names of registered statistics.
    by : {"tensor", "layer", "module", "all"}

    Returns
    -------
    DataFrame
        A measured table.
    """
    if by not in LEVELS:
        raise TableError(f"unknown level {by!r}; allowed: {', '.join(LEVELS)}")
    entries = [statistics[name] for name in wanted]
    used = {measure_key(m.name, m.version) for e in entries for m in e.measures}
    rows = rows[rows["measure"].isin(used)]
    results: dict[tuple[Any, ...], dict[str, float]] = {}
    infos: list[pd.DataFrame] = []
    for measure, part in rows.groupby("measure", sort=False):
        name = str(measure).split("@")[0]
        info, columns = _merged(part, name, LEVELS[by])
        infos.append(info)
        if name in wholes and by != "tensor":
            continue  # nothing merges: the rows are there, and NaN
        for position, key in enumerate(info.index):
            held = results.setdefault(key, {})
            for column, field in enumerate(columns[0]):
                held[field] = columns[1][position, column]
    if not infos:
        return check_table(pd.DataFrame(columns=[*KEY, *INFO, *wanted]))
    info = pd.concat(infos)
    info = info[~info.index.duplicated()]
    _share_fields(results, info, LEVELS[by])
    return _table(info, results, entries, LEVELS[by])


def _merged(
    part: pd.DataFrame, name: str, keys: list[str]
) -> tuple[pd.DataFrame, tuple[list[str], Values]]:
    """One row per group of `keys`, in order of first appearance, and its merged fields."""
    part = part.sort_values("block", kind="stable")
    code, _ = pd.factorize(pd.MultiIndex.from_frame(part[keys].astype(object).fillna("")))
    order = np.argsort(code, kind="stable")
    part, code = part.iloc[order], code[order]
    starts = np.flatnonzero(np.diff(code, prepend=-1)).astype(np.intp)
    values = np.stack(list(part["values"])).astype(np.float64)
    entry = wholes[name] if name in wholes else accumulators[name]
    fields = dict(entry.fields)
    with np.errstate(all="ignore"):
        merged = values if name in wholes else merge(fields, values, starts)
    first = part.iloc[starts].copy()
    if keys is not LEVELS["tensor"]:
        first["numel"] = _numel(part, code)
        for scalar in NUMBERS:  # a scalar that differs within the group is not defined for it
            low = np.fmin.reduceat(part[scalar].to_numpy(), starts)
            high = np.fmax.reduceat(part[scalar].to_numpy(), starts)
            first[scalar] = np.where(low == high, low, np.nan)
    named = first[keys].astype(object).fillna("").itertuples(index=False, name=None)
    first.index = pd.Index(list(named), tupleize_cols=False)
    return first, (list(fields), merged)


def _numel(part: pd.DataFrame, code: npt.NDArray[np.intp]) -> Values:
    """Elements of a group: each tensor counted once, however many blocks it has."""
    once = ~pd.DataFrame({"group": code, "name": part["name"].to_numpy()}).duplicated()
    kept = once.to_numpy()
    counts = part["numel"].to_numpy(dtype=np.float64)[kept]
    return np.bincount(code[kept], weights=counts).astype(np.float64)


def _share_fields(
    results: dict[tuple[Any, ...], dict[str, float]], info: pd.DataFrame, keys: list[str]
) -> None:
    """Let a comparison see its tensor's own sums, and the moments those of their weights."""
    at, state = keys.index("against"), keys.index("state")
    for key in info.index:
        mine = results.setdefault(key, {})
        other = list(key)
        if key[at]:
            other[at] = ""
        elif key[state] == "adam":
            other[state] = "weight"
        results[key] = {**results.get(tuple(other), {}), **mine}


def _table(
    info: pd.DataFrame,
    results: Mapping[tuple[Any, ...], Mapping[str, float]],
    entries: Sequence[Statistic],
    keys: list[str],
) -> pd.DataFrame:
    columns: dict[str, list[float]] = {entry.name: [] for entry in entries}
    scalars = _scalars(info)
    pair = {entry.name: any(m.pair for m in entry.measures) for entry in entries}
    moments = {entry.name: any(m.named_states for m in entry.measures) for entry in entries}
    at, state = keys.index("against"), keys.index("state")
    with np.errstate(all="ignore"):
        for position, key in enumerate(info.index):
            known = {**scalars[position], **results[key]}
            for entry in entries:
                fits = (
                    pair[entry.name] == bool(key[at])
                    and moments[entry.name] == (key[state] == "adam")
                    and all(n in known for n in entry.inputs)
                )
                columns[entry.name].append(_call(entry, known, key) if fits else np.nan)
    table = info.reset_index(drop=True)[[*KEY, *INFO]].copy()
    for column in KEY:
        if column not in keys:
            table[column] = pd.NA if KEY[column] == "Int64" else ""
    if keys is not LEVELS["tensor"]:
        table[["key", "dtype", "shape"]] = ""
    for name, values in columns.items():
        table[name] = np.asarray(values, dtype=np.float64)
    order = ["run", "branch", "step", "number", "layer", "name", "module", "state", "against"]
    return check_table(
        table.sort_values(order, kind="stable", na_position="first", ignore_index=True)
    )


def _scalars(info: pd.DataFrame) -> list[dict[str, Any]]:
    frame = info.rename(columns={"step": "_", "opt_step": "step"})
    numbers = {name: frame[name].to_numpy() for name in SCALARS if name in frame.columns}
    return [
        {k: np.float64(v[i]) if k not in ("shape", "dtype") else v[i] for k, v in numbers.items()}
        for i in range(len(frame))
    ]


def _call(entry: Statistic, known: Mapping[str, Any], key: tuple[Any, ...]) -> float:
    try:
        return float(entry.function(**{name: known[name] for name in entry.inputs}))
    except Exception as error:
        where = " ".join(str(k) for k in key if k != "")
        raise StatisticError(f"{where}: statistic {entry.name!r} failed: {error}") from error


def _needed(names: Sequence[str], measured: Collection[str]) -> set[str]:
    """Measures that statistics rest on; an error if one was not part of the plan."""
    needed = set()
    for name in names:
        for measure in statistics[name].measures:
            key = measure_key(measure.name, measure.version)
            if key not in measured:
                raise TableError(
                    f"{name!r} rests on {key!r}, which this folder does not hold; it holds "
                    f"{', '.join(measured)}; plan and run with {name!r} to add it"
                )
            needed.add(key)
    return needed


def load_table(
    path: str | os.PathLike[str],
    *,
    by: str = "tensor",
    statistics: Sequence[str] | None = None,
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

    Returns
    -------
    DataFrame
        Columns as in `analysis360.table`: key, information, one column per statistic.

    Raises
    ------
    TableError
        If there is no plan in the folder, a statistic's sums are not in it, or it is unfinished and
        a coarser level is asked for.
    StatisticError
        If a statistic is unknown.
    """
    folder = Path(path)
    plan = _read_json(folder / "plan.json")
    wanted = list(plan["statistics"] if statistics is None else statistics)
    needed, parts = _needed(wanted, plan["measures"]), Parts(folder)
    done = parts.done()
    jobs = {job["key"]: [block[0] for block in job["blocks"]] for job in plan["jobs"]}
    left = [key for key in jobs if not needed <= done.get(key, set())]
    rows = parts.rows(jobs)
    if left:
        said = f"{folder} is unfinished: {len(jobs) - len(left)} of {len(jobs)} jobs are done"
        if by != "tensor":
            raise TableError(f"{said}; by={by!r} needs all, run the plan again to finish")
        _log.warning("%s; tensors that are not whole are left out", said)
        rows = rows[~rows["name"].isin({name for key in left for name in jobs[key]})]
    return tabulate(rows, wanted, by)


def read_provenance(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a results folder says of its origin: checkpoints, commits, versions, bytes.

    ``finished`` is None until the plan was run to its end; ``bytes_read`` and ``seconds`` are of
    the last time it ran.

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
        said = {"finished": None}
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
