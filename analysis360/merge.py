"""Several runs as one, and whether checkpoints of different runs hold the same files."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from analysis360.core import Adam, Checkpoint, Fork, Run
from analysis360.errors import FormatError

__all__ = ["merge_runs", "same_files"]

_AGREED = ("family", "learning_rate", "layers", "modules", "batch", "sequence_length")
"""Of these the runs that say anything must say the same."""

_PIECE = 1 << 24  # bytes read at once, where files are to be read


def merge_runs(
    runs: Iterable[Run],
    name: str,
    *,
    rename: Mapping[str, Mapping[str, str]] | None = None,
    duplicates: str = "refuse",
) -> Run:
    """Take several runs as one, such as a repository of spikes and the run that they left.

    Each checkpoint stays where it is (`Checkpoint.uri`). A checkpoint that two runs have, of the
    same branch, number and step, is taken once if the hashes of their files agree.

    Parameters
    ----------
    runs : iterable of Run
    name : str
        Of the merged run.
    rename : mapping of str to mapping of str to str, optional
        Run to the new names of its branches, where two runs use one name for different things.
    duplicates : {"refuse", "both"}
        What to do with a checkpoint that two runs have, if their files differ, or if no hashes tell
        whether they do: raise, or keep that of the later run in a branch of its own, called
        ``"branch (run)"``.

    Returns
    -------
    Run
        With the forks and events of all. What they say of the optimizer, the learning rate and the
        names of parameters is combined.

    Raises
    ------
    FormatError
        If two runs contradict each other; the message names both. Or if `duplicates` is neither, or
        `rename` names a run or a branch that is not there.
    TypeError
        If `runs` holds something else than runs.

    Examples
    --------
    >>> from analysis360.core import Checkpoint, Run
    >>> runs = [
    ...     Run(n, n, f"hf://lab/{n}", (Checkpoint(n, n, 1, None, None, f"hf://lab/{n}", n, n),))
    ...     for n in ("long", "spike")
    ... ]
    >>> [(c.branch, c.uri) for c in merge_runs(runs, "both").entries]
    [('long', 'hf://lab/long'), ('spike', 'hf://lab/spike')]
    """
    if duplicates not in ("refuse", "both"):
        raise FormatError(f"duplicates={duplicates!r}; allowed: 'refuse', 'both'")
    runs = list(runs) if isinstance(runs, Iterable) else [runs]
    strange = [run for run in runs if not isinstance(run, Run)]
    if strange:
        raise TypeError(f"merge_runs takes runs, as open_run gives them; got {strange[0]!r}")
    if not runs:
        raise FormatError("no runs to merge")
    runs = [_renamed(run, (rename or {}).get(run.name, {})) for run in runs]
    unknown = set(rename or {}) - {run.name for run in runs}
    if unknown:
        known = ", ".join(run.name for run in runs)
        raise FormatError(f"rename={sorted(unknown)}: no such runs; there are {known}")
    entries = _entries(runs, duplicates)
    said = {k: _agreed(runs, k) for k in _AGREED}
    return Run(
        name=name, title=" + ".join(dict.fromkeys(run.title for run in runs)),
        home=", ".join(dict.fromkeys(run.home for run in runs)),
        entries=tuple(replace(c, run=name) for c in entries),
        adam=_adam(runs), forks=_forks(runs), sources=_sources(runs),
        events=tuple(dict.fromkeys(event for run in runs for event in run.events)),
        published={k: v for run in reversed(runs) for k, v in run.published.items()}, **said,
    )  # fmt: skip


def _renamed(run: Run, names: Mapping[str, str]) -> Run:
    """Call branches by other names, also where forks and events speak of them."""
    spoken = {b for f in run.forks for b in (f.branch, f.parent)} | {e.branch for e in run.events}
    unknown = set(names) - {*run.branches, *spoken}
    if unknown:
        there = ", ".join(run.branches)
        raise FormatError(f"rename of {run.name}: no branches {sorted(unknown)}; there are {there}")
    if not names:
        return run

    def new(branch: str) -> str:
        return names.get(branch, branch)

    return replace(
        run,
        entries=tuple(replace(c, branch=new(c.branch)) for c in run.entries),
        forks=tuple(replace(f, branch=new(f.branch), parent=new(f.parent)) for f in run.forks),
        events=tuple(replace(e, branch=new(e.branch)) for e in run.events),
    )


def _entries(runs: Sequence[Run], duplicates: str) -> list[Checkpoint]:
    """Every checkpoint once, sorted as a run's are."""
    found: dict[tuple[object, ...], Checkpoint] = {}
    for run in runs:
        for mine in run.entries:
            other = found.setdefault(_place(mine), mine)
            if other is mine or _is_same(other, mine):
                continue
            if duplicates == "refuse":
                raise FormatError(_doubled(other, mine))
            mine = replace(mine, branch=f"{mine.branch} ({run.name})")
            found[_place(mine)] = mine
    return sorted(found.values(), key=lambda c: (c.branch, c.order, c.name))


def _place(c: Checkpoint) -> tuple[object, ...]:
    if c.number is None and c.step is None:
        return c.branch, None, c.name
    return c.branch, c.number, c.step


def _is_same(a: Checkpoint, b: Checkpoint) -> bool | None:
    """Whether two checkpoints hold the same; None if that is not known without reading."""
    if (a.uri, a.revision) == (b.uri, b.revision):
        return True
    verdicts = [_equal(a, b, file) for file in sorted({*a.files, *b.files}) if _counts(file)]
    if False in verdicts:
        return False
    return None if None in verdicts or not verdicts else True


def _counts(file: str) -> bool:
    """Whether a file belongs to what is measured: texts beside it may differ."""
    name = file.rpartition("/")[2]
    return not name.startswith(".") and not name.endswith((".md", ".txt", ".png", ".py"))


def _equal(a: Checkpoint, b: Checkpoint, file: str) -> bool | None:
    """Whether a file is the same in two checkpoints; None if one lacks it, or no hash tells."""
    if file not in a.files or file not in b.files:
        return None
    mine, other = a.hashes.get(file, ""), b.hashes.get(file, "")
    comparable = bool(mine) and mine.partition(":")[0] == other.partition(":")[0]
    if comparable:
        return mine == other
    return None if a.files[file] == b.files[file] else False


def _doubled(a: Checkpoint, b: Checkpoint) -> str:
    at = f"step {a.step}" if a.number is None else f"number {a.number}"
    differ = "differ" if _is_same(a, b) is False else "may differ, no hashes tell"
    return (
        f"{a.run}: {a.name!r} at {a.uri} and {b.run}: {b.name!r} at {b.uri} are both {at} of "
        f"branch {a.branch!r}, and their files {differ}; keep both with duplicates='both', or give "
        "one of the branches another name with rename="
    )


def _agreed(runs: Sequence[Run], key: str) -> Any:
    """What all runs that say anything say."""
    said = [(run, getattr(run, key)) for run in runs if getattr(run, key) is not None]
    for run, value in said[1:]:
        if value != said[0][1]:
            raise FormatError(
                f"{said[0][0].name} and {run.name} differ in {key}: {said[0][1]!r} and {value!r}"
            )
    return said[0][1] if said else None


def _adam(runs: Sequence[Run]) -> Adam | None:
    """Hyper-parameters of all, of which none may be said twice and differently."""
    found: dict[str, tuple[Run, Any]] = {}
    for run in runs:
        for key in Adam.__dataclass_fields__ if run.adam is not None else ():
            value = getattr(run.adam, key)
            if value is None:
                continue
            first, other = found.setdefault(key, (run, value))
            if other != value:
                raise FormatError(f"{first.name} and {run.name} differ in {key}: {other}, {value}")
    return Adam(**{key: value for key, (_, value) in found.items()}) if found else None


def _forks(runs: Sequence[Run]) -> tuple[Fork, ...]:
    found: dict[str, tuple[Run, Fork]] = {}
    for run in runs:
        for fork in run.forks:
            first, other = found.setdefault(fork.branch, (run, fork))
            if other != fork:
                raise FormatError(
                    f"{first.name} and {run.name} have different forks of one name: {other} and "
                    f"{fork}; tell the branches apart with rename={{{run.name!r}: "
                    f"{{{fork.branch!r}: …}}}}"
                )
    return tuple(fork for _, fork in found.values())


def _sources(runs: Sequence[Run]) -> dict[str, tuple[str, ...]]:
    """Paths of logs and results; they were relative to the home of each run."""
    found: dict[str, tuple[str, ...]] = {}
    for run in runs:
        for key, paths in run.sources.items():
            placed = tuple(
                f"{run.home}/{path}" if "://" in run.home else str(Path(run.home) / path)
                for path in paths
            )
            found[key] = tuple(dict.fromkeys((*found.get(key, ()), *placed)))
    return found


def same_files(what: Run | Iterable[Checkpoint], *, read: bool = False) -> pd.DataFrame:
    """Compare files of checkpoints by the hashes that a listing told, without reading them.

    Parameters
    ----------
    what : Run or iterable of Checkpoint
        Of a run, those checkpoints are compared that are at the same number (else step) in
        different branches or places; of checkpoints, all pairs.
    read : bool
        Read files whose hashes were not told, as those of a folder, and hash them.

    Returns
    -------
    DataFrame
        One row for each pair of checkpoints and file: ``run, branch, number, step, name`` of one,
        the same with ``other_`` before it of the other, ``file``, ``size``, ``other_size``, and
        ``same``, which is missing where no hashes tell, or only one of the two has that file. Ask
        for ``.all(skipna=False)``: pandas takes what is missing for true otherwise.

    Raises
    ------
    StorageError
        If files are to be read and can't be.
    TypeError
        If `what` is neither.

    Examples
    --------
    >>> from analysis360.core import Checkpoint
    >>> a, b = (
    ...     Checkpoint("k2", branch, 160, None, None, "hf://lab/m", branch, branch,
    ...                {"model.bin": 4}, {"model.bin": f"sha256:{branch}"})
    ...     for branch in ("spike", "normal")
    ... )
    >>> same_files([a, b])[["name", "other_name", "file", "same"]].values.tolist()
    [['spike', 'normal', 'model.bin', False]]
    """
    pairs = _pairs(what)
    if read:
        hashed = {id(c): _hashed(c) for pair in pairs for c in pair}
        pairs = [(hashed[id(a)], hashed[id(b)]) for a, b in pairs]
    rows = [_compared(a, b, f) for a, b in pairs for f in sorted({*a.files, *b.files})]
    whole = ("number", "other_number", "step", "other_step", "size", "other_size")
    columns = [*_PLACE, *(f"other_{key}" for key in _PLACE), "file", "size", "other_size", "same"]
    kinds = dict.fromkeys(whole, "Int64") | {"same": "boolean"}
    return pd.DataFrame(rows, columns=columns).astype(kinds)


_PLACE = ("run", "branch", "number", "step", "name")


def _pairs(what: Run | Iterable[Checkpoint]) -> list[tuple[Checkpoint, Checkpoint]]:
    entries = what.entries if isinstance(what, Run) else tuple(what)
    for c in entries:
        if not isinstance(c, Checkpoint):
            raise TypeError(
                f"same_files takes a run, as open_run gives it, or some of run.entries; got {c!r}"
            )
    if not isinstance(what, Run):
        return list(itertools.combinations(entries, 2))
    at: dict[tuple[str, int], list[Checkpoint]] = {}
    for c in entries:
        if c.number is not None:
            at.setdefault(("number", c.number), []).append(c)
        elif c.step is not None:
            at.setdefault(("step", c.step), []).append(c)
    return [pair for mine in at.values() for pair in itertools.combinations(mine, 2)]


def _compared(a: Checkpoint, b: Checkpoint, file: str) -> dict[str, object]:
    return {
        **{key: getattr(a, key) for key in _PLACE},
        **{f"other_{key}": getattr(b, key) for key in _PLACE},
        "file": file, "size": a.files.get(file), "other_size": b.files.get(file),
        "same": _equal(a, b, file),
    }  # fmt: skip


def _hashed(c: Checkpoint) -> Checkpoint:
    """With a hash of every file, read from where it is."""
    from analysis360.storage import open_store

    hashes = dict(c.hashes)
    with open_store(c.uri, c.revision, files=c.files) as store:
        for file, size in c.files.items():
            if hashes.get(file, "").startswith("sha256:"):
                continue
            content = hashlib.sha256()
            for start in range(0, size, _PIECE):
                content.update(store.read(file, start, min(_PIECE, size - start)))
            hashes[file] = f"sha256:{content.hexdigest()}"
    return replace(c, hashes=hashes)
