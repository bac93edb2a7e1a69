"""How the slices of tensor-parallel ranks make up a parameter, by rules for names.

The rules are those of DeepSpeed's converter (``deepspeed/checkpoint/ds_to_universal.py``,
``merge_tp_slices``). A checkpoint may state its own (``universal_checkpoint_info``); for others
the ones hold that Megatron-DeepSpeed's converter for BLOOM has, with the names of GPT-NeoX.
A parameter of which every rank keeps a copy, which converters average or add up, is not read: no
rank's bytes are its values.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from analysis360.formats.fields import Fields
from analysis360.formats.inert import short
from analysis360.formats.layout import Strip, whole

__all__ = ["Slices", "degree", "is_whole", "rules_of"]

_COPIES = re.compile(
    r"(.*\.)?(\w*norm\w*|ln_\w+|position_embeddings)\.(weight|bias|scale)|(.*\.)?\d+\.(weight|bias)"
    r"|(.*\.)?(attention\.dense|dense_4h_to_h|o_proj|down_proj)\.bias|.*_attention\.dense\.bias"
)
_ROWS = re.compile(r"(.*\.)?(\w*attention\.dense|dense_4h_to_h|o_proj|down_proj)\.weight")
_COLUMNS = re.compile(
    r"(.*\.)?(query_key_value|dense_h_to_4h|word_embeddings|final_linear|lm_head|embed_tokens"
    r"|embed_out|[qkv]_proj|gate_proj|up_proj)\.(weight|bias)"
)
_PLAIN = re.compile(r"[\w.\\+*$^-]{1,200}")  # what a stored pattern may consist of
_LONGEST = 300  # characters of a name that patterns are tried on
_REPEATS = 3  # quantifiers in it: more of them could take for ever

Shape = tuple[int, ...]
Rule = Callable[[str], str]
"""Name to ``"columns"``, ``"rows"``, ``"halves"`` or ``"first"``, else why it isn't read."""

_WAYS = ("columns", "rows", "halves", "first")


def rules_of(root: Fields) -> Rule:
    """Take the rules that a model file states, else those for Megatron's names.

    Raises
    ------
    FormatError
        If its patterns are not a list of plain regular expressions.
    """
    if root.get("universal_checkpoint_info") is None:
        return _known
    info = root.fields("universal_checkpoint_info")
    fused: list[re.Pattern[str]] = []
    for entry in info.each(_SUB) if info.get(_SUB) is not None else ():
        fused += _patterns(entry, "patterns")
    told = {
        "first": _patterns(info, "tp_replicated_parameter_patterns"),
        _AVERAGED: _patterns(info, "parameter_to_average_patterns"),
        "halves": _patterns(info, "parameter_with_2_sub_params_cat_dim_0"),
        "its sub-parameters are sliced one by one, which isn't read": fused,
        "rows": _patterns(info, "parameter_with_row_parallelism_patterns"),
    }

    def rule(name: str) -> str:
        if len(name) > _LONGEST:
            return "no rule for so long a name"
        found = [way for way, known in told.items() if any(p.match(name) for p in known)]
        return found[0] if found else "columns"

    return rule


_SUB = "parameter_with_sub_params"
_AVERAGED = "tensor-parallel ranks hold copies of it, to be averaged"


def _patterns(info: Fields, key: str) -> list[re.Pattern[str]]:
    if info.get(key) is None:
        return []
    found: list[re.Pattern[str]] = []
    for text in info.sequence(key):
        plain = isinstance(text, str) and _PLAIN.fullmatch(text) is not None
        if not plain or len(re.findall(r"[+*]", text)) > _REPEATS:
            raise info.bad(key, f"has a pattern that isn't a plain one: {short(text)}")
        try:
            found.append(re.compile(text))
        except re.error as error:
            raise info.bad(key, f"has a pattern that isn't one: {text!r}: {error}") from None
    return found


def _known(name: str) -> str:
    if len(name) > _LONGEST:
        return "no rule for so long a name"
    if _COPIES.fullmatch(name):
        return _AVERAGED
    if _ROWS.fullmatch(name):
        return "rows"
    if _COLUMNS.fullmatch(name):
        return "columns"
    return "no rule says how its tensor-parallel slices make it up"


def degree(names: list[Iterable[str]]) -> int:
    """Number of tensor-parallel ranks: neighbours that hold the same parameters.

    Model-parallel ranks are counted through the tensor-parallel ones of a pipeline stage first.

    Examples
    --------
    >>> degree([["0.w"], ["0.w"], ["1.w"], ["1.w"]]), degree([["a"], ["b"]])
    (2, 1)
    """
    sets = [frozenset(n) for n in names]
    count = next((i for i, held in enumerate(sets) if held != sets[0]), len(sets))
    return max(count, 1)


@dataclass(frozen=True)
class Slices:
    """How the slices of each parameter make it up.

    Attributes
    ----------
    rule : callable
    degree : int
        Number of tensor-parallel ranks.
    """

    rule: Rule
    degree: int

    def strips(self, name: str, shapes: list[Shape]) -> list[list[Strip]] | str:
        """Give the strips of each rank's slice, or why they aren't known.

        Parameters
        ----------
        name : str
        shapes : list of tuple
            Of the slices of all ranks, in order.
        """
        if self.degree == 1:
            return [[whole(name, shapes[0])]]
        way = self.rule(name)
        if way not in _WAYS:
            return way
        if way == "first":
            same = all(shape == shapes[0] for shape in shapes)
            empty: list[list[Strip]] = [[] for _ in shapes[1:]]
            return [[whole(name, shapes[0])], *empty] if same else "its copies have other shapes"
        axis = 1 if way == "rows" else 0
        rest = [shape[:axis] + shape[axis + 1 :] for shape in shapes]
        if any(len(shape) <= axis for shape in shapes) or any(r != rest[0] for r in rest):
            return f"its slices, {', '.join(map(str, shapes))}, don't fit together"
        if way == "halves":
            return _halves(name, shapes)
        return _joined(name, shapes, axis)


def _joined(name: str, shapes: list[Shape], axis: int) -> list[list[Strip]]:
    """Slices laid side by side."""
    total = list(shapes[0])
    total[axis] = sum(shape[axis] for shape in shapes)
    found: list[list[Strip]] = []
    at = 0
    for shape in shapes:
        box = [(0, n) for n in shape]
        box[axis] = (at, at + shape[axis])
        at += shape[axis]
        found.append([Strip(0, shape[0], name, tuple(total), tuple(box))])
    return found


def _halves(name: str, shapes: list[Shape]) -> list[list[Strip]] | str:
    """Slices of two fused matrices: each rank has half of its rows from either."""
    if any(shape[0] % 2 or shape != shapes[0] for shape in shapes):
        return "its slices are not equal halves"
    half, total = shapes[0][0] // 2, (shapes[0][0] * len(shapes), *shapes[0][1:])
    rest = tuple((0, n) for n in total[1:])
    found: list[list[Strip]] = []
    for rank in range(len(shapes)):
        low, high = rank * half, (len(shapes) + rank) * half
        found.append([
            Strip(0, half, name, total, ((low, low + half), *rest)),
            Strip(half, 2 * half, name, total, ((high, high + half), *rest)),
        ])  # fmt: skip
    return found


def is_whole(strips: list[Strip], shape: Shape) -> bool:
    """Whether a slice is the parameter itself."""
    return len(strips) == 1 and strips[0].shape == shape and _full(strips[0])


def _full(strip: Strip) -> bool:
    return all(span == (0, n) for span, n in zip(strip.box, strip.shape, strict=True))
