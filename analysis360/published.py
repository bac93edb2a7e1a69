"""Runs that others published: repositories on the Hub, and plain web servers without a listing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from analysis360.core import Checkpoint, Run, Sizes
from analysis360.errors import RunNotFound
from analysis360.series import (
    Layout,
    Place,
    are_tensors,
    described,
    is_usual,
    layout_of,
    not_found,
)

__all__ = ["open_hub", "open_web"]

T = TypeVar("T")

Found = tuple[str, str, Place]
"""Name and commit of a ref, and its place in training."""


def open_hub(repository: str, said: Mapping[str, Any], asked: Layout) -> Run:
    """Refs that are named like checkpoints, or folders of the main branch, pinned to commits."""
    from analysis360.storage.hub import list_content, list_refs

    layout = layout_of(said, asked)
    home = f"hf://{repository}"
    refs = list_refs(repository)
    found: list[Found] = []
    if not layout.folders:
        found = [(n, sha, place) for n, sha in refs if (place := layout.place(n)) is not None]
    if not found:
        return described(said, repository, home, _in_folders(repository, refs, layout))
    with ThreadPoolExecutor(8) as pool:
        listed = list(pool.map(lambda f: list_content(repository, f[1]), found))
    entries = [
        _checkpoint(home, _inner(sizes), sha, name, place, sizes, hashes)
        for (name, sha, place), (sizes, hashes) in zip(found, listed)
    ]
    return described(said, repository, home, entries)


def _in_folders(
    repository: str, refs: Sequence[tuple[str, str]], layout: Layout
) -> list[Checkpoint]:
    """Checkpoints in folders of the main branch; else that branch, if no names were asked for.

    The branch is listed once, however many folders it has.
    """
    from analysis360.storage.hub import list_content

    home = f"hf://{repository}"
    missing = "no branch or tag is"
    main = next((sha for name, sha in refs if name == "main"), None)
    if main is None:
        raise not_found(home, layout, (name for name, _ in refs), missing)
    sizes, hashes = list_content(repository, main)
    below = "" if layout.folder.strip("/") in ("", ".") else layout.folder.strip("/") + "/"
    names = {p.removeprefix(below).partition("/")[0] for p in sizes if p.startswith(below)}
    folders = [n for n in sorted(names) if f"{below}{n}" not in sizes]  # the others are files
    found = [(n, place) for n in folders if (place := layout.place(n)) is not None]
    if found:
        return [
            _checkpoint(home, f"{below}{name}", main, name, place, sizes, hashes)
            for name, place in found
        ]
    if layout.said or layout.folders:
        held = f"no branch, tag or folder of main (it holds {', '.join(folders[:5]) or 'none'}) is"
        raise not_found(home, layout, (name for name, _ in refs), held if folders else missing)
    return [_checkpoint(home, "", main, "main", Place("main"), sizes, hashes)]


def _inner(sizes: Mapping[str, int]) -> str:
    """Folder that holds every tensor of a ref and is itself named like a checkpoint, else none.

    DeepSpeed saves into ``global_stepN``, and that is how some refs were uploaded.
    """
    tops = {path.partition("/")[0] for path in sizes if are_tensors([path])}
    top = tops.pop() if len(tops) == 1 else ""
    return "" if top in sizes or not is_usual(top) else top


def _checkpoint(
    home: str,
    folder: str,
    commit: str,
    name: str,
    place: Place,
    sizes: Mapping[str, int],
    hashes: Mapping[str, str],
) -> Checkpoint:
    """A checkpoint of the files below a folder of a commit."""
    uri = f"{home}/{folder}" if folder else home
    return Checkpoint("", *place, uri, commit, name, _below(sizes, folder), _below(hashes, folder))


def _below(files: Mapping[str, T], folder: str) -> dict[str, T]:
    prefix = f"{folder}/" if folder else ""
    return {p.removeprefix(prefix): value for p, value in files.items() if p.startswith(prefix)}


def open_web(
    root: str,
    said: Mapping[str, Any],
    asked: Layout,
    template: str | None,
    steps: Iterable[int] | None,
    names: Iterable[str] | None,
) -> Run:
    """A series below an address; nothing is asked of the server until a size is needed."""
    root = root.rstrip("/")
    named = said.get("checkpoints", {})
    steps = named.get("steps") if steps is None else sorted(set(steps))
    files = tuple(names or named.get("files", ()))
    if not template or "{step}" not in template or not steps or not files:
        raise RunNotFound(
            f"{root} has no list of its files; give pattern= with {{step}}, steps= and files=, for "
            'example pattern="step{step}", steps=range(0, 9001, 1000), files=["model.safetensors"]'
        )
    layout = layout_of(said, asked)
    entries = []
    for step in steps:
        name = template.replace("{step}", str(step))
        place = layout.place(name)
        assert place is not None  # the pattern was made of the same template
        uri = f"{root}/{name}"
        entries.append(Checkpoint("", *place, uri, _address(uri, files), name, _sizes(uri, files)))
    return described(said, root.rpartition("/")[2], root, entries)


def _sizes(uri: str, files: Iterable[str]) -> Sizes:
    def ask(path: str) -> int:
        from analysis360.storage.http import HttpStore

        with HttpStore(uri, files={}) as store:
            return store.ask_size(path)

    return Sizes(files, ask)


def _address(uri: str, files: tuple[str, ...]) -> str:
    """Revision of what has no versions: a later run finds its results by the address."""
    return f"web:{hashlib.sha256(repr((uri, files)).encode()).hexdigest()[:16]}"
