"""Keys of OLMo's safetensors files, ``model.safetensors`` and ``optim.safetensors``.

OLMo flattens nested state dicts into one file: a key is the base64 of a pickle of
``(path, value_is_pickled)``, with paths such as ``("state", "transformer.wte.weight", "exp_avg")``
and ``("param_groups",)``; what is not a tensor is pickled into a tensor of bytes.

Source: ``olmo/safetensors_util.py`` of https://github.com/allenai/OLMo.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from analysis360.core import Adam, TensorInfo
from analysis360.errors import FormatError
from analysis360.formats.inert import is_size
from analysis360.formats.unpickle import unpickle
from analysis360.storage.memory import adam_of

__all__ = ["OlmoFile", "Undecodable", "decode", "read_olmo"]

_STATES = ("exp_avg", "exp_avg_sq", "step")
_KEY = re.compile(r"gA[A-Za-z0-9_-]+={0,2}")  # base64 of a pickle's first bytes, \x80 and \x02…\x05
_KEY_BYTES = 10_000
_GROUPS_BYTES = 100_000_000
_WRAPPER = "_fsdp_wrapped_module."
Level = str | int


class Undecodable(FormatError):
    """A key looks like one of OLMo's, but says something else."""


@dataclass
class OlmoFile:
    """What one file of OLMo's says.

    Attributes
    ----------
    tensors : list of TensorInfo
        By parameter name and state, with readable keys.
    adam : Adam or None
    skipped : list of (key, reason)
    """

    tensors: list[TensorInfo] = field(default_factory=list)
    adam: Adam | None = None
    skipped: list[tuple[str, str]] = field(default_factory=list)


def decode(key: str) -> tuple[tuple[Level, ...], bool] | None:
    """Give the path that a key encodes and whether its value is pickled; None for a plain name.

    Raises
    ------
    Undecodable
        If it is the base64 of a pickle, but of none of OLMo's.

    Examples
    --------
    >>> import pickle
    >>> key = pickle.dumps((("state", "wte.weight", "exp_avg"), False))
    >>> decode(base64.urlsafe_b64encode(key).decode())
    (('state', 'wte.weight', 'exp_avg'), False)
    >>> decode("transformer.wte.weight") is None
    True
    """
    if not _KEY.fullmatch(key) or len(key) % 4 or len(key) > _KEY_BYTES:
        return None
    try:
        raw = base64.urlsafe_b64decode(key)
    except (binascii.Error, ValueError):
        return None
    if not 2 <= raw[1] <= 5 or raw[-1:] != b".":  # a protocol, and the opcode that ends a pickle
        return None
    try:
        said = unpickle(raw, "its base64")
    except FormatError as error:
        raise Undecodable(f"not one of OLMo's keys: {error}") from None
    if not isinstance(said, tuple) or len(said) != 2 or type(said[1]) is not bool:
        raise Undecodable("not one of OLMo's keys: a pickle of something else, which isn't run")
    path = said[0]
    if (
        not isinstance(path, tuple)
        or not path
        or not all(isinstance(p, str) or is_size(p) for p in path)
    ):
        raise Undecodable("not one of OLMo's keys: its path isn't made of names and numbers")
    return path, said[1]


def read_olmo(
    where: str, entries: Mapping[str, TensorInfo], read: Callable[[TensorInfo], bytes]
) -> OlmoFile | None:
    """Name the tensors of a file by its keys.

    Parameters
    ----------
    where : str
        Store and file, for error messages.
    entries : mapping of str to TensorInfo
        What the file's header lists.
    read : callable
        Gives the bytes of one of them; asked for the parameter groups only.

    Returns
    -------
    OlmoFile or None
        None if no key is encoded as OLMo does.

    Raises
    ------
    FormatError
        If the parameter groups are no pickle.
    """
    found, paths = OlmoFile(), {}  # type: OlmoFile, dict[str, tuple[tuple[Level, ...], bool]]
    for key in entries:
        try:
            said = decode(key)
        except Undecodable as error:
            found.skipped.append((key, str(error)))
            continue
        if said is not None:
            paths[key] = said
    if not paths and not found.skipped:
        return None
    groups = _groups(where, entries, paths, read)
    found.adam = adam_of((group, _elements(group, entries, paths)) for group in groups)
    names = _numbers(groups)
    for key, tensor in entries.items():
        if key in paths:
            _take(found, tensor, *paths[key], names)
        elif all(key != skipped for skipped, _ in found.skipped):
            found.tensors.append(tensor)  # a plain name in between
    return found


def _take(
    found: OlmoFile, tensor: TensorInfo, path: tuple[Level, ...], pickled: bool,
    names: Mapping[int, str],
) -> None:  # fmt: skip
    """Name one tensor, or say why it is left out."""
    key = ".".join(map(str, path))
    if pickled:
        if key != "param_groups":
            found.skipped.append((key, "an object, not a tensor"))
        return
    if len(path) == 1:
        found.tensors.append(replace(tensor, name=_clean(key), key=key))
        return
    if len(path) != 3 or path[0] != "state" or path[2] not in _STATES:
        found.skipped.append((key, f"neither a weight nor one of {', '.join(_STATES)}"))
        return
    name = names.get(path[1]) if isinstance(path[1], int) else _clean(path[1])
    if name is None:
        found.skipped.append((key, "the parameter groups don't name this parameter"))
        return
    found.tensors.append(replace(tensor, name=name, key=key, state=str(path[2])))


def _clean(name: str) -> str:
    return name.replace(_WRAPPER, "")


def _groups(
    where: str,
    entries: Mapping[str, TensorInfo],
    paths: Mapping[str, tuple[tuple[Level, ...], bool]],
    read: Callable[[TensorInfo], bytes],
) -> list[dict[Any, Any]]:
    """Parameter groups: plain dictionaries, from their pickle."""
    key = next((k for k, said in paths.items() if said == (("param_groups",), True)), None)
    if key is None or entries[key].dtype != "uint8":
        return []
    if entries[key].nbytes > _GROUPS_BYTES:
        raise FormatError(f"{where}: 'param_groups' has {entries[key].nbytes} bytes")
    said = unpickle(read(entries[key]), f"{where}: 'param_groups'")
    return [g for g in said if isinstance(g, dict)] if isinstance(said, list) else []


def _numbers(groups: Iterable[Mapping[Any, Any]]) -> dict[int, str]:
    """Names of parameters that have numbers, as optimizers without FSDP number them."""
    found: dict[int, str] = {}
    for group in groups:
        params, names = group.get("params"), group.get("param_names")
        if isinstance(params, list) and isinstance(names, list) and len(params) == len(names):
            pairs = zip(params, names, strict=True)
            found |= {p: _clean(n) for p, n in pairs if type(p) is int and isinstance(n, str)}
    return found


def _elements(
    group: Mapping[Any, Any],
    entries: Mapping[str, TensorInfo],
    paths: Mapping[str, tuple[tuple[Level, ...], bool]],
) -> float:
    """Elements of the matrices in a group, by their first moments."""
    params = group.get("params")
    listed = {p for p in params if type(p) in (str, int)} if isinstance(params, list) else set()
    return float(
        sum(
            entries[key].numel
            for key, (path, _) in paths.items()
            if path[0] == "state" and path[-1] == "exp_avg" and len(entries[key].shape) > 1
            and len(path) == 3 and path[1] in listed
        )
    )  # fmt: skip
