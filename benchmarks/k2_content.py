"""Checkpoints of K2's shape whose content is a rule, and whose statistics have closed forms.

A tensor is a sequence of chunks; each chunk is the beginning of one of a few template chunks. The
templates come in families: a base and small perturbations of it. A chunk has the same family in
every checkpoint and, by a hash, one of its variants: so neighbouring checkpoints differ by a
little, and in some chunks not at all. All sums over a tensor follow from sums over the templates,
taken once in float64, and from how often each template occurs.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

FAMILIES = 16
GAINS = 4  # of the families, the last ones: values near 1, for tensors of one dimension
VARIANTS = 4
ALONE = ("count", "sum", "sum_sq", "mean", "m2", "m3", "m4", "zeros", "max_abs")
PAIR = ("diff_sq", "cross", "unchanged", "max_diff")

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama model, by default K2's: 723 tensors, 27 shards, 65,286,184,960 numbers."""

    layers: int = 80
    hidden: int = 8192
    ffn: int = 22016
    vocab: int = 32032
    shard: int = 5_000_000_000

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes in the order of the model, as Hugging Face writes them."""
        h, f = self.hidden, self.ffn
        found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab, h)}
        for i in range(self.layers):
            at = f"model.layers.{i}"
            found |= {f"{at}.self_attn.{x}_proj.weight": (h, h) for x in "qkvo"}
            found |= {f"{at}.mlp.{x}_proj.weight": (f, h) for x in ("gate", "up")}
            found[f"{at}.mlp.down_proj.weight"] = (h, f)
            found |= {f"{at}.{x}_layernorm.weight": (h,) for x in ("input", "post_attention")}
        return found | {"model.norm.weight": (h,), "lm_head.weight": (self.vocab, h)}

    @property
    def numel(self) -> int:
        return sum(math.prod(shape) for shape in self.tensors().values())

    @cached_property
    def files(self) -> dict[str, File]:
        """Shards by name: filled in order up to `shard` bytes, sorted by name within."""
        cut: list[dict[str, tuple[int, ...]]] = [{}]
        filled = 0
        for name, shape in self.tensors().items():
            size = 2 * math.prod(shape)
            if filled and filled + size > self.shard:
                cut.append({})
                filled = 0
            cut[-1][name] = shape
            filled += size
        return {
            f"model-{i:05d}-of-{len(cut):05d}.safetensors": File(dict(sorted(tensors.items())))
            for i, tensors in enumerate(cut, 1)
        }

    def index(self) -> str:
        """Text of ``model.safetensors.index.json``."""
        where = {name: file for file, held in self.files.items() for name in held.tensors}
        total = {"total_size": 2 * self.numel}
        return json.dumps({"metadata": total, "weight_map": where}, indent=1)

    @property
    def stored(self) -> int:
        """Bytes of all shards, headers included."""
        return sum(file.size for file in self.files.values())


@dataclass(frozen=True)
class File:
    """One safetensors file: its header, and where its tensors begin."""

    tensors: dict[str, tuple[int, ...]]
    header: bytes = field(init=False)
    starts: dict[str, int] = field(init=False)
    size: int = field(init=False)

    def __post_init__(self) -> None:
        said: dict[str, object] = {"__metadata__": {"format": "pt"}}
        at, starts = 0, {}
        for name, shape in self.tensors.items():
            starts[name], stop = at, at + 2 * math.prod(shape)
            said[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, stop]}
            at = stop
        text = json.dumps(said, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        header = struct.pack("<Q", len(text)) + text
        object.__setattr__(self, "header", header)
        object.__setattr__(self, "starts", {k: v + len(header) for k, v in starts.items()})
        object.__setattr__(self, "size", at + len(header))


HEAD = 128
"""Rows of an attention head."""


def write_sparse(folder: Path, shape: Shape) -> None:
    """Files of the right sizes with real headers and index; their data are holes."""
    folder.mkdir(parents=True)
    config = {"architectures": ["LlamaForCausalLM"], "hidden_size": shape.hidden}
    config["num_attention_heads"] = max(1, shape.hidden // HEAD)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors.index.json").write_text(shape.index())
    for name, held in shape.files.items():
        with (folder / name).open("wb") as file:
            file.write(held.header)
            file.truncate(held.size)


class Content:
    """What the tensors hold, by rule.

    Parameters
    ----------
    chunk : int
        Bytes of a chunk, an even number.
    seed : int
        Another seed gives other templates and another order of them.
    """

    def __init__(self, chunk: int = 1 << 20, seed: int = 0) -> None:
        self.chunk, self.seed = chunk, seed
        self._picks: dict[tuple[str, str, int], npt.NDArray[np.uint8]] = {}

    @cached_property
    def templates(self) -> npt.NDArray[np.uint16]:
        """Bit patterns of bfloat16, shape (families * variants, elements of a chunk)."""
        made = [_variants(self.seed, family, self.chunk // 2) for family in range(FAMILIES)]
        return np.concatenate(made)

    def picks(self, checkpoint: str, name: str, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
        """Template of each chunk of a tensor."""
        count = -(-2 * math.prod(shape) // self.chunk)
        key = (checkpoint, name, count)
        if key not in self._picks:
            at = np.arange(count, dtype=np.uint64)
            tensor, when = zlib.crc32(name.encode()), zlib.crc32(checkpoint.encode())
            family = _hash(at, self.seed, tensor)
            first, many = (FAMILIES - GAINS, GAINS) if len(shape) == 1 else (0, FAMILIES - GAINS)
            family = first + family % np.uint64(many)
            variant = _hash(at, self.seed, tensor, when) % np.uint64(VARIANTS)
            self._picks[key] = (family * VARIANTS + variant).astype(np.uint8)
        return self._picks[key]

    def pieces(
        self, shape: Shape, checkpoint: str, file: str, start: int, stop: int
    ) -> Iterator[tuple[int, int, int]]:
        """What bytes ``start:stop`` of a file are made of: template (-1: header), offset, bytes."""
        held = shape.files[file]
        if start < len(held.header):
            end = min(stop, len(held.header))
            yield -1, start, end - start
            start = end
        for name, begin in held.starts.items():
            sizes = held.tensors[name]
            finish = min(begin + 2 * math.prod(sizes), stop)
            if finish <= start:
                continue
            picks = self.picks(checkpoint, name, sizes)
            while start < finish:
                number, inside = divmod(start - begin, self.chunk)
                count = min(self.chunk - inside, finish - start)
                yield int(picks[number]), inside, count
                start += count

    def write(self, folder: Path, shape: Shape, checkpoint: str) -> None:
        """Write a checkpoint as real files."""
        write_sparse(folder, shape)
        raw = self.templates.view(np.uint8)
        for name, held in shape.files.items():
            with (folder / name).open("r+b") as file:
                file.seek(len(held.header))
                where = (shape, checkpoint, name, len(held.header), held.size)
                for template, inside, count in self.pieces(*where):
                    file.write(raw[template, inside : inside + count].data)

    def values(self, checkpoint: str, name: str, shape: tuple[int, ...]) -> Floats:
        """A whole tensor in float64, flat: for small ones."""
        raw = self.templates[self.picks(checkpoint, name, shape)].reshape(-1)
        return _float64(raw[: math.prod(shape)])

    def expected(self, shape: Shape, checkpoint: str, reference: str | None = None) -> pd.DataFrame:
        """Sums of every tensor, in float64, from those of the templates.

        Returns
        -------
        DataFrame
            Indexed by name. Columns ``count, sum, sum_sq, mean, m2, m3, m4`` (sums of powers of the
            deviation from the mean), ``zeros, max_abs``; with `reference`, of the tensor a and its
            reference b, also ``diff_sq`` = Σ(a−b)², ``cross`` = Σab, ``reference_sq`` = Σb²,
            ``unchanged``, ``max_diff``.
        """
        rows = {}
        for name, sizes in shape.tensors().items():
            picks = self.picks(checkpoint, name, sizes)
            row = self._alone(picks, math.prod(sizes))
            if reference is not None:
                others = self.picks(reference, name, sizes)
                row |= self._pair(picks, others, math.prod(sizes))
                row["reference_sq"] = self._alone(others, math.prod(sizes))["sum_sq"]
            rows[name] = row
        return pd.DataFrame.from_dict(rows, orient="index")

    def _groups(self, numel: int) -> list[tuple[int, slice]]:
        """Elements used of each chunk, and the chunks of which that many are."""
        whole, rest = divmod(numel, self.chunk // 2)
        groups = [(self.chunk // 2, slice(0, whole))] if whole else []
        return groups + ([(rest, slice(whole, whole + 1))] if rest else [])

    def _alone(self, picks: npt.NDArray[np.uint8], numel: int) -> dict[str, float]:
        tables, counts = [], []
        for length, part in self._groups(numel):
            tables.append(_alone_table(self, length))
            counts.append(np.bincount(picks[part], minlength=FAMILIES * VARIANTS))
        times = np.concatenate(counts).astype(np.float64)
        table = np.concatenate(tables)[times > 0]
        times = times[times > 0]
        n, total, square, mean, m2, m3, m4, zeros, largest = table.T
        d = mean - (middle := math.fsum(times * total) / numel)
        sums = {
            "count": n, "sum": total, "sum_sq": square,
            "m2": m2 + n * d**2,
            "m3": m3 + 3 * d * m2 + n * d**3,
            "m4": m4 + 4 * d * m3 + 6 * d**2 * m2 + n * d**4,
            "zeros": zeros,
        }  # fmt: skip
        found = {name: math.fsum(times * values) for name, values in sums.items()}
        return found | {"mean": middle, "max_abs": float(largest.max())}

    def _pair(
        self, picks: npt.NDArray[np.uint8], others: npt.NDArray[np.uint8], numel: int
    ) -> dict[str, float]:
        found = []
        for length, part in self._groups(numel):
            code = picks[part].astype(np.intp) * VARIANTS + others[part] % VARIANTS
            times = np.bincount(code, minlength=FAMILIES * VARIANTS**2).astype(np.float64)
            table = _pair_table(self, length)[times > 0]
            times = times[times > 0, None]
            found.append(np.append((times * table[:, :3]).sum(axis=0), table[:, 3].max()))
        sums = np.stack(found)
        return dict(zip(PAIR, [*sums[:, :3].sum(axis=0), sums[:, 3].max()]))


@cache
def _alone_table(content: Content, length: int) -> Floats:
    """Row per template, of its first `length` elements: the columns `ALONE`."""
    rows = []
    for template in content.templates:
        x = _float64(template[:length])
        d = x - x.mean()
        sq = d * d
        powers = (sq.sum(), (sq * d).sum(), (sq * sq).sum())
        extremes = (float((x == 0).sum()), np.abs(x).max())
        rows.append((length, x.sum(), (x * x).sum(), x.mean(), *powers, *extremes))
    return np.array(rows)


@cache
def _pair_table(content: Content, length: int) -> Floats:
    """Row per template and variant of its family it is compared with: the columns `PAIR`."""
    rows = []
    for family in content.templates.reshape(FAMILIES, VARIANTS, -1):
        variants = [_float64(template[:length]) for template in family]
        for a in variants:
            for b in variants:
                d = a - b
                rows.append(((d * d).sum(), (a * b).sum(), (d == 0).sum(), np.abs(d).max()))
    return np.array(rows, dtype=np.float64)


def statistics_of(sums: pd.DataFrame) -> pd.DataFrame:
    """Statistics by their textbook formulas, from what `Content.expected` gives.

    Written apart from the package's own: cosine from Σab, the angle by Lagrange's identity.
    """
    n, m2 = sums["count"], sums["m2"]
    found = {
        "l2_norm": np.sqrt(sums["sum_sq"]), "rms": np.sqrt(sums["sum_sq"] / n),
        "mean": sums["mean"], "std": np.sqrt(m2 / n), "max_abs": sums["max_abs"],
        "zero_fraction": sums["zeros"] / n, "nonfinite": 0 * n,
        "kurtosis": n * sums["m4"] / m2**2,
    }  # fmt: skip
    if "diff_sq" in sums:
        aa, bb, ab = sums["sum_sq"], sums["reference_sq"], sums["cross"]
        sine_sq = (aa * bb - ab**2).where(sums["diff_sq"] > 0, 0.0)  # times the norms' product
        found |= {
            "displacement": np.sqrt(sums["diff_sq"]),
            "rel_displacement": np.sqrt(sums["diff_sq"] / bb),
            "max_change": sums["max_diff"],
            "cosine": ab / np.sqrt(aa * bb),
            "angle": np.arctan2(np.sqrt(np.maximum(sine_sq, 0)), ab),
            "unchanged_fraction": sums["unchanged"] / n,
        }
    return pd.DataFrame(found)


def _variants(seed: int, family: int, length: int) -> npt.NDArray[np.uint16]:
    """A base chunk and perturbations of it: half of the elements move by a few per cent."""
    random = np.random.default_rng([seed, family])
    gains = family >= FAMILIES - GAINS
    if gains:
        base, step = 1 + 0.02 * family / FAMILIES + 0.05 * random.standard_normal(length), 0.02
    else:
        scale = 0.01 * (1 + family / 4)
        tails = random.standard_t(9, length) if family % 3 == 1 else random.standard_normal(length)
        base, step = scale * tails, 0.05 * scale
        base[random.random(length) < 1e-3 * family] = 0
    made = [base]
    for _ in range(VARIANTS - 1):
        moved = random.random(length) < 0.5
        made.append(base + step * moved * random.standard_normal(length))
    return _bfloat16(np.stack(made).astype(np.float32))


def _bfloat16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Bit patterns, rounded to nearest, ties to even."""
    bits = values.view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (rounded >> np.uint32(16)).astype(np.uint16)


def _float64(bits: npt.NDArray[np.uint16]) -> Floats:
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)


def _hash(at: npt.NDArray[np.uint64], *salts: int) -> npt.NDArray[np.uint64]:
    """Splitmix64 (Steele, Lea & Flood 2014) of each position, salted."""
    x = at.copy()
    for salt in (*salts, 0):
        x = (x ^ np.uint64(salt)) + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    return x
