"""What formats of several files have in common: which files are theirs, and the index of shards."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from analysis360.errors import FormatError
from analysis360.formats.base import HeaderReader

__all__ = [
    "base_name",
    "check_shard",
    "is_inside",
    "is_optimizers",
    "is_trainers",
    "own_files",
    "parse_json",
    "shards_of",
]

HEADER_LIMIT = 100_000_000  # bytes of JSON; the limit of the reference implementation too
_FOLDERS = {"model", "weights", "optimizer", "optim", "optimizer_state", "model_state"}


_TRAINERS = re.compile(
    r"(.*/)?(mp_rank_\d+(_\d+)*/.*\.pt|(bf16_|fp16_)?zero_pp_rank_\d+_mp_rank_\d+_?optim_states\.pt"
    r"|(zero_pp_rank_\d+_|(layer_\d+_)?expert_\d+_)?mp_rank_\d+_model_states\.pt"
    r"|expp_rank_.*_optim_states\.pt|layer_\d+(-model_\d+)?-model_states\.pt"
    r"|zero/.*\.pt|__\d+_\d+\.distcp)"
)


def is_trainers(path: str) -> bool:
    """Whether a file is one rank's piece as Megatron or DeepSpeed write them, no file of its own.

    Examples
    --------
    >>> is_trainers("mp_rank_00_001/model_optim_rng.pt"), is_trainers("model.pt")
    (True, False)
    """
    return _TRAINERS.fullmatch(path) is not None


def is_optimizers(path: str) -> bool:
    """Whether a safetensors file holds states of an optimizer, by its name or folder.

    Examples
    --------
    >>> is_optimizers("optimizer/0.safetensors"), is_optimizers("model.safetensors")
    (True, False)
    """
    return any(step.startswith("optim") for step in path.split("/"))


def base_name(path: str) -> str:
    """Name of a file without its folder."""
    return path.rsplit("/", 1)[-1]


def own_files(files: Mapping[str, int], ends: tuple[str, ...]) -> list[str]:
    """Files with these endings that belong to the checkpoint itself, not to caches below it.

    These are the ones at the top and those in folders called model, weights, optimizer and so on.
    """
    return sorted(
        p for p in files
        if p.endswith(ends)
        and not base_name(p).startswith(".")
        and set(p.split("/")[:-1]) <= _FOLDERS
    )  # fmt: skip


def shards_of(reader: HeaderReader, indexes: Iterable[str]) -> dict[str, dict[str, set[str]]]:
    """Read index files: shard to index file to the keys that it says are in the shard.

    Raises
    ------
    FormatError
        If an index is not one, points outside its folder, or a shard is missing.
    """
    shards: dict[str, dict[str, set[str]]] = {}
    for path in indexes:
        for key, shard in _weight_map(reader, path).items():
            shards.setdefault(shard, {}).setdefault(path, set()).add(key)
    return shards


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key {twice!r} occurs twice")
    return found


def parse_json(where: str, raw: bytes) -> dict[str, Any]:
    """Parse a JSON object without repeated keys.

    Raises
    ------
    FormatError
        If it is anything else; the message begins with `where`.
    """
    try:
        found = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:  # bad UTF-8 is a ValueError too
        raise FormatError(f"{where}: not valid JSON: {error}") from None
    if not isinstance(found, dict):
        raise FormatError(f"{where}: expected a JSON object, found {type(found).__name__}")
    return found


def _weight_map(reader: HeaderReader, path: str) -> dict[str, str]:
    """Key to shard, with the shard's path in the store, of one index file."""
    where, size = f"{reader.store.uri}: {path}", reader.files[path]
    if size > HEADER_LIMIT:
        raise FormatError(f"{where}: {size} bytes; an index has {HEADER_LIMIT} at most")
    found = parse_json(where, reader.read(path, 0, size)).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise FormatError(f"{where}: no 'weight_map' object with at least one key")
    folder = path[: -len(base_name(path))]
    mapped: dict[str, str] = {}
    for key, shard in found.items():
        if not isinstance(shard, str) or not is_inside(shard):
            raise FormatError(f"{where}: {key!r} is said to be in {shard!r}, outside the folder")
        if folder + shard not in reader.files:
            raise FormatError(f"{where}: {key!r} is said to be in {shard!r}, which is missing")
        mapped[key] = folder + shard
    return mapped


def is_inside(shard: str) -> bool:
    """Whether a path that a file names stays in that file's folder."""
    steps = shard.split("/")
    return "\\" not in shard and ":" not in shard and not {"", ".", ".."} & set(steps)


def check_shard(uri: str, index: str, path: str, held: set[str], promised: set[str]) -> None:
    """Check that an index and its shard list the same keys.

    Raises
    ------
    FormatError
        With the first key that only one of them lists.
    """
    for key in sorted(promised - held)[:1]:
        raise FormatError(f"{uri}: {index} says that {key!r} is in {path}; it isn't")
    for key in sorted(held - promised)[:1]:
        raise FormatError(f"{uri}: {path} holds {key!r}, which {index} doesn't list")
