"""Parameter names → labels: which layer and module a tensor belongs to, by family tables.

A family is a TOML file in ``catalog/families``: an ordered list of patterns, each with the module
it means. A name that no table knows still gets its layer number.
"""

from __future__ import annotations

import re
import tomllib
from functools import cache
from importlib.resources import files

from analysis360.core import Label
from analysis360.errors import FormatError

__all__ = ["families", "label"]

_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(?P<layer>\d+)(?:\.|$)")

Table = tuple[tuple[re.Pattern[str], str], ...]


@cache
def families() -> tuple[str, ...]:
    """Names of the packaged family tables."""
    folder = files("analysis360.catalog") / "families"
    return tuple(sorted(p.name[:-5] for p in folder.iterdir() if p.name.endswith(".toml")))


@cache
def _table(family: str) -> Table:
    if family not in families():
        raise FormatError(f"unknown model family {family!r}; known: {', '.join(families())}")
    text = (files("analysis360.catalog") / "families" / f"{family}.toml").read_text("utf-8")
    return tuple((re.compile(e["pattern"]), e["module"]) for e in tomllib.loads(text)["tensors"])


def label(name: str, family: str | None = None) -> Label:
    """What a parameter is in the model.

    Parameters
    ----------
    name : str
        Parameter name, for example ``"model.layers.3.self_attn.q_proj.weight"``.
    family : str, optional
        Table to use; without it every table is tried, in alphabetical order.

    Returns
    -------
    Label
        For an unknown name the layer is what follows ``layers.``, ``h.`` or ``blocks.``, and the
        module is the rest of the name.

    Raises
    ------
    FormatError
        If there is no such family.

    Examples
    --------
    >>> label("model.layers.3.self_attn.q_proj.weight")
    Label(layer=3, module='attn.q', param='weight', expert=None, head=None)
    >>> label("encoder.blocks.7.conv.bias")
    Label(layer=7, module='encoder.conv', param='bias', expert=None, head=None)
    """
    for table in [_table(family)] if family else [_table(f) for f in families()]:
        for pattern, module in table:
            match = pattern.fullmatch(name)
            if match:
                said = match.groupdict()
                layer = int(said["layer"]) if said.get("layer") else None
                return Label(layer, module, said.get("param") or "weight")
    return _fallback(name)


def _fallback(name: str) -> Label:
    stem, _, param = name.rpartition(".")
    match = _LAYER.search(stem)
    if match is None:
        return Label(None, stem or param, param)
    module = ".".join(p for p in (stem[: match.start()], stem[match.end() :]) if p)
    return Label(int(match["layer"]), module or "block", param)
