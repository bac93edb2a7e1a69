"""The measured table made of stored sums: blocks are merged, then statistics are taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from analysis360.errors import StatisticError, TableError
from analysis360.results.contents import Contents, Entry, Key, measure_key
from analysis360.results.parts import KEYS, Parts
from analysis360.stats import (
    BETWEEN,
    SCALARS,
    Statistic,
    Term,
    Whole,
    field_owner,
    gather,
    is_vector,
    merge,
    statistics,
)  # fmt: skip
from analysis360.stats.base import Measure, Values, merge_columns
from analysis360.table import INFO, KEY, as_keyed, check_table

__all__ = ["LEVELS", "tabulate", "vectors"]

LEVELS = {
    "tensor": list(KEY),
    "layer": ["run", "branch", "number", "step", "tokens", "layer", "state", "against"],
    "module": ["run", "branch", "number", "step", "tokens", "module", "state", "against"],
    "all": ["run", "branch", "number", "step", "tokens", "state", "against"],
}

NUMBERS = ("opt_step", "beta1", "beta2", "eps", "lr", "weight_decay", "clip", *BETWEEN)
"""Scalars of a row; `opt_step` is the scalar that statistics call ``step``."""

TEXTS = ("shape", "dtype", "reference_dtype")

ORDER = ["run", "branch", "step", "number", "layer", "name", "module", "state", "against"]

Place = tuple[int, str, str, str]  # checkpoint, name, state, against
Ints = npt.NDArray[np.intp]
Column = npt.NDArray[Any]  # float64, or objects: an array a row
Fields = dict[str, tuple[Column, npt.NDArray[np.bool_]]]  # by row, and where there is one


@dataclass
class _Rows:
    """Rows of the table to be: where each is, and the merged fields of each measure."""

    at: dict[Place, int] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)
    opt_step: dict[int, float] = field(default_factory=dict)
    fields: dict[Measure, tuple[npt.NDArray[np.intp], Values]] = field(default_factory=dict)
    vectors: dict[str, tuple[npt.NDArray[np.intp], Column]] = field(default_factory=dict)
    terms: dict[str, tuple[npt.NDArray[np.intp], Values]] = field(default_factory=dict)

    def row(self, entry: Entry) -> int:
        place = (entry.position, entry.name, entry.state, entry.against)
        if place not in self.at:
            self.at[place] = len(self.entries)
            self.entries.append(entry)
        return self.at[place]


def tabulate(
    contents: Contents, parts: Parts, wanted: Sequence[str], by: str = "tensor"
) -> tuple[pd.DataFrame, set[str]]:
    """Merge stored sums to a level, and compute statistics from them.

    Parameters
    ----------
    contents : Contents
        What the table is to hold.
    parts : Parts
        Where the sums are. They are read one measure at a time.
    wanted : sequence of str
        Names of registered statistics.
    by : {"tensor", "layer", "module", "all"}

    Returns
    -------
    table : DataFrame
        A measured table of the tensors that are whole.
    missing : set of str
        Names of the tensors of which a block is missing somewhere.
    """
    if by not in LEVELS:
        raise TableError(f"unknown level {by!r}; allowed: {', '.join(LEVELS)}")
    rows, missing = _gathered(contents, parts, _measures(wanted))
    entries = [statistics[name] for name in wanted]
    if not rows.entries:
        empty = pd.DataFrame(columns=[*KEY, *INFO, *wanted])
        return check_table(empty.astype(dict.fromkeys(wanted, "float64"))), missing
    info = _described(contents, rows)
    kept = ~info["name"].isin(missing).to_numpy()
    rows.terms = _terms(rows, info, [term for entry in entries for term in entry.terms])
    if by == "tensor":
        return _table(info[kept], _fields(rows), entries, kept), missing
    level, fields = _merged(info, rows, LEVELS[by])
    return _table(level, fields, entries, np.ones(len(level), bool), by), missing


def vectors(
    contents: Contents, parts: Parts, wanted: Sequence[str]
) -> tuple[pd.DataFrame, set[str]]:
    """Histograms, rows, columns and spectra that statistics rest on: one row each.

    Parameters
    ----------
    contents, parts, wanted
        As in `tabulate`.

    Returns
    -------
    vectors : DataFrame
        Key, information, ``vector`` (its name) and ``values`` (an array).
    missing : set of str
        Names of the tensors of which a block is missing somewhere.
    """
    named = dict.fromkeys(
        n for name in wanted for n in statistics[name].inputs if n not in SCALARS and is_vector(n)
    )
    used = tuple(dict.fromkeys(field_owner(name) for name in named))
    rows, missing = _gathered(contents, parts, used)
    if not rows.entries:
        empty = pd.DataFrame(columns=[*KEY, *INFO, "vector", "values"])
        return as_keyed(empty), missing
    info, fields = _described(contents, rows), _stacked(_fields(rows))
    pieces = []
    for name in named:
        values, there = fields[name]
        kept = there & ~info["name"].isin(missing).to_numpy()
        piece = info.loc[kept, [*KEY, *INFO]].assign(vector=name)
        pieces.append(piece.assign(values=list(values[kept])))
    found = pd.concat(pieces).astype({c: "Int64" for c, t in KEY.items() if t == "Int64"})
    order = [*ORDER, "vector"]
    found = found.sort_values(order, kind="stable", na_position="first", ignore_index=True)
    return as_keyed(found), missing


def _measures(wanted: Sequence[str]) -> tuple[Measure, ...]:
    return tuple(dict.fromkeys(m for name in wanted for m in statistics[name].measures))


def _gathered(contents: Contents, parts: Parts, used: Sequence[Measure]) -> tuple[_Rows, set[str]]:
    """Merged sums of every entry, and the tensors that are not whole."""
    rows, missing = _Rows(), set[str]()
    for measure in used:
        entries = [
            entry
            for position, mine in enumerate(contents.tensors)
            for name in dict.fromkeys(name for name, _ in mine)
            for entry in contents.entries(position, name, (measure,))
        ]
        keys = [contents.key_of(entry) for entry in entries]
        name = measure_key(measure.name, measure.version)
        sums, more, steps, whole = _blocks(
            measure, parts.rows(name, {key[0] for key in keys}), keys,
            [contents.rows(entry.name) for entry in entries],
        )  # fmt: skip
        missing |= {entry.name for entry, there in zip(entries, whole) if not there}
        at = np.array([rows.row(entry) for entry in entries], dtype=np.intp)
        rows.fields[measure] = (at, sums)
        rows.vectors |= {name: (at, arrays) for name, arrays in more.items()}
        for row, step in zip(at, steps):
            if not np.isnan(step):
                rows.opt_step[int(row)] = step
    return rows, missing


def _blocks(
    measure: Measure, table: pa.Table, keys: Sequence[Key], lengths: Sequence[int]
) -> tuple[Values, dict[str, Column], Values, npt.NDArray[np.bool_]]:
    """Fields and vectors of each key, merged over blocks; the optimizer step; what is whole."""
    groups: dict[Key, int] = {}  # two roles may be played by one checkpoint
    of = np.array([groups.setdefault(key, len(groups)) for key in keys], dtype=np.intp)
    sums = np.full((len(groups), len(measure.fields)), np.nan)
    arrays = {name: np.full(len(groups), None, dtype=object) for name in _vectors(measure)}
    steps, covered = np.full(len(groups), np.nan), np.zeros(len(groups), dtype=np.int64)
    code = _codes(table, groups)
    start, stop = table["start"].to_numpy(), table["stop"].to_numpy()
    order = _once(code, start, stop, {groups[key]: length for key, length in zip(keys, lengths)})
    if len(order):
        code = code[order]
        first = np.flatnonzero(np.diff(code, prepend=-1)).astype(np.intp)
        there = code[first]
        with np.errstate(all="ignore"):
            if arrays:
                for group, mine in zip(there, np.split(order, first[1:])):
                    sums[group], made = _long(measure, _stored(table, mine))
                    for name, values in made.items():
                        arrays[name][group] = values
            else:
                flat = table["values"].combine_chunks().flatten().to_numpy()
                values = flat.reshape(len(table), -1)[order]
                whole = isinstance(measure, Whole)
                sums[there] = values[first] if whole else merge(measure.fields, values, first)
        steps[there] = table["opt_step"].to_numpy()[order][first]
        covered[there] = np.add.reduceat((stop - start)[order], first)
    found = {name: values[of] for name, values in arrays.items()}
    return sums[of], found, steps[of], covered[of] == np.asarray(lengths, dtype=np.int64)


def _vectors(measure: Measure) -> tuple[str, ...]:
    """Results of a measure that are an array of any length."""
    if isinstance(measure, Whole):
        return (measure.vector,) if measure.vector else ()
    return tuple(measure.fields) if measure.axis else ()


def _stored(table: pa.Table, rows: Ints) -> list[Values]:
    """Stored values of some rows."""
    return [np.asarray(table["values"][int(row)].values.to_numpy()) for row in rows]


def _long(measure: Measure, blocks: Sequence[Values]) -> tuple[Values, dict[str, Values]]:
    """Fields and vectors of one tensor, from those of its blocks in order."""
    fields = measure.fields
    if isinstance(measure, Whole):
        values = blocks[0]
        assert measure.vector
        return values[: len(fields)], {measure.vector: values[len(fields) :]}
    shaped = [block.reshape(len(fields), -1) for block in blocks]
    if measure.axis == "rows":
        whole = np.concatenate(shaped, axis=1)
    else:
        whole = reduce(lambda one, other: merge_columns(fields, one, other), shaped)
    return np.full(len(fields), np.nan), dict(zip(fields, whole))


def _once(code: Ints, start: Ints, stop: Ints, lengths: Mapping[int, int]) -> Ints:
    """Places of the rows that count: those of each group in order, each stretch of a tensor once.

    A block may be there twice, and an earlier version may have cut tensors into other blocks.
    """
    order = np.lexsort((-stop, start, code))
    order = order[code[order] >= 0]
    same = np.diff(code[order], prepend=-1) == 0
    again = same & (np.diff(start[order], prepend=0) == 0) & (np.diff(stop[order], prepend=0) == 0)
    order, same = order[~again], same[~again]
    overlap = same.copy()
    overlap[1:] &= start[order][1:] < stop[order][:-1]
    dropped: set[int] = set()
    for group in np.unique(code[order][overlap]):
        mine = order[code[order] == group]
        dropped |= {*mine.tolist()} - {*_path(mine, start, stop, lengths[int(group)])}
    kept: Ints = order[~np.isin(order, list(dropped))]
    return kept


def _path(rows: Ints, start: Ints, stop: Ints, length: int) -> list[int]:
    """Rows, out of some that overlap, that follow each other from the start to the end."""
    onward: dict[int, int] = {}  # from a row of the tensor to the block that leads to its end
    for row in rows[::-1].tolist():
        if stop[row] == length or int(stop[row]) in onward:
            onward[int(start[row])] = row
    found, at = [], 0
    while at in onward and at < length:
        found.append(onward[at])
        at = int(stop[onward[at]])
    return found


def _codes(table: pa.Table, groups: Mapping[Key, int]) -> npt.NDArray[np.intp]:
    """Group of each row, -1 if it is in none; keys are looked up once, not once a block."""
    combined = np.zeros(len(table), dtype=np.intp)
    columns = []
    for name in KEYS:
        column = table[name].combine_chunks().dictionary_encode()
        codes = column.indices.to_numpy()
        columns.append((codes, column.dictionary.to_pylist()))
        joined = combined * max(1, len(column.dictionary)) + codes
        combined = np.unique(joined, return_inverse=True)[1].astype(np.intp)
    _, first = np.unique(combined, return_index=True)
    found = [groups.get(tuple(words[codes[row]] for codes, words in columns), -1) for row in first]
    return np.asarray(found, dtype=np.intp)[combined] if found else combined


def _described(contents: Contents, rows: _Rows) -> pd.DataFrame:
    """Key, information and scalars of every row."""
    said = [_row(contents, rows, i, entry) for i, entry in enumerate(rows.entries)]
    return pd.DataFrame(said)


def _row(contents: Contents, rows: _Rows, at: int, entry: Entry) -> dict[str, Any]:
    checkpoint, label = contents.checkpoints[entry.position], contents.labels[entry.name]
    info = contents.tensors[entry.position][entry.name, contents.stored(entry)[0]]
    compared = contents.checkpoints[entry.reference] if entry.against else None
    known = contents.scalars(entry.position, entry.name)
    known["opt_step"] = rows.opt_step.get(at, known.pop("step"))
    between = contents.between.get((entry.position, entry.against), (np.nan,) * 3)
    known |= dict(zip(BETWEEN, between))
    decays = contents.adam[entry.position].decays(len(contents.shape(entry.name)))
    if not decays and np.isfinite(between[0]):
        known["decay"] = 1.0
    there = contents.stored_there(entry)
    other = contents.tensors[entry.reference][entry.name, there[0]] if there else None
    return {
        "run": contents.name, "branch": checkpoint.branch, "number": checkpoint.number,
        "step": checkpoint.step, "tokens": checkpoint.tokens, "name": entry.name,
        "layer": label.layer, "module": label.module, "param": label.param,
        "expert": label.expert, "head": label.head, "state": entry.state,
        "against": entry.against, "key": info.key, "revision": checkpoint.revision,
        "dtype": info.dtype, "shape": "x".join(map(str, info.shape)), "numel": info.numel,
        "reference": "" if compared is None else compared.name,
        "reference_step": None if compared is None else compared.step,
        "reference_dtype": "" if other is None else other.dtype,
        **known,
    }  # fmt: skip


def _fields(rows: _Rows) -> Fields:
    """Each field as a column over the rows, and in which rows it was measured."""
    found: Fields = {}
    for measure, (at, sums) in rows.fields.items():
        there = np.zeros(len(rows.entries), dtype=bool)
        there[at] = True
        for column, name in enumerate(measure.fields):
            values = np.full(len(rows.entries), np.nan)
            values[at] = sums[:, column]
            found[name] = (values, there)
    for name, (at, sums) in rows.terms.items():
        values, there = np.full(len(rows.entries), np.nan), np.zeros(len(rows.entries), dtype=bool)
        values[at], there[at] = sums, True
        found[name] = (values, there)
    for name, (places, arrays) in rows.vectors.items():
        vectors = np.full(len(rows.entries), None, dtype=object)
        there = np.zeros(len(rows.entries), dtype=bool)
        vectors[places], there[places] = arrays, True
        found[name] = (vectors, there)
    return found


def _stacked(fields: Fields) -> Fields:
    """The same, with the counts of a histogram as one field of its name."""
    parts: dict[str, dict[str, Column]] = {}
    for name, (values, _) in fields.items():
        if "[" in name:
            parts.setdefault(name.partition("[")[0], {})[name] = values
    found = {name: column for name, column in fields.items() if "[" not in name}
    for name, mine in parts.items():
        found[name] = (gather(mine, name), fields[f"{name}[0]"][1])
    return found


def _terms(
    rows: _Rows, info: pd.DataFrame, wanted: Sequence[Term]
) -> dict[str, tuple[Ints, Values]]:
    """Terms of every row that has their fields."""
    fields, found = _fields(rows), {}
    for term in dict.fromkeys(wanted):
        mine = [name for name in term.inputs if name not in SCALARS]
        at = np.flatnonzero(np.all([fields[name][1] for name in mine], axis=0))
        given = [
            fields[name][0][at] if name in mine else _scalar(info.iloc[at], name)
            for name in term.inputs
        ]
        with np.errstate(all="ignore"):
            values = [float(term.function(*numbers)) for numbers in zip(*given)]
        found[term.name] = (at, np.asarray(values, dtype=np.float64))
    return found


def _scalar(info: pd.DataFrame, name: str) -> npt.NDArray[Any]:
    """A scalar of each row, as statistics are given it."""
    stored = info["opt_step" if name == "step" else name]
    if name in TEXTS:
        return stored.to_numpy()
    return stored.to_numpy(np.float64, na_value=np.nan)


def _merged(info: pd.DataFrame, rows: _Rows, keys: list[str]) -> tuple[pd.DataFrame, Fields]:
    """Rows of a coarser level, and their fields. What does not merge stays NaN."""
    said = info[keys].astype(object).where(info[keys].notna(), "")
    code, _ = pd.factorize(pd.MultiIndex.from_frame(said))
    _, first = np.unique(code, return_index=True)
    fields: Fields = {}
    for measure, (at, sums) in rows.fields.items():
        there = np.zeros(len(first), dtype=bool)
        merged = np.full((len(first), len(measure.fields)), np.nan)
        if {*measure.fields.values()} - {"none", "rows"} and not _vectors(measure):
            order = np.argsort(code[at], kind="stable")
            groups = code[at][order]
            starts = np.flatnonzero(np.diff(groups, prepend=-1)).astype(np.intp)
            there[groups[starts]] = True
            with np.errstate(all="ignore"):
                merged[groups[starts]] = merge(measure.fields, sums[order], starts)
        for column, name in enumerate(measure.fields):
            fields[name] = (merged[:, column], there)
        none = np.full(len(first), None, dtype=object)
        fields |= dict.fromkeys(_vectors(measure), (none, np.zeros(len(first), dtype=bool)))
    for name, (at, sums) in rows.terms.items():
        there = np.bincount(code[at], minlength=len(first)) > 0
        merged = np.bincount(code[at], weights=sums, minlength=len(first))
        fields[name] = (np.where(there, merged, np.nan), there)
    level = info.iloc[first].copy()
    once = ~pd.DataFrame({"group": code, "name": info["name"].to_numpy()}).duplicated().to_numpy()
    counts = info["numel"].to_numpy(dtype=np.float64)[once]  # each tensor once
    level["numel"] = np.bincount(code[once], weights=counts, minlength=len(first))
    for scalar in NUMBERS:  # one that differs, or is not known of all, is not defined for a group
        values = info.groupby(code)[scalar]
        low, high = values.min().to_numpy(), values.max().to_numpy()
        known = values.count().to_numpy() == values.size().to_numpy()
        level[scalar] = np.where(known & (low == high), low, np.nan)
    for key in set(KEY) - set(keys):
        level[key] = None if KEY[key] == "Int64" else ""
    for text in ("dtype", "reference_dtype"):
        values = info.groupby(code)[text]
        level[text] = values.first().where(values.nunique() == 1, "").to_numpy()
    level[["key", "shape"]] = ""
    return level, fields


def _table(
    info: pd.DataFrame,
    fields: Fields,
    entries: Sequence[Statistic],
    kept: npt.NDArray[np.bool_],
    by: str = "tensor",
) -> pd.DataFrame:
    keys = LEVELS[by]
    fields = {name: (values[kept], there[kept]) for name, (values, there) in fields.items()}
    fields = _stacked(fields)
    owners = _owners(info, keys)
    columns = pd.DataFrame({e.name: _column(e, info, fields, owners) for e in entries})
    # at once: pandas warns of a hundred columns that come one by one
    table = pd.concat([info[[*KEY, *INFO]].reset_index(drop=True), columns], axis=1)
    table = table.astype({c: "Int64" for c, t in KEY.items() if t == "Int64"})
    return check_table(
        table.sort_values(ORDER, kind="stable", na_position="first", ignore_index=True)
    )


def _owners(info: pd.DataFrame, keys: list[str]) -> list[npt.NDArray[np.intp]]:
    """Rows whose sums each row may use too, or -1; the nearest first.

    A comparison sees its tensor's own sums, and the moments those of their weights; of a layer only
    if both are of the same tensors.
    """
    said = info[keys].astype(object).where(info[keys].notna(), "")
    places = list(said.itertuples(index=False, name=None))
    at = {place: row for row, place in enumerate(places)}
    against, state = keys.index("against"), keys.index("state")
    numel = info["numel"].to_numpy()

    def other(place: tuple[Any, ...], alone: bool, weight: bool) -> int:
        changed = list(place)
        if alone:
            changed[against] = ""
        if weight and place[state] == "adam":
            changed[state] = "weight"
        found = at.get(tuple(changed), -1)
        return -1 if tuple(changed) == place or numel[found] != numel[at[place]] else found

    ways = ((True, False), (False, True), (True, True))
    return [np.array([other(p, *way) for p in places], dtype=np.intp) for way in ways]


def _column(
    entry: Statistic,
    info: pd.DataFrame,
    fields: Fields,
    owners: Sequence[npt.NDArray[np.intp]],
) -> Values:
    """One statistic over all rows; NaN where it is not for this row, or a sum is missing."""
    pair = any(m.pair for m in entry.measures)
    moments = any(m.named_states for m in entry.measures)
    fits = (info["against"].to_numpy() != "") == pair
    fits &= (info["state"].to_numpy() == "adam") == moments
    if not moments and {"decay", "weight_decay"} & {*entry.scalars}:  # only weights decay
        fits &= info["state"].isin(["weight", "master"]).to_numpy()
    given: list[npt.NDArray[Any]] = []
    for name in entry.inputs:
        if name in fields:
            found, there = fields[name]
            mine = np.arange(len(there))
            for owner in owners:
                mine = np.where(there[mine] | (owner < 0), mine, owner)
            given.append(found[mine])
            fits &= there[mine]
        else:
            given.append(_scalar(info, name))
    values = np.full(len(info), np.nan)
    with np.errstate(all="ignore"):
        for row in np.flatnonzero(fits):
            try:
                values[row] = float(entry.function(*(column[row] for column in given)))
            except Exception as error:
                raise StatisticError(
                    f"{_where(info.iloc[row])}: statistic {entry.name!r} failed: {error}"
                ) from error
    return values


def _where(row: pd.Series) -> str:
    """A row of the table, in words."""
    said = [f"{key} {row[key]}" for key in KEY if key != "against" and pd.notna(row[key])]
    against = f" against {row['against']}" if row["against"] else ""
    return ", ".join(word for word in said if not word.endswith(" ")) + against
