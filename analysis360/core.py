"""The nouns: Run, Checkpoint, TensorInfo, Part, Label. Frozen, and without input or output.

A `Run` is a series of checkpoints, perhaps in several branches. A `Checkpoint` says where its files
are. A `TensorInfo` says where in those files one logical tensor lies, as a list of `Part`, each a
contiguous byte range. A `Label` says what the tensor is in the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from typing import Any, SupportsIndex

import numpy as np
import pandas as pd

from analysis360.errors import CheckpointNotFound, FormatError

__all__ = [
    "DTYPE_BYTES",
    "Adam",
    "Batch",
    "Checkpoint",
    "Event",
    "Fork",
    "Label",
    "LearningRate",
    "Part",
    "Run",
    "Sizes",
    "TensorInfo",
    "holds_optimizer",
]

DTYPE_BYTES: Mapping[str, int] = {
    "float64": 8, "float32": 4, "bfloat16": 2, "float16": 2,
    "float8_e4m3fn": 1, "float8_e5m2": 1, "complex64": 8, "complex128": 16,
    "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "bool": 1,
    "uint16": 2, "uint32": 4, "uint64": 8,
}  # fmt: skip
"""Bytes of one element of every dtype that a stored tensor may have."""


@dataclass(frozen=True, slots=True)
class Label:
    """What a tensor is in the model.

    Attributes
    ----------
    layer : int or None
        Number of the transformer block, from 0; None for embeddings, final norm and head.
    module : str
        For example ``"attn.q"``, ``"mlp.down"``, ``"norm.attn"``, ``"embed"``, ``"head"``.
    param : str
        ``"weight"`` or ``"bias"``, or what the model calls it.
    expert, head : int or None
        Number of the expert or attention head, where a tensor belongs to one.
    """

    layer: int | None
    module: str
    param: str = "weight"
    expert: int | None = None
    head: int | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """One contiguous byte range of a file, and where it lies in the logical tensor.

    The place is either a *flat* range of elements in C order, or a *box* of one ``(start, stop)``
    per dimension whose elements the bytes fill in C order: so a tensor-parallel column split, a
    buffer cut in the middle of a row, and a strip of a fused matrix are all sayable.

    Attributes
    ----------
    file : str
        Path inside the checkpoint's store, with forward slashes.
    offset, nbytes : int
        Byte range in the file.
    dtype : str
        A key of `DTYPE_BYTES`.
    flat : tuple of int, optional
        ``(start, stop)`` in elements.
    box : tuple of tuple of int, optional
        ``(start, stop)`` for each dimension. Exactly one of `flat` and `box` is given.
    stride : tuple of int, optional
        Of a `box` that is stored as a strided view: elements from one index to the next, for each
        dimension. The bytes are then the span from the first to the last of its elements.
    """

    file: str
    offset: int
    nbytes: int
    dtype: str
    flat: tuple[int, int] | None = None
    box: tuple[tuple[int, int], ...] | None = None
    stride: tuple[int, ...] | None = None

    @property
    def sides(self) -> tuple[int, ...]:
        """Number of elements in each dimension of the box, or of the flat range."""
        if self.flat is not None:
            return (self.flat[1] - self.flat[0],)
        return tuple(b - a for a, b in self.box or ())

    @property
    def numel(self) -> int:
        """Number of elements of the tensor that it holds."""
        return math.prod(self.sides)

    @property
    def interleaved(self) -> bool:
        """Whether the bytes of a row lie between those of others, as in a transposed matrix."""
        if self.stride is None or not self.stride:
            return False
        return self.stride[0] < _span(self.sides[1:], self.stride[1:])

    def rows(self, shape: tuple[int, ...], start: int, stop: int) -> Part | None:
        """Cut to the rows ``start:stop`` of a tensor of `shape`; None if nothing is left.

        A row is one index of the first dimension. The cut is still placed in the whole tensor.
        """
        size = DTYPE_BYTES[self.dtype]
        if self.flat is not None:
            width = math.prod(shape[1:])
            low = max(self.flat[0], start * width)
            high = min(self.flat[1], stop * width)
            if low >= high:
                return None
            shift = (low - self.flat[0]) * size
            return replace(
                self, offset=self.offset + shift, nbytes=(high - low) * size, flat=(low, high)
            )
        assert self.box is not None
        if not self.box:  # a scalar has one row
            return self if start == 0 < stop else None
        first, sides = self.box[0], self.sides
        low, high = max(first[0], start), min(first[1], stop)
        if low >= high:
            return None
        stride = self.stride or (math.prod(sides[1:]),)
        held = (high - low) * stride[0]
        if self.stride is not None:
            held = _span((high - low, *sides[1:]), self.stride)
        return replace(
            self,
            offset=self.offset + (low - first[0]) * stride[0] * size,
            nbytes=held * size,
            box=((low, high), *self.box[1:]),
        )


def _span(sides: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """Elements from the first to the last of a strided view, both included."""
    return 1 + sum((n - 1) * s for n, s in zip(sides, stride, strict=True))


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One logical tensor of a checkpoint, and the bytes it is made of.

    Attributes
    ----------
    name : str
        Canonical parameter name, for example ``"model.layers.0.mlp.up_proj.weight"``.
    key : str
        Key under which it is stored.
    state : str
        ``"weight"``, ``"exp_avg"``, ``"exp_avg_sq"``, ``"master"`` or ``"step"``.
    shape : tuple of int
    dtype : str
        A key of `DTYPE_BYTES`.
    parts : tuple of Part
        Byte ranges; together they cover every element once.
    """

    name: str
    key: str
    state: str
    shape: tuple[int, ...]
    dtype: str
    parts: tuple[Part, ...]

    @property
    def numel(self) -> int:
        """Number of elements; 1 for a scalar."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Stored bytes."""
        return sum(part.nbytes for part in self.parts)

    @property
    def scattered(self) -> bool:
        """Whether the bytes are not the elements in C order, aligned, and have to be copied."""
        return len(self.parts) > 1 or any(
            part.stride is not None or part.offset % DTYPE_BYTES[part.dtype] for part in self.parts
        )


@dataclass(frozen=True, slots=True)
class Adam:
    """Hyper-parameters of Adam or AdamW; None where the run does not tell.

    `weight_decay` is that of the tensors with two or more dimensions; one-dimensional ones are
    taken as not decayed, as in Megatron, GPT-NeoX and the demo.
    """

    beta1: float | None = None
    beta2: float | None = None
    eps: float | None = None
    weight_decay: float | None = None
    clip: float | None = None
    lr: float | None = None

    def filled(self, other: Adam | None) -> Adam:
        """Take from `other` what is None here."""
        if other is None:
            return self
        mine = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return Adam(**{k: getattr(other, k) if v is None else v for k, v in mine.items()})


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences a step that rise from `start` to `stop` while the first `samples` are seen.

    They rise by `by` whenever another equal share of the samples was seen, as in Megatron.

    Attributes
    ----------
    start, stop, by : int
        Sequences.
    samples : int
        Sequences seen when `stop` is reached.
    length : int
        Tokens of a sequence.

    Raises
    ------
    FormatError
        If `stop` is not reached from `start`.

    Examples
    --------
    >>> lucie = Batch(start=256, stop=1024, by=64, samples=10_000_000, length=4096)
    >>> lucie.seen(753_851)  # the model card says 762,144,586
    762144064
    """

    start: int
    stop: int
    by: int
    samples: int
    length: int

    def __post_init__(self) -> None:
        if self.stop <= self.start or (self.stop - self.start) % self.by:
            raise FormatError(f"a batch of {self.start} does not rise to {self.stop} by {self.by}")

    def seen(self, step: int) -> int:
        """Sequences seen after a number of steps."""
        return int(self.counts(np.asarray([step], dtype=np.float64))[0])

    def tokens(self, step: int) -> int:
        """Tokens seen after a number of steps."""
        return self.seen(step) * self.length

    def counts(self, steps: np.ndarray) -> np.ndarray:
        """Sequences seen after each of several numbers of steps."""
        sizes = np.arange(self.start, self.stop + self.by, self.by, dtype=np.float64)
        share = self.samples / (len(sizes) - 1)
        began, seen = [0], [0]  # of each size: steps and sequences before it
        for stage, size in enumerate(range(self.start, self.stop, self.by), start=1):
            done = max(0, math.ceil((stage * share - seen[-1]) / size))
            began.append(began[-1] + done)
            seen.append(seen[-1] + done * size)
        now = np.searchsorted(began, steps, side="right") - 1
        found: np.ndarray = np.asarray(seen)[now] + (steps - np.asarray(began)[now]) * sizes[now]
        return found


@dataclass(frozen=True, slots=True)
class LearningRate:
    """Linear warm-up from zero to `peak`, then a way down to `final`, reached at step `total`.

    Training step ``s`` (the first is 1) runs at ``at(s)``.

    Attributes
    ----------
    peak, final : float
    warmup, total : int
        Steps. After `total` the rate stays at `final`.
    kind : {"cosine", "linear", "constant"}
        The way down; a constant one stays at `peak`, whatever `final` says.
    floor : float
        After the warm-up the rate is never less. So trainers are described whose cosine goes to
        zero, but is cut off where it reaches a least rate.
    batch : Batch or None
        Where it was a function of sequences seen, and their number a step rose: `warmup` and
        `total` are then sequences.

    Raises
    ------
    FormatError
        If there is no such kind.

    Examples
    --------
    >>> k2 = LearningRate(peak=1.5e-4, final=1.5e-5, warmup=2000, total=338760)
    >>> f"{k2.at(150560):.3e}", f"{k2.sum(150560 - 941, 150560):.3e}"
    ('9.491e-05', '8.958e-02')
    >>> LearningRate(peak=1.0, final=0.0, warmup=0, total=100, kind="linear", floor=0.1).at(95)
    0.1
    """

    peak: float
    final: float
    warmup: int
    total: int
    kind: str = "cosine"
    floor: float = 0.0
    batch: Batch | None = None

    def __post_init__(self) -> None:
        if self.kind not in _WAYS_DOWN:
            known = ", ".join(_WAYS_DOWN)
            raise FormatError(f"learning rate of kind {self.kind!r}; allowed: {known}")

    def at(self, step: float) -> float:
        """Learning rate in force at training step `step`."""
        return float(self._values(np.asarray([step], dtype=np.float64))[0])

    def sum(self, start: int, stop: int) -> float:
        """Sum of the learning rate over the steps ``start + 1 … stop``."""
        if stop < start:
            return math.nan
        return float(self._values(np.arange(start + 1, stop + 1, dtype=np.float64)).sum())

    def _values(self, step: np.ndarray) -> np.ndarray:
        at = step if self.batch is None else self.batch.counts(step)
        rising = self.peak * at / max(self.warmup, 1)
        done = np.clip((at - self.warmup) / max(self.total - self.warmup, 1), 0.0, 1.0)
        falling = self.final + (self.peak - self.final) * _WAYS_DOWN[self.kind](done)
        return np.where(at < self.warmup, rising, np.maximum(falling, self.floor))


_WAYS_DOWN: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "cosine": lambda done: 0.5 * (1.0 + np.cos(np.pi * done)),
    "linear": lambda done: 1.0 - done,
    "constant": np.ones_like,
}
"""Kinds of learning rate: share of the way from `final` to `peak` that is left when a share of the
steps after the warm-up is done."""


@dataclass(frozen=True, slots=True)
class Fork:
    """`branch` left `parent` after the checkpoint `number`, or the step `step`, of the parent.

    Exactly one of the two is given.

    Raises
    ------
    FormatError
        If none or both are.

    Examples
    --------
    >>> Fork("spike", "normal", 160).number, Fork("rerun", "main", step=12_000).step
    (160, 12000)
    """

    branch: str
    parent: str
    number: int | None = None
    step: int | None = None

    def __post_init__(self) -> None:
        if (self.number is None) == (self.step is None):
            given = "both" if self.step is not None else "neither"
            raise FormatError(
                f"fork of {self.branch!r} from {self.parent!r}: expected a number or a step of the "
                f"parent's checkpoint, got {given}"
            )


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened in training and belongs on a figure."""

    branch: str
    step: int
    label: str


class Sizes(Mapping[str, int]):
    """Names of files whose sizes cost a request each, which is made when a size is needed.

    Parameters
    ----------
    names : iterable of str
    ask : callable
        From a name to its size in bytes; called once for each.

    Examples
    --------
    >>> sizes = Sizes(["a.bin", "b.bin"], len)
    >>> list(sizes), sizes.known, sizes["a.bin"], dict(sizes), sizes.known
    (['a.bin', 'b.bin'], False, 5, {'a.bin': 5, 'b.bin': 5}, True)
    """

    def __init__(self, names: Iterable[str], ask: Callable[[str], int]) -> None:
        self._sizes: dict[str, int | None] = dict.fromkeys(names)
        self._ask = ask

    @property
    def known(self) -> bool:
        """Whether every size has been asked for."""
        return None not in self._sizes.values()

    def __getitem__(self, name: str) -> int:
        size = self._sizes[name]
        if size is None:
            size = self._sizes[name] = self._ask(name)
        return size

    def __iter__(self) -> Iterator[str]:
        return iter(self._sizes)

    def __contains__(self, name: object) -> bool:  # a name is there before its size is known
        return name in self._sizes

    def __len__(self) -> int:
        return len(self._sizes)

    def __reduce__(self) -> tuple[type[dict[str, int]], tuple[dict[str, int]]]:
        """Copies, and what is pickled, are plain: they hold no connection."""
        return dict, (dict(self),)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One checkpoint of a run.

    Attributes
    ----------
    run, branch : str
    number : int or None
        The run's own count (K2's 160), which is not the training step (150,560).
    step, tokens : int or None
        Optimizer steps and tokens seen; None where the run does not tell.
    uri : str
        Where the files are: a folder, a file, ``hf://owner/name``, ``memory://…``.
    revision : str
        Commit hash on the Hub; a fingerprint of names, sizes and times for a folder; of the
        address and the names alone for a plain web server, which tells no more.
    name : str
        The branch, tag, folder or file it was found under, for example ``"spike_ckpt_160"``.
    files : mapping of str to int
        Path inside the checkpoint to size in bytes.
    hashes : mapping of str to str
        Path to hash of the content, for the files where a listing told one: ``"sha256:…"``, or
        ``"git:…"`` for a small file on the Hub. Of one kind, equal hashes are equal contents.
    """

    run: str
    branch: str
    number: int | None
    step: int | None
    tokens: int | None
    uri: str
    revision: str
    name: str
    files: Mapping[str, int] = field(default_factory=dict, repr=False, compare=False)
    hashes: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)

    @property
    def nbytes(self) -> int | None:
        """Size of all files; None where it has not been asked for yet, see `Sizes`."""
        asked = not isinstance(self.files, Sizes) or self.files.known
        return sum(self.files.values()) if asked else None

    @property
    def order(self) -> int:
        """What the checkpoints of a branch are sorted by: step if known, else number."""
        known = self.step if self.step is not None else self.number
        return -1 if known is None else known


Selector = SupportsIndex | str | slice | Iterable[Any] | None
"""What `Run.select` takes: a scalar, a slice or an iterable, also of numpy or pandas."""


def _frozen(wanted: Selector) -> Selector:
    """Plain Python values, which can be compared again and again: a generator ends after once.

    Raises
    ------
    TypeError
        If it can't select anything.
    """
    if wanted is None or isinstance(wanted, str):
        return wanted
    if isinstance(wanted, slice):
        return slice(_plain(wanted.start), _plain(wanted.stop))
    if (
        isinstance(wanted, Iterable) and getattr(wanted, "ndim", None) != 0
    ):  # numpy has 0-d iterables
        return tuple(_plain(value) for value in wanted)
    value = _plain(wanted)
    if not isinstance(value, Real):
        raise TypeError(f"cannot select by {wanted!r}: give a number, a text, a slice or a list")
    return value  # type: ignore[return-value]  # a fraction equals no number: nothing is left


def _plain(value: Any) -> Any:
    """Give a number of numpy or pandas as an int if it is a whole one; what is missing as None."""
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value.item()
    if value is None or value is pd.NA:
        return None
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):  # a column with missing values is one of floats
        number = float(value)
        return None if math.isnan(number) else int(number) if number.is_integer() else number
    return value


def _chosen(value: object, wanted: Selector) -> bool:
    """Whether `value` is selected; slices include both ends, as ``.loc`` does in pandas."""
    if wanted is None:
        return True
    if isinstance(wanted, slice):
        if value is None or pd.isna(value):  # type: ignore[call-overload]
            return False
        low = wanted.start is None or value >= wanted.start
        high = wanted.stop is None or value <= wanted.stop
        return bool(low and high)
    return value in wanted if isinstance(wanted, tuple) else value == wanted


@dataclass(frozen=True)
class Run:
    """A series of checkpoints, with what is known of how they were trained.

    Made by `analysis360.open_run`; nothing here reads a file.

    Attributes
    ----------
    name, title : str
    home : str
        Folder or repository that the run was opened from.
    entries : tuple of Checkpoint
    family : str or None
        Table of parameter names to use; None chooses by trying.
    adam : Adam or None
    learning_rate : LearningRate or None
    forks : tuple of Fork
    events : tuple of Event
    sources : mapping of str to tuple of str
        Paths of logs and results, relative to `home`: ``loss``, ``heldout``, ``benchmarks``.
    published : mapping of str to str
        Where its makers put what is not in `home`, for people to open: ``loss``, ``benchmarks``,
        ``paper``, ``code``…
    layers, modules : selections of tensors, see `select`
    """

    name: str
    title: str
    home: str
    entries: tuple[Checkpoint, ...]
    family: str | None = None
    adam: Adam | None = None
    learning_rate: LearningRate | None = None
    forks: tuple[Fork, ...] = ()
    events: tuple[Event, ...] = ()
    sources: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    published: Mapping[str, str] = field(default_factory=dict)
    layers: Selector = None
    modules: Selector = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", _frozen(self.layers))
        object.__setattr__(self, "modules", _frozen(self.modules))

    @property
    def checkpoints(self) -> pd.DataFrame:
        """One row per checkpoint: branch, number, step, tokens, name, states, bytes, revision, uri.

        Bytes are missing where they have not been asked for yet, as on a plain web server.
        """
        rows = [
            {
                "branch": c.branch, "number": c.number, "step": c.step, "tokens": c.tokens,
                "name": c.name, "states": _states(c.files), "bytes": c.nbytes,
                "revision": c.revision[:12], "uri": c.uri,
            }
            for c in self.entries
        ]  # fmt: skip
        columns = ["branch", "number", "step", "tokens", "name", "states", "bytes", "revision"]
        frame = pd.DataFrame(rows, columns=[*columns, "uri"])
        return frame.astype(dict.fromkeys(("number", "step", "tokens", "bytes"), "Int64"))

    @property
    def branches(self) -> tuple[str, ...]:
        """Names of the branches, in order of appearance."""
        return tuple(dict.fromkeys(c.branch for c in self.entries))

    def select(
        self,
        *,
        branch: Selector = None,
        number: Selector = None,
        step: Selector = None,
        layers: Selector = None,
        modules: Selector = None,
    ) -> Run:
        """Keep some checkpoints, layers or modules.

        Parameters
        ----------
        branch, number, step, layers, modules : scalar, slice or iterable, optional
            What to keep. Slices include both ends. `modules` are names as in `Label.module`;
            ``"attn"`` keeps ``"attn.q"`` and so on. Tensors outside the blocks have no layer and
            are left out when `layers` is given. Scalars and columns of numpy and pandas will do.

        Returns
        -------
        Run

        Raises
        ------
        CheckpointNotFound
            If no checkpoint is left.
        TypeError
            If a selection is none of these.
        """
        branch, number, step = _frozen(branch), _frozen(number), _frozen(step)
        kept = tuple(
            c for c in self.entries
            if _chosen(c.branch, branch) and _chosen(c.number, number) and _chosen(c.step, step)
        )  # fmt: skip
        if not kept:
            asked = {"branch": branch, "number": number, "step": step}
            shown = {k: list(v) if isinstance(v, tuple) else v for k, v in asked.items()}
            named = ", ".join(f"{k}={v!r}" for k, v in shown.items() if v is not None)
            raise CheckpointNotFound(
                f"{self.name}: no checkpoint with {named}; there are {self._summary()}"
            )
        return replace(
            self,
            entries=kept,
            layers=self.layers if layers is None else layers,
            modules=self.modules if modules is None else modules,
        )

    def keeps(self, label: Label) -> bool:
        """Whether a tensor of this label is in the selection of layers and modules."""
        if not _chosen(label.layer, self.layers):
            return False
        wanted = self.modules
        if wanted is None or isinstance(wanted, slice):
            return _chosen(label.module, wanted)
        names = wanted if isinstance(wanted, tuple) else (wanted,)
        return any(label.module == n or label.module.startswith(f"{n}.") for n in names)

    def _summary(self) -> str:
        said = []
        for branch in self.branches:
            mine = [c for c in self.entries if c.branch == branch]
            said.append(f"{branch or '(unnamed)'}: {mine[0].name} … {mine[-1].name} ({len(mine)})")
        return "; ".join(said)

    def __repr__(self) -> str:
        sizes = [c.nbytes for c in self.entries]
        total = sum(size for size in sizes if size is not None)
        said = f"{total / 1e9:,.3g} GB" if None not in sizes else "sizes are asked for when needed"
        return f"Run {self.name!r} at {self.home}: {self._summary()}; {said}"


def _states(files: Mapping[str, int]) -> str:
    """What a listing of names promises: exact states are known once headers are read."""
    optimizer = [path for path in files if holds_optimizer(path)]
    # Megatron and torch's distributed checkpoints have both in one file or folder; DeepSpeed's
    # universal form has one file a state.
    model = any("model" in path for path in optimizer) or any(
        path.endswith((".safetensors", ".bin", ".pt", ".pth", ".distcp")) and path not in optimizer
        for path in files
    )
    return "+".join(s for s, there in (("weights", model), ("optimizer", optimizer)) if there)


def holds_optimizer(path: str) -> bool:
    """Whether a file is named as those are in which trainers keep Adam's moments.

    Known are ``optimizer*`` and ``optim.*``, ``model_optim_rng.pt`` and ``distrib_optim.pt``
    (Megatron), ``*_optim_states.pt`` and ``exp_avg*.pt`` (DeepSpeed), ``model_and_optim/`` (OLMo).

    Examples
    --------
    >>> holds_optimizer("zero/lm_head.weight/exp_avg_sq.pt"), holds_optimizer("model.safetensors")
    (True, False)
    """
    *folders, name = path.lower().split("/")
    tensors = name.endswith((".safetensors", ".bin", ".pt", ".pth", ".tar", ".distcp"))
    said = any("optim" in part for part in (*folders[-2:], name))
    return tensors and (said or name.startswith("exp_avg"))
