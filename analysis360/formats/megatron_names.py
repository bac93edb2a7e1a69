"""What a parameter of a Megatron GPT is: its Hugging Face name, and which of its rows a rank holds.

Both of Megatron's sets of names are known: those of its first models (``language_model.encoder…``)
and those of its core (``decoder.layers…``). The names given are those of Hugging Face's Llama, with
biases and learned positions beside them where a model has these.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from analysis360.errors import FormatError
from analysis360.formats.inert import Record, short
from analysis360.formats.layout import Strip

__all__ = ["Local", "Model", "Settings", "layer_of", "locate", "read_model"]

Rows = tuple[str, int, int, int]
"""Name of a tensor, its first row that is stored here, the one after the last, and all its rows."""

_MOST = 10_000  # ranks, stages and heads, which are gone through one by one
_LAYER = re.compile(r"layers\.(\d{1,6})\.(.+)")
_PARAM = re.compile(r"(?P<module>.+)\.(?P<norm>layer_norm_)?(?P<param>weight|bias)")
_WRAPPERS = re.compile(
    r"(?:module\.)*(?:language_model\.)?(?:(?:encoder|transformer|decoder)\.(?!word|position))?"
)
_NORMS = {
    "input_layernorm": "input_layernorm", "input_norm": "input_layernorm",
    "post_attention_layernorm": "post_attention_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "pre_mlp_layernorm": "post_attention_layernorm",
}  # fmt: skip
_HEAD_NORMS = {
    "self_attention.q_layernorm": "self_attn.q_norm",
    "self_attention.k_layernorm": "self_attn.k_norm",
}
_FUSED_NORMS = {  # Transformer Engine puts a norm into the layer that follows it
    "self_attention.linear_qkv": "input_layernorm",
    "mlp.linear_fc1": "post_attention_layernorm",
}
_QKV = {"self_attention.query_key_value", "attention.query_key_value", "self_attention.linear_qkv"}
_ATTENTION_OUT = {"self_attention.dense", "attention.dense", "self_attention.linear_proj"}
_MLP_IN = {"mlp.dense_h_to_4h", "mlp.linear_fc1"}
_MLP_OUT = {"mlp.dense_4h_to_h", "mlp.linear_fc2"}


class Settings:
    """Arguments of training as the checkpoint holds them, read with a check of their types."""

    def __init__(self, where: str, found: Any) -> None:
        self.where = where
        held = found.state if isinstance(found, Record) else found
        if not isinstance(held, dict):
            raise FormatError(
                f"{where}: 'args' is {_kind(found)}; expected the arguments of training, which "
                "say how the model is divided"
            )
        self._held = held

    def count(self, name: str, default: int | None = None, most: int = 2**40) -> int:
        """Read a positive whole number, up to `most`.

        Raises
        ------
        FormatError
            If it is none, or is missing and there is no `default`.
        """
        value = self._held.get(name)
        if value is None:
            if default is None:
                raise FormatError(f"{self.where}: args: {name!r} is missing")
            return default
        if type(value) is not int or not 0 < value <= most:
            raise FormatError(f"{self.where}: args: {name!r} is {short(value)}, not a count")
        return value

    def number(self, name: str) -> float | None:
        """Read a finite number; None for anything else."""
        value = self._held.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return None
        return float(value) if math.isfinite(value) else None

    def flag(self, name: str) -> bool:
        """Whether it is set; False if it is missing, as for every option newer than the file."""
        return self._held.get(name) is True

    def text(self, name: str) -> str:
        """Read a text; empty for anything else."""
        value = self._held.get(name)
        return value if isinstance(value, str) else ""


def _kind(value: Any) -> str:
    return "missing" if value is None else f"a {type(value).__name__}"


@dataclass(frozen=True)
class Model:
    """Numbers of the model, and over how many ranks its tensors are divided.

    Attributes
    ----------
    layers, hidden, heads, groups, head, ffn : int
        `groups` of query heads share a key and a value head; `head` is the size of one.
    gated : bool
        Whether the MLP has a gate.
    tied : bool
        Whether embedding and head are one tensor.
    positions : int
        Learned positions, where there are any.
    padded, vocab : int
        Rows of the embedding, with and without the padding at its end.
    vocab_told : bool
        Whether the arguments say how many rows are no padding.
    ranks, stages : int
        Of tensor and of pipeline parallelism.
    """

    layers: int
    hidden: int
    heads: int
    groups: int
    head: int
    ffn: int
    gated: bool
    tied: bool
    positions: int
    padded: int
    vocab: int
    vocab_told: bool
    ranks: int
    stages: int


def read_model(args: Settings) -> Model:
    """Read what `Model` holds.

    Raises
    ------
    FormatError
        If a number is missing, or the ranks don't divide what is divided over them.
    """
    hidden, heads = args.count("hidden_size"), args.count("num_attention_heads", most=_MOST)
    groups = args.count("num_query_groups", heads) if args.flag("group_query_attention") else heads
    padded, ranks = (
        args.count("padded_vocab_size"),
        args.count("tensor_model_parallel_size", 1, _MOST),
    )
    vocab = _vocabulary(args, padded, ranks)
    model = Model(
        layers=args.count("num_layers"), hidden=hidden, heads=heads, groups=groups,
        head=args.count("kv_channels", max(1, hidden // heads)),
        ffn=args.count("ffn_hidden_size", 4 * hidden), gated=args.flag("swiglu"),
        tied=not args.flag("untie_embeddings_and_output_weights"),
        positions=args.count("max_position_embeddings", 1),
        padded=padded, vocab=padded if vocab is None else vocab, vocab_told=vocab is not None,
        ranks=ranks, stages=args.count("pipeline_model_parallel_size", 1, _MOST),
    )  # fmt: skip
    for what, count, by in (
        ("attention heads", heads, groups), ("query groups", groups, ranks),
        ("rows of the MLP", model.ffn, ranks), ("rows of the vocabulary", padded, ranks),
    ):  # fmt: skip
        if count % by:
            raise FormatError(f"{args.where}: args: {count} {what} are not divisible by {by}")
    return model


def _vocabulary(args: Settings, padded: int, ranks: int) -> int | None:
    """Rows of the embedding that stand for a token; None if that is not told.

    ``vocab_size`` is what was asked for, which a tokenizer's own size may have replaced: it is
    believed where padding it gives the size that is there.
    """
    size = args.count("vocab_size", padded + 1)
    if args.text("tokenizer_type") == "NullTokenizer" and size < padded:
        size += 1  # its end-of-document token comes on top
    multiple = args.count("make_vocab_size_divisible_by", 128) * ranks
    return size if 0 <= padded - size < multiple else None


@dataclass(frozen=True)
class Local:
    """What one rank stores of a parameter: the shape there, and what its rows are.

    Without strips it is a replica of what another rank stores.
    """

    shape: tuple[int, ...]
    strips: tuple[Strip, ...]


def plain(key: str) -> str:
    """Drop what wrappers and containers put before a name."""
    return _WRAPPERS.sub("", key, count=1)


def layer_of(key: str) -> int | None:
    """Give the number of the block within its pipeline stage."""
    match = _LAYER.match(plain(key))
    return int(match[1]) if match else None


def locate(model: Model, key: str, rank: int, first: int) -> Local | None:
    """Say what a stored parameter is.

    Parameters
    ----------
    model : Model
    key : str
        As in the state dict of the model, with dots.
    rank : int
        Of tensor parallelism.
    first : int
        Number of the stage's first block in the whole model.

    Returns
    -------
    Local or None
        None for a parameter that no GPT model of Megatron's is known to have.

    Examples
    --------
    >>> model = Model(2, 8, 4, 2, 2, 12, True, False, 1, 32, 30, True, 2, 1)
    >>> found = locate(model, "decoder.layers.1.self_attention.linear_qkv.weight", 1, 0)
    >>> found.shape, [(s.name[15:], s.box[0]) for s in found.strips]
    ((8, 8), [('self_attn.q_proj.weight', (4, 8)), ('self_attn.k_proj.weight', (2, 4)), \
('self_attn.v_proj.weight', (2, 4))])
    """
    name = plain(key)
    match = _LAYER.fullmatch(name)
    if match is None:
        return _outside(model, name, rank)
    said = _PARAM.fullmatch(match[2])
    if said is None:
        return None
    at = f"model.layers.{first + int(match[1])}."
    module, param = said["module"], said["param"]
    if said["norm"] or module in _NORMS:
        norm = (_FUSED_NORMS if said["norm"] else _NORMS).get(module)
        return None if norm is None else _copied(f"{at}{norm}.{param}", (model.hidden,), rank)
    if module in _HEAD_NORMS:
        return _copied(f"{at}{_HEAD_NORMS[module]}.{param}", (model.head,), rank)
    if module in _QKV:
        return _stacked(_attention_in(model, at, param, rank), *_columns(model, param))
    if module in _MLP_IN:
        return _stacked(_mlp_in(model, at, param, rank), *_columns(model, param))
    if module in _ATTENTION_OUT:
        return _row_parallel(model, f"{at}self_attn.o_proj.{param}", model.heads * model.head, rank)
    if module in _MLP_OUT:
        return _row_parallel(model, f"{at}mlp.down_proj.{param}", model.ffn, rank)
    return None


def _outside(model: Model, name: str, rank: int) -> Local | None:
    """Parameters outside of the blocks."""
    if name in ("final_layernorm.weight", "final_norm.weight"):
        return _copied("model.norm.weight", (model.hidden,), rank)
    if name in ("final_layernorm.bias", "final_norm.bias"):
        return _copied("model.norm.bias", (model.hidden,), rank)
    if name == "embedding.position_embeddings.weight":
        return _copied("model.embed_positions.weight", (model.positions, model.hidden), rank)
    if name == "embedding.word_embeddings.weight":
        return _vocabulary_rows(model, "model.embed_tokens.weight", rank)
    if name in ("output_layer.weight", "word_embeddings_for_head.weight"):
        found = _vocabulary_rows(model, "lm_head.weight", rank)
        # The last stage has a copy of a tied embedding, which is read where the first one has it
        return Local(found.shape, ()) if model.tied else found
    return None


def _columns(model: Model, param: str) -> tuple[tuple[int, int, int], ...]:
    """First and last column and their number, of what is divided by rows; a bias has none."""
    return () if param == "bias" else ((0, model.hidden, model.hidden),)


def _stacked(rows: list[Rows], *columns: tuple[int, int, int]) -> Local:
    """Rows of several tensors on top of each other, with the same columns of each."""
    strips, at = [], 0
    for name, low, high, total in rows:
        shape = (total, *(n for _, _, n in columns))
        box = ((low, high), *((a, b) for a, b, _ in columns))
        strips.append(Strip(at, at + high - low, name, shape, box))
        at += high - low
    return Local((at, *(b - a for a, b, _ in columns)), tuple(strips))


def _copied(name: str, shape: tuple[int, ...], rank: int) -> Local:
    """Every rank has all of it; the first one's is read."""
    rows, *others = shape
    found = _stacked([(name, 0, rows, rows)], *((0, n, n) for n in others))
    return found if rank == 0 else Local(found.shape, ())


def _attention_in(model: Model, at: str, param: str, rank: int) -> list[Rows]:
    """Queries of a group, its key, its value; then those of the next group of this rank."""
    head, held = model.head, model.groups // model.ranks
    wide = model.heads // model.groups * head
    rows: list[Rows] = []
    for group in range(rank * held, (rank + 1) * held):
        for part, size in (("q", wide), ("k", head), ("v", head)):
            name = f"{at}self_attn.{part}_proj.{param}"
            rows.append((name, group * size, (group + 1) * size, model.groups * size))
    return rows


def _mlp_in(model: Model, at: str, param: str, rank: int) -> list[Rows]:
    """Rows of the gate that this rank has, then those of the other one."""
    held = model.ffn // model.ranks
    names = ("gate_proj", "up_proj") if model.gated else ("up_proj",)
    low, high = rank * held, (rank + 1) * held
    return [(f"{at}mlp.{name}.{param}", low, high, model.ffn) for name in names]


def _row_parallel(model: Model, name: str, inputs: int, rank: int) -> Local:
    """Some columns of a matrix; its bias is added once, so every rank has all of it."""
    if name.endswith(".bias"):
        return _copied(name, (model.hidden,), rank)
    held = inputs // model.ranks
    columns = (rank * held, (rank + 1) * held, inputs)
    return _stacked([(name, 0, model.hidden, model.hidden)], columns)


def _vocabulary_rows(model: Model, name: str, rank: int) -> Local:
    """Rows of an embedding without the padding, which only the last ranks have."""
    held = model.padded // model.ranks
    low, high = (min(r * held, model.vocab) for r in (rank, rank + 1))
    columns = (0, model.hidden, model.hidden)
    strips = _stacked([(name, low, high, model.vocab)], columns).strips if low < high else ()
    return Local((held, model.hidden), strips)
