"""Open a run: a catalogue name, a Hub repository, a folder, or a model in memory."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pandas as pd

from analysis360 import catalog
from analysis360.core import Checkpoint, Run
from analysis360.description import check_description, compile_pattern, read_description
from analysis360.errors import FormatError, RunNotFound
from analysis360.merge import merge_runs
from analysis360.published import open_hub, open_web
from analysis360.registry import Registry
from analysis360.series import Layout, are_tensors, described, layout_of, not_found, whole_model

if TYPE_CHECKING:
    import torch

__all__ = ["list_runs", "open_memory", "open_run"]

DESCRIPTION = "analysis360.toml"
"""File in a run's folder that says how it was trained, with the keys of the packaged catalogue."""

_PAGE = re.compile(r"https://(?:huggingface\.co|hf\.co)/")
"""How the address of a repository's page begins, which people copy."""


def open_run(
    source: str | os.PathLike[str] | Mapping[str, torch.Tensor],
    *,
    pattern: str | None = None,
    tokens_per_step: int | None = None,
    steps_per_number: int | None = None,
    organization: str | None = None,
    steps: Iterable[int] | None = None,
    files: Iterable[str] | None = None,
) -> Run:
    """Open a series of checkpoints; only names and sizes of files are read.

    Parameters
    ----------
    source : str, path or mapping
        A folder; a catalogue name such as ``"k2-spike-1"`` (see `list_runs`); a Hub repository,
        ``"owner/name"``, ``"hf://owner/name"`` or the address of its page, whose branches and tags
        are the checkpoints, or else folders of its main branch; a folder of an object store, such
        as ``"s3://bucket/run"`` (with the extra ``remote``); a web server, ``"https://host/run"``,
        with `steps` and `files`; or a state dict in memory, as a run of one checkpoint.
    pattern : str, optional
        How checkpoints are named: ``"step_{step}.pt"`` with ``{step}``, ``{number}`` or
        ``{branch}``, or a regular expression with groups of these names. Without it, the folder's
        ``analysis360.toml`` and then the names in common use are tried.
    tokens_per_step, steps_per_number : int, optional
        To fill in tokens and steps where the names do not tell.
    organization : str, optional
        Owner of a catalogue run's repositories on the Hub, where they were moved: LLM360's models
        were renamed ``"IFM"``.
    steps, files : iterable, optional
        Of a web server, which has no listing: the steps there are, and the names of the files in
        each checkpoint. Sizes are asked for when they are needed.

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
        If ``analysis360.toml`` or an argument says something that cannot be true, or two
        checkpoints of a branch have the same number and step.
    StorageError
        If the Hub can't be reached.

    Notes
    -----
    Gated and private repositories are read with the token of ``hf auth login`` or ``HF_TOKEN``;
    ``HF_ENDPOINT`` names another Hub. With ``HF_HUB_OFFLINE`` set, what ``hf download --revision``
    put into the cache is opened, and nobody is asked.

    Examples
    --------
    >>> import torch
    >>> open_run({"w": torch.ones(2, 2)}).checkpoints[["name", "bytes"]].values.tolist()
    [['memory', 16]]
    >>> run = open_run("https://host/run", pattern="step{step}", steps=[0, 1000],
    ...                files=["model.safetensors"])
    >>> [c.uri for c in run.entries]
    ['https://host/run/step0', 'https://host/run/step1000']
    """
    if isinstance(source, Mapping):
        return open_memory(source)
    text = os.fspath(source)
    if _PAGE.match(text) and steps is None and files is None:
        text = _PAGE.sub("hf://", text).rstrip("/")
    if not text:
        raise RunNotFound("no source was given; a run of the catalogue, see list_runs(), or a path")
    for name, given in (
        ("tokens_per_step", tokens_per_step),
        ("steps_per_number", steps_per_number),
    ):
        if given is not None and given < 1:
            raise FormatError(f"{name}={given}: expected a whole number from 1 on")
    try:
        patterns = () if pattern is None else (compile_pattern(pattern),)
    except ValueError as error:
        raise RunNotFound(str(error)) from error
    asked = Layout(patterns, steps_per_number, tokens_per_step, said=bool(patterns))
    if organization is not None and text not in catalog.names():
        raise RunNotFound(
            f"organization={organization!r} is for runs of the catalogue, and {text!r} is none"
        )
    if text.startswith(("http://", "https://")):
        return open_web(text, {}, asked, pattern, steps, files)
    if steps is not None or files is not None:
        raise RunNotFound(f"steps= and files= are for web servers; {text} has a list of its files")
    path = Path(url2pathname(urlsplit(text).path) if text.startswith("file://") else text)
    if path.exists():
        return _open_folder(path, asked)
    if text in catalog.names():
        return _open_named(text, asked, organization)
    if "://" in text and not text.startswith("hf://"):
        return _open_remote(text, asked)
    repository = text.removeprefix("hf://")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", repository) and not text.startswith((".", "/")):
        return open_hub(repository, {}, asked)
    if "://" in text:
        raise RunNotFound(
            f"{text} is no hf://owner/name; open a whole repository by owner/name (its branches "
            "and tags are the checkpoints) and keep some with select(), or say which with pattern="
        )
    if _is_path(text):
        raise RunNotFound(f"{path.absolute()}: no such folder or file")
    near = Registry[str]("run", RunNotFound)
    for name in catalog.names():
        near.add(name, name)
    near[text]
    raise AssertionError  # the line above raises


def _is_path(text: str) -> bool:
    """Whether someone meant a file or folder, and no run of the catalogue."""
    return text[0] in ".~" or "/" in text or os.sep in text or are_tensors([text])


def _open_named(name: str, asked: Layout, organization: str | None) -> Run:
    """A run of the catalogue; one that is made of others is merged."""
    said = check_description(catalog.runs()[name], f"catalogue run {name}")
    if "runs" in said:
        parts = [_open_named(part, asked, organization) for part in said["runs"]]
        made = merge_runs(parts, name, rename=said.get("rename"), duplicates="both")
        return replace(made, title=said["title"], published=said.get("published", {}))
    source = said["source"]
    if source.startswith("hf://"):
        owner, _, short = source.removeprefix("hf://").partition("/")
        return open_hub(f"{organization or owner}/{short}", said, asked)
    if organization is not None:
        raise RunNotFound(f"organization={organization!r}: {name} is at {source}, not on the Hub")
    return open_web(source, said, asked, said["checkpoints"]["template"], None, None)


def list_runs() -> pd.DataFrame:
    """Runs that can be opened by name.

    Returns
    -------
    DataFrame
        Columns ``name``, ``states`` (what is published of each checkpoint, missing where that is
        not known), ``source``, ``title``, and where curves and a paper were published: ``loss``,
        ``benchmarks``, ``paper``.

    Examples
    --------
    >>> "k2-spike-1" in set(list_runs()["name"])
    True
    """
    rows = []
    for name, said in catalog.runs().items():
        curves = {k: said.get("published", {}).get(k) for k in ("loss", "benchmarks", "paper")}
        source = said.get("source") or ", ".join(said.get("runs", ()))
        states = said.get("states")
        rows.append({"name": name, "states": states, "source": source, "title": said["title"]})
        rows[-1] |= curves
    return pd.DataFrame(rows).astype("string")


def _read_description(text: bytes, where: str) -> Mapping[str, Any]:
    """What the file beside a run's checkpoints says; keys of the catalogue alone are refused."""
    try:
        said = read_description(text.decode(), where)
    except UnicodeDecodeError as error:
        raise FormatError(f"{where}: {error}") from error
    for key in ("runs", "rename"):
        if key in said:
            raise FormatError(f"{where}: {key}: only for the catalogue; merge runs by merge_runs")
    if "source" in said:
        raise FormatError(f"{where}: source: only for the catalogue; the run is where this file is")
    return said


def _open_folder(path: Path, asked: Layout) -> Run:
    from analysis360.storage.local import LocalStore, fingerprint

    path = path.resolve()
    file = path / DESCRIPTION
    said: Mapping[str, Any] = {}
    if path.is_dir() and file.exists():
        said = _read_description(file.read_bytes(), str(file))
    layout = layout_of(said, asked)
    root = path / layout.folder if path.is_dir() else path
    candidates = [path] if path.is_file() else sorted(root.iterdir()) if root.is_dir() else []
    found = [(p, place) for p in candidates if (place := layout.place(p.name)) is not None]
    if not found and not layout.said and _holds_tensors(path):
        found = [(path, whole_model(layout, path.name))]
    if not found:
        raise not_found(str(root), layout, (p.name for p in candidates))
    entries = []
    for where, place in found:
        sizes = dict(LocalStore(str(where)).files())
        mark = fingerprint(str(where))
        entries.append(Checkpoint("", *place, str(where), mark, where.name, sizes))
    return described(said, path.name, str(path), entries)


def _open_remote(uri: str, asked: Layout) -> Run:
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
    layout = layout_of(said, asked)
    folder = PurePosixPath(layout.folder.strip("/")).as_posix()
    below = "" if folder == "." else f"{folder}/"
    names = {path.removeprefix(below).split("/")[0] for path in listed if path.startswith(below)}
    found = [(name, place) for name in sorted(names) if (place := layout.place(name)) is not None]
    uris = {name: uri if alone else f"{uri}/{below}{name}" for name, _ in found}
    name = uri.rpartition("/")[2]
    if not found and not layout.said and are_tensors(names):
        found, uris = [(name, whole_model(layout, name))], {name: uri}
    if not found:
        raise not_found(f"{uri}/{below}", layout, sorted(names))
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
    return described(said, name, uri, entries)


def _holds_tensors(path: Path) -> bool:
    return are_tensors([path.name] if path.is_file() else [p.name for p in path.iterdir()])


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
