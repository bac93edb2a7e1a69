"""Parameter names → labels: which layer and module a tensor belongs to, by family tables.

A family is a TOML file in ``catalog/families``: an ordered list of name templates, each with the
module that it means, and of fused matrices with what they hold. A name that no table knows still
gets its layer number.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files

from analysis360.core import Label
from analysis360.errors import FormatError

__all__ = [
    "Fused",
    "families",
    "find_family",
    "fused",
    "is_transposed",
    "label",
    "model_order",
    "of_head",
]

_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(?P<layer>\d+)(?:\.|$)")
_HEAD = re.compile(r"(?P<name>.*)\[(?P<head>\d+)\]")
_FIELDS = {
    "layer": r"(?P<layer>\d+)",
    "expert": r"(?P<expert>\d+)",
    "param": r"(?P<param>weight|bias)",
    "stack": r"(?:decoder|encoder|transformer)",
}


@dataclass(frozen=True, slots=True)
class Fused:
    """A matrix that holds several, and the names that these get.

    Attributes
    ----------
    into : tuple of str
        Names of the parts, in the order in which they are stored.
    modules : tuple of str
        What they are, as `Label.module`.
    by : str
        ``"chunks"``: one after the other, all of one size. ``"heads"``: queries, keys and values
        one after the other, as many rows of each as there are heads of it. ``"each head"``: a
        query, a key and a value for each head in turn.
    columns : bool
        Whether the matrix is stored as inputs × outputs, so that its columns are divided.
    """

    into: tuple[str, ...]
    modules: tuple[str, ...]
    by: str
    columns: bool = False


@dataclass(frozen=True)
class _Family:
    """One table, compiled."""

    patterns: tuple[tuple[re.Pattern[str], str], ...]
    fused: tuple[tuple[re.Pattern[str], str, Fused], ...]
    columns: bool


Found = tuple[int, re.Match[str], str]
"""Place in the table, match and module of a name."""


@lru_cache(maxsize=1 << 16)  # every checkpoint of a run has the same names
def _find(family: str, name: str) -> Found | None:
    for place, (pattern, module) in enumerate(_family(family).patterns):
        match = pattern.fullmatch(name)
        if match:
            return place, match, module
    return None


@cache
def families() -> tuple[str, ...]:
    """Names of the packaged family tables."""
    folder = files("analysis360.catalog") / "families"
    return tuple(sorted(p.name[:-5] for p in folder.iterdir() if p.name.endswith(".toml")))


@cache
def _family(name: str) -> _Family:
    if name not in families():
        raise FormatError(f"unknown model family {name!r}; known: {', '.join(families())}")
    text = (files("analysis360.catalog") / "families" / f"{name}.toml").read_text("utf-8")
    said = tomllib.loads(text)
    patterns = [(_compile(said["prefix"], n), module) for n, module in said["tensors"]]
    held = []
    for entry in said.get("fused", ()):
        last = entry["name"].removesuffix(".{param}").rpartition(".")[2]
        made = Fused(
            tuple(entry["into"]), tuple(entry["modules"]), entry["by"], said.get("columns", False)
        )
        held.append((_compile(said["prefix"], entry["name"]), last, made))
        for part, module in zip(made.into, made.modules, strict=True):
            template = entry["name"].replace(f".{last}.", f".{part}.")
            if all(template != n for n, _ in said["tensors"]):
                patterns.append((_compile(said["prefix"], template), module))
    return _Family(tuple(patterns), tuple(held), said.get("columns", False))


def _compile(prefix: str, template: str) -> re.Pattern[str]:
    text = re.escape(template)
    for name, pattern in _FIELDS.items():
        text = text.replace(re.escape(f"{{{name}}}"), pattern)
    return re.compile(prefix + text)


def label(name: str, family: str | None = None) -> Label:
    """What a parameter is in the model.

    Parameters
    ----------
    name : str
        Parameter name, for example ``"model.layers.3.self_attn.q_proj.weight"``; with ``[5]`` at
        its end, the rows of head 5.
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
    >>> label("model.layers.3.self_attn.k_proj.weight[5]").head
    5
    """
    head = _HEAD.fullmatch(name)
    if head is not None:
        found = label(head["name"], family)
        return Label(found.layer, found.module, found.param, found.expert, int(head["head"]))
    for table in [family] if family else families():
        known = _find(table, name)
        if known is not None:
            _, match, module = known
            said = match.groupdict()
            layer, expert = (
                int(said[key]) if said.get(key) else None for key in ("layer", "expert")
            )
            return Label(layer, module, said.get("param") or "weight", expert)
    return _fallback(name)


def of_head(name: str, head: int) -> str:
    """Name of the rows of one attention head.

    Examples
    --------
    >>> of_head("layers.0.attention.wq.weight", 5)
    'layers.0.attention.wq.weight[5]'
    """
    return f"{name}[{head}]"


def find_family(names: Iterable[str]) -> str | None:
    """Give the family that knows most of these names; None if none knows any.

    Of several that know as many the first in alphabetical order is taken, Llama before all.

    Examples
    --------
    >>> find_family(["gpt_neox.layers.0.attention.dense.weight", "embed_out.weight"])
    'gpt-neox'
    """
    names = list(names)
    known = {f: sum(_find(f, n) is not None for n in names) for f in families()}
    best = max(known, key=lambda f: (known[f], f == "llama"))
    return best if known[best] else None


def fused(name: str, family: str | None) -> tuple[Fused, tuple[str, ...]] | None:
    """What a fused matrix holds, with the full names of its parts; None if it is not one.

    Examples
    --------
    >>> held, parts = fused("h.0.self_attention.query_key_value.bias", "bloom")
    >>> held.by, parts[1]
    ('each head', 'h.0.self_attention.key.bias')
    """
    for pattern, last, held in _family(family).fused if family else ():
        if pattern.fullmatch(name):
            before, _, after = name.rpartition(f".{last}.")
            return held, tuple(f"{before}.{part}.{after}" for part in held.into)
    return None


def is_transposed(family: str) -> bool:
    """Whether matrices are stored as inputs × outputs, against the custom of torch."""
    return _family(family).columns


def model_order(names: Iterable[str], family: str) -> list[str] | None:
    """Put names in the order of the model's ``named_parameters()``.

    None if a name is unknown, or one of an expert: models differ in where those stand.

    Examples
    --------
    >>> model_order(["lm_head.weight", "model.norm.weight", "model.embed_tokens.weight"], "llama")
    ['model.embed_tokens.weight', 'model.norm.weight', 'lm_head.weight']
    """
    table = _family(family)
    layered = [i for i, (p, _) in enumerate(table.patterns) if "layer" in p.groupindex]
    first = min(layered, default=0)
    placed = []
    for name in names:
        found = _find(family, name)
        if found is None:
            return None
        place, match, _ = found
        said = match.groupdict()
        if said.get("expert") is not None:
            return None
        layer = said.get("layer")
        outside = 0 if place < first else 2
        key = (outside, 0, place) if layer is None else (1, int(layer), place)
        placed.append((key, said.get("param") != "weight", name))
    return [name for *_, name in sorted(placed)]


def _fallback(name: str) -> Label:
    stem, _, param = name.rpartition(".")
    match = _LAYER.search(stem)
    if match is None:
        return Label(None, stem or param, param)
    module = ".".join(p for p in (stem[: match.start()], stem[match.end() :]) if p)
    return Label(int(match["layer"]), module or "block", param)
