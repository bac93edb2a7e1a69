"""Open a run: a catalogue name, a Hub repository, a folder, or a model in memory."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pandas as pd

from analysis360.core import Checkpoint, Fork, Run
from analysis360.description import compile_pattern, read_description
from analysis360.errors import CheckpointNotFound, FormatError, RunNotFound
from analysis360.registry import Registry

if TYPE_CHECKING:
    import torch

__all__ = ["list_runs", "open_memory", "open_run"]

DESCRIPTION = "analysis360.toml"
"""File in a run's folder that says how it was trained, with the keys of the packaged catalogue."""

PATTERNS = (
    r"(?:(?P<branch>[A-Za-z0-9]+?)[_-])?ckpt[_-](?P<number>\d+)",
    r"checkpoint-(?P<step>\d+)",
    r"(?:(?P<branch>[A-Za-z0-9]+?)[_-])?(?:global_?)?step[_-]?(?P<step>\d+)(?:-[\w-]+)?",
    r"iter[_-](?P<step>\d+)",
)
"""Names that checkpoints are known to have, tried in this order: LLM360, Hugging Face Trainer, OLMo
and Pythia, Megatron."""


@dataclass(frozen=True)
class _Layout:
    """How names of folders, files or refs say branch, number, step and tokens."""

    patterns: tuple[re.Pattern[str], ...] = ()
    steps_per_number: int | None = None
    tokens_per_step: int | None = None
    unnamed_branch: str = "main"
    unstepped: tuple[str, ...] = ()
    folder: str = "."
    said: bool = False
    """Whether the patterns were given, so that what they don't match is no checkpoint."""

    def place(self, name: str) -> tuple[str, int | None, int | None, int | None] | None:
        """Branch, number, step and tokens of a name; None if it is no checkpoint's."""
        for pattern in self.patterns:
            match = pattern.fullmatch(name)
            if match is None:
                continue
            said = match.groupdict()
            branch = said.get("branch") or self.unnamed_branch
            number, step = (_digits(said.get(k), k, name, pattern) for k in ("number", "step"))
            if branch not in self.unstepped:
                step = step if step is not None else _times(number, self.steps_per_number)
                return branch, number, step, _times(step, self.tokens_per_step)
            return branch, number, step, None
        return None


def _digits(text: str | None, kind: str, name: str, pattern: re.Pattern[str]) -> int | None:
    if not text:
        return None
    if not text.isdecimal():
        raise FormatError(f"pattern {pattern.pattern!r} takes {text!r} of {name!r} for a {kind}")
    return int(text)


def _times(a: int | None, b: int | None) -> int | None:
    return None if a is None or b is None else a * b


def open_run(
    source: str | os.PathLike[str] | Mapping[str, torch.Tensor],
    *,
    pattern: str | None = None,
    tokens_per_step: int | None = None,
    steps_per_number: int | None = None,
) -> Run:
    """Open a series of checkpoints; only names and sizes of files are read.

    Parameters
    ----------
    source : str, path or mapping
        A folder; a catalogue name such as ``"k2-spike-1"`` (see `list_runs`); a Hub repository,
        ``"owner/name"`` or ``"hf://owner/name"``, whose branches and tags are the checkpoints; a
        folder of an object store, such as ``"s3://bucket/run"`` (with the extra ``remote``); or a
        state dict in memory, as a run of one checkpoint.
    pattern : str, optional
        How checkpoints are named: ``"step_{step}.pt"`` with ``{step}``, ``{number}`` or
        ``{branch}``, or a regular expression with groups of these names. Without it, the folder's
        ``analysis360.toml`` and then the names in common use are tried.
    tokens_per_step, steps_per_number : int, optional
        To fill in tokens and steps where the names do not tell.

    Returns
    -------
    Run

    Raises
    ------
    RunNotFound
        If there is no such folder, name or repository, or no access to it.
    CheckpointNotFound
        If nothing in it is named like a checkpoint, or nothing matches the pattern that was given.
    FormatError
        If ``analysis360.toml`` says something that cannot be true, or two checkpoints of a branch
        have the same number and step.
    StorageError
        If the Hub can't be reached.

    Notes
    -----
    Gated and private repositories are read with the token of ``hf auth login`` or ``HF_TOKEN``;
    ``HF_ENDPOINT`` names another Hub.

    Examples
    --------
    >>> import torch
    >>> open_run({"w": torch.ones(2, 2)}).checkpoints[["name", "bytes"]].values.tolist()
    [['memory', 16]]
    """
    if isinstance(source, Mapping):
        return open_memory(source)
    text = os.fspath(source)
    try:
        patterns = () if pattern is None else (compile_pattern(pattern),)
    except ValueError as error:
        raise RunNotFound(str(error)) from error
    asked = _Layout(patterns, steps_per_number, tokens_per_step, said=bool(patterns))
    path = Path(url2pathname(urlsplit(text).path) if text.startswith("file://") else text)
    if path.exists():
        return _open_folder(path, asked)
    if text in _catalogue():
        file = files("analysis360.catalog") / "runs" / f"{text}.toml"
        said = read_description(file.read_text("utf-8"), f"catalogue run {text}")
        return _open_hub(said["source"].removeprefix("hf://"), said, asked)
    if "://" in text and not text.startswith(("hf://", "http://", "https://")):
        return _open_remote(text, asked)
    repository = text.removeprefix("hf://")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", repository) and not text.startswith((".", "/")):
        return _open_hub(repository, {}, asked)
    if "://" in text:
        kind = "has no list of its files" if text.startswith("http") else "is no hf://owner/name"
        raise RunNotFound(
            f"{text} {kind}; open a folder, a Hub repository by owner/name (its branches and tags "
            "are the checkpoints), or a folder of an object store such as s3://bucket/run"
        )
    near = Registry[str]("run", RunNotFound)
    for name in _catalogue():
        near.add(name, name)
    near[text]
    raise AssertionError  # the line above raises


def _catalogue() -> tuple[str, ...]:
    folder = files("analysis360.catalog") / "runs"
    return tuple(sorted(p.name[:-5] for p in folder.iterdir() if p.name.endswith(".toml")))


def list_runs() -> pd.DataFrame:
    """Runs that can be opened by name.

    Returns
    -------
    DataFrame
        Columns ``name``, ``title``, ``source``.

    Examples
    --------
    >>> "k2-spike-1" in set(list_runs()["name"])
    True
    """
    folder = files("analysis360.catalog") / "runs"
    rows = [tomllib.loads((folder / f"{name}.toml").read_text("utf-8")) for name in _catalogue()]
    return pd.DataFrame([{k: r[k] for k in ("name", "title", "source")} for r in rows])


def _layout(said: Mapping[str, Any], asked: _Layout) -> _Layout:
    """What was asked for, else what a description says, else the names in common use."""
    named = said.get("checkpoints", {})
    given = asked.patterns or ((named["pattern"],) if "pattern" in named else ())
    return _Layout(
        given or tuple(re.compile(p) for p in PATTERNS),
        asked.steps_per_number or named.get("steps_per_number"),
        asked.tokens_per_step or named.get("tokens_per_step"),
        named.get("unnamed_branch", "main"),
        named.get("unstepped_branches", ()),
        named.get("folder", "."),
        said=bool(given),
    )


def _described(said: Mapping[str, Any], name: str, home: str, entries: Sequence[Checkpoint]) -> Run:
    """A run from its description, which may be empty, and its checkpoints."""
    run, forks = said.get("name", name), said.get("forks", ())
    entries = _once(_parented(entries, forks), home)
    ordered = sorted(entries, key=lambda c: (c.branch, c.order, c.name))
    return Run(
        name=run, title=said.get("title", run), home=home,
        entries=tuple(replace(c, run=run) for c in ordered), family=said.get("family"),
        adam=said.get("adam"), learning_rate=said.get("learning_rate"), forks=forks,
        events=said.get("events", ()), sources=said.get("sources", {}),
    )  # fmt: skip


def _once(entries: Sequence[Checkpoint], home: str) -> Sequence[Checkpoint]:
    """Each checkpoint once: rows of a table are told apart by branch, number and step."""
    found: dict[tuple[object, ...], Checkpoint] = {}
    for mine in entries:
        place = mine.branch, mine.number, mine.step
        if mine.number is None and mine.step is None:
            place = (mine.branch, None, mine.name)  # type: ignore[assignment]
        other = found.setdefault(place, mine)
        # A commit is one content; fingerprints of two folders may agree by chance.
        if (other.uri, other.revision) != (mine.uri, mine.revision):
            at = f"step {mine.step}" if mine.number is None else f"number {mine.number}"
            names = " and ".join(f"{c.name!r} ({c.revision[:14]})" for c in (other, mine))
            raise FormatError(
                f"{home}: {names} are both {at} of branch {mine.branch!r}; "
                "say with pattern= which names are checkpoints, or remove one of them"
            )
    return tuple(found.values())


def _parented(entries: Sequence[Checkpoint], forks: Sequence[Fork]) -> Sequence[Checkpoint]:
    """Where a fork's parent goes by an unknown name, the only other branch is that parent."""
    there = {c.branch for c in entries}
    left = there - {f.branch for f in forks}
    for fork in forks:
        if fork.parent not in there and fork.branch in there and len(left) == 1:
            entries = [replace(c, branch=fork.parent) if c.branch in left else c for c in entries]
    return entries


def _read_description(text: bytes, where: str) -> Mapping[str, Any]:
    try:
        return read_description(text.decode(), where)
    except UnicodeDecodeError as error:
        raise FormatError(f"{where}: {error}") from error


def _open_folder(path: Path, asked: _Layout) -> Run:
    from analysis360.storage.local import LocalStore, fingerprint

    path = path.resolve()
    described = path / DESCRIPTION
    said: Mapping[str, Any] = {}
    if path.is_dir() and described.exists():
        said = _read_description(described.read_bytes(), str(described))
    layout = _layout(said, asked)
    root = path / layout.folder if path.is_dir() else path
    candidates = [path] if path.is_file() else sorted(root.iterdir()) if root.is_dir() else []
    found = [(p, place) for p in candidates if (place := layout.place(p.name)) is not None]
    if not found and not layout.said and _holds_tensors(path):
        found = [(path, layout.place(path.name) or ("main", None, None, None))]
    if not found:
        seen = ", ".join(p.name for p in candidates[:5]) or "nothing"
        tried = ", ".join(p.pattern for p in layout.patterns)
        raise CheckpointNotFound(
            f"{root}: nothing is named like a checkpoint; it holds {seen}; "
            f"{'asked for' if layout.said else 'tried'} {tried}"
        )
    entries = []
    for place_path, (branch, number, step, tokens) in found:
        sizes = dict(LocalStore(str(place_path)).files())
        entries.append(
            Checkpoint("", branch, number, step, tokens, str(place_path),
                       fingerprint(str(place_path)), place_path.name, sizes)
        )  # fmt: skip
    return _described(said, path.name, str(path), entries)


def _open_remote(uri: str, asked: _Layout) -> Run:
    """Folders of an object store that are named like checkpoints."""
    from analysis360.storage.fsspec_store import FsspecStore

    uri = uri.rstrip("/")
    with FsspecStore(uri) as store:
        listed, alone = store.files(), store.is_file
        said: Mapping[str, Any] = {}
        if DESCRIPTION in listed:
            said = _read_description(
                store.read(DESCRIPTION, 0, listed[DESCRIPTION]), f"{uri}/{DESCRIPTION}"
            )
    layout = _layout(said, asked)
    folder = PurePosixPath(layout.folder.strip("/")).as_posix()
    below = "" if folder == "." else f"{folder}/"
    names = {path.removeprefix(below).split("/")[0] for path in listed if path.startswith(below)}
    found = [(name, place) for name in sorted(names) if (place := layout.place(name)) is not None]
    uris = {name: uri if alone else f"{uri}/{below}{name}" for name, _ in found}
    name = uri.rpartition("/")[2]
    if not found and not layout.said and _are_tensors(names):
        found, uris = [(name, layout.place(name) or ("main", None, None, None))], {name: uri}
    if not found:
        raise CheckpointNotFound(
            f"{uri}/{below}: nothing is named like a checkpoint; it holds "
            f"{', '.join(sorted(names)[:5]) or 'nothing'}; "
            f"{'asked for' if layout.said else 'tried'} "
            f"{', '.join(p.pattern for p in layout.patterns)}"
        )
    stores = [FsspecStore(uris[name]) for name, _ in found]
    with ThreadPoolExecutor(8) as pool:
        try:
            marks = list(pool.map(FsspecStore.fingerprint, stores))
        except BaseException:  # Ctrl-C need not wait for listings that stall
            for store in stores:
                store.interrupt()
            raise
    entries = [
        Checkpoint("", *place, store.uri, mark, name, dict(store.files()))
        for (name, place), store, mark in zip(found, stores, marks)
    ]
    return _described(said, name, uri, entries)


def _holds_tensors(path: Path) -> bool:
    return _are_tensors([path.name] if path.is_file() else [p.name for p in path.iterdir()])


def _are_tensors(names: Iterable[str]) -> bool:
    ends = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar", ".distcp")
    return any(name.endswith(ends) for name in names)


def _open_hub(repository: str, said: Mapping[str, Any], asked: _Layout) -> Run:
    """Branches and tags that are named like checkpoints, pinned to their commits."""
    from analysis360.storage.hub import list_files, list_refs

    layout = _layout(said, asked)
    refs = list_refs(repository)
    found = [(name, sha, place) for name, sha in refs if (place := layout.place(name)) is not None]
    if not found and not layout.said:
        found = [(name, sha, ("main", None, None, None)) for name, sha in refs if name == "main"]
    if not found:
        raise CheckpointNotFound(
            f"hf://{repository}: no branch or tag is named like a checkpoint; it has "
            f"{', '.join(name for name, _ in refs[:5])}; "
            f"{'asked for' if layout.said else 'tried'} "
            f"{', '.join(p.pattern for p in layout.patterns)}"
        )
    with ThreadPoolExecutor(8) as pool:
        sizes = list(pool.map(lambda f: list_files(repository, f[1]), found))
    entries = [
        Checkpoint("", branch, number, step, tokens, f"hf://{repository}", sha, name, listed)
        for (name, sha, (branch, number, step, tokens)), listed in zip(found, sizes)
    ]
    return _described(said, repository, f"hf://{repository}", entries)


def open_memory(
    state_dict: Mapping[str, torch.Tensor],
    optimizer: torch.optim.Optimizer | None = None,
    *,
    step: int | None = None,
    tokens: int | None = None,
) -> Run:
    """A model in memory as a run of one checkpoint; nothing is copied until it is measured.

    Parameters
    ----------
    state_dict : mapping of str to torch.Tensor
    optimizer : torch.optim.Optimizer, optional
        Gives the moments and the hyper-parameters.
    step, tokens : int, optional
        Where training is; by default the optimizer's step.

    Raises
    ------
    FormatError
        If there is no tensor in it.
    """
    from analysis360.storage.memory import MemoryStore

    store = MemoryStore.from_state_dict(state_dict, optimizer)
    step = step if step is not None else store.step
    entry = Checkpoint(
        "memory", "main", None, step, tokens, store.uri, store.uri, "memory", dict(store.files())
    )
    return _Live("memory", "model in memory", store.uri, (entry,), adam=store.adam, store=store)


@dataclass(frozen=True)
class _Live(Run):
    """A run of one model in memory; it keeps its store alive."""

    store: Any = field(default=None, repr=False, compare=False)
