"""Which files a DeepSpeed checkpoint consists of, and what its model files say.

Names as in ``deepspeed/runtime/engine.py`` (``_get_ckpt_name``, ``_get_rank_zero_ckpt_name``) and
``deepspeed/runtime/pipe/module.py`` (``ckpt_layer_path``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

from analysis360.errors import FormatError
from analysis360.formats.base import HeaderReader
from analysis360.formats.fields import Fields
from analysis360.formats.inert import StoredTensor
from analysis360.formats.layout import Stretch
from analysis360.formats.torch_file import TorchFile

__all__ = [
    "Files",
    "ModelFile",
    "Shapes",
    "by_threads",
    "find_files",
    "kinds",
    "read_model",
]

Shapes = dict[str, tuple[int, ...]]
"""Names of parameters, in stored order, to shapes."""

_MODEL = re.compile(r"(?:zero_pp_rank_(\d+)_)?mp_rank_(\d+)_model_states\.pt")
_OPTIM = re.compile(r"(?:bf16_|fp16_)?zero_pp_rank_(\d+)_mp_rank_(\d+)_?optim_states\.pt")
_LAYER = re.compile(r"layer_(\d+)(?:-model_(\d+))?-model_states\.pt")
_EXPERT = re.compile(r"(?:layer_\d+_)?expert_\d+_mp_rank_\d+_model_states\.pt|expp_rank_.*\.pt")
_UNIVERSAL = re.compile(r"zero/(.+)/(fp32|exp_avg|exp_avg_sq|step)\.pt")
_SETTINGS = "zero/optimizer_state.pt"
_DIGITS = 6  # of a rank's number

S = TypeVar("S")
T = TypeVar("T")


@dataclass
class Files:
    """Paths of one checkpoint, by what they are.

    Attributes
    ----------
    models, optims : dict of (int, int) to str
        By model-parallel and data-parallel rank; model files of ZeRO 1 and 2 have rank 0.
    layers : dict of (int, int) to str
        By layer of a pipeline and tensor-parallel rank.
    experts : list of str
    universal : dict of (str, str) to str
        By parameter and state.
    settings : str or None
        ``zero/optimizer_state.pt`` of a universal checkpoint.
    """

    models: dict[tuple[int, int], str] = field(default_factory=dict)
    optims: dict[tuple[int, int], str] = field(default_factory=dict)
    layers: dict[tuple[int, int], str] = field(default_factory=dict)
    experts: list[str] = field(default_factory=list)
    universal: dict[tuple[str, str], str] = field(default_factory=dict)
    settings: str | None = None

    @property
    def is_universal(self) -> bool:
        """Whether the optimizer's states are in one file each."""
        return bool(self.universal)

    @property
    def is_rank_files(self) -> bool:
        """Whether there are files as the ranks write them."""
        return bool(self.models or self.optims or self.layers)

    def add(self, name: str, path: str) -> None:
        """Take a file, if it is one of DeepSpeed's."""
        if found := _MODEL.fullmatch(name):
            self._put(self.models, (found[2], found[1] or "0"), path)
        elif found := _OPTIM.fullmatch(name):
            self._put(self.optims, (found[2], found[1]), path)
        elif found := _LAYER.fullmatch(name):
            self._put(self.layers, (found[1], found[2] or "0"), path)
        elif _EXPERT.fullmatch(name):
            self.experts.append(path)
        elif found := _UNIVERSAL.fullmatch(name):
            self.universal[found[1], found[2]] = path
        elif name == _SETTINGS:
            self.settings = path

    def _put(self, into: dict[tuple[int, int], str], ranks: tuple[str, str], path: str) -> None:
        if max(map(len, ranks)) > _DIGITS:
            return
        place = int(ranks[0]), int(ranks[1])
        before = into.setdefault(place, path)
        if before != path:
            raise FormatError(f"{path}: the same ranks as {before}; one of them is left over")


def find_files(uri: str, files: Mapping[str, int]) -> Files:
    """Sort the files of a checkpoint: those at the top or those of one folder.

    Raises
    ------
    FormatError
        If several folders hold some: these are several checkpoints.
    """
    found: dict[str, Files] = {}
    for path in sorted(files):
        folder, name = _split(path)
        found.setdefault(folder, Files()).add(name, path)
    used = {folder: f for folder, f in found.items() if f.is_universal or f.is_rank_files}
    if len(used) > 1:
        names = ", ".join(f"{folder or 'the top'}" for folder in sorted(used))
        raise FormatError(
            f"{uri}: DeepSpeed's files are in {len(used)} places, {names}: these are separate "
            "checkpoints, to be opened one by one"
        )
    return next(iter(used.values()), Files())


def kinds(files: Iterable[str]) -> set[str]:
    """Give ``"ranks"`` and ``"universal"``, as far as there are such files."""
    found: set[str] = set()
    for path in files:
        _, name = _split(path)
        if _UNIVERSAL.fullmatch(name):
            found.add("universal")
        elif _MODEL.fullmatch(name) or _OPTIM.fullmatch(name) or _LAYER.fullmatch(name):
            found.add("ranks")
    return found


def _split(path: str) -> tuple[str, str]:
    """Give the folder of the checkpoint, and the name in it; ``zero/`` is part of the name."""
    steps = path.split("/")
    if steps[0] == "zero" or len(steps) == 1:
        return "", path
    return steps[0], path[len(steps[0]) + 1 :]


def by_threads(what: Callable[[S], T], items: Iterable[S]) -> list[T]:
    """Do something for each item, several at once: against the latency of small requests."""
    items = list(items)
    if len(items) < 2:
        return [what(item) for item in items]
    with ThreadPoolExecutor(min(8, len(items))) as pool:
        return list(pool.map(what, items))


@dataclass
class ModelFile:
    """What a ``…model_states.pt`` says.

    Attributes
    ----------
    file : TorchFile
    root : Fields
    groups : list of dict, or None
        Shapes of the parameters of each group of the optimizer; None if it wasn't ZeRO's.
    module : dict of str to StoredTensor
    buffers : set of str
    shared : dict of str to str
        Name to the name under which the same parameter is stored.
    frozen : dict of str to tuple
        Shapes of parameters that the optimizer doesn't update.
    fragments : dict of str to StoredTensor
        Their values, or this rank's part of them.
    """

    file: TorchFile
    root: Fields
    groups: list[Shapes] | None
    module: dict[str, StoredTensor]
    buffers: set[str]
    shared: dict[str, str]
    frozen: Shapes
    fragments: dict[str, StoredTensor]

    @property
    def ungrouped(self) -> bool:
        """Whether it's not told which parameters are in which group, as in early versions."""
        return isinstance(self.root.get("param_shapes"), dict)

    @cached_property
    def shapes(self) -> Shapes:
        """Shapes of the parameters of all groups, and of those that are frozen."""
        groups = [*(self.groups or ()), self.frozen]
        return {name: shape for group in groups for name, shape in group.items()}

    @property
    def sharded(self) -> list[str]:
        """Frozen parameters that aren't stored whole, in the module or beside it."""
        found = {**self.fragments, **self.module}
        return [
            name for name, shape in self.frozen.items()
            if name in self.fragments and found[name].shape != shape
        ]  # fmt: skip

    @property
    def step(self) -> int | None:
        """Optimizer steps: those that were taken, less those skipped for an overflow."""
        steps, skipped = self.root.get("global_steps"), self.root.get("skipped_steps")
        if type(steps) is not int or steps < 0:
            return None
        return steps - skipped if type(skipped) is int and 0 <= skipped <= steps else steps

    def share(self, name: str, rank: int, share: int, numel: int) -> Stretch | None:
        """Give where this rank's share of a frozen parameter lies; None if that's only padding."""
        held = Fields(self.fragments, self.file.where, "frozen_param_fragments").flat(name)
        if held.shape[0] != share:
            raise FormatError(
                f"{self.file.where}: frozen_param_fragments.{name} has {held.shape[0]} elements, "
                f"a share of the {numel} has {share}"
            )
        count = min(share, numel - rank * share)
        if count <= 0:
            return None
        run = self.file.stretch(held, name)
        return Stretch(run.file, run.offset, run.dtype, rank * share, rank * share + count)


def read_model(reader: HeaderReader, file: TorchFile) -> ModelFile:
    """Check what a model file says.

    Raises
    ------
    FormatError
        If something in it is of a wrong type, or a name is in two groups.
    """
    root = Fields(file.root, file.where)
    names = root.sequence("buffer_names") if root.get("buffer_names") is not None else []
    shared = root.optional("shared_params").data
    return ModelFile(
        file,
        root,
        _groups(root),
        root.optional("module").tensors(),
        {name for name in names if isinstance(name, str)},
        {k: v for k, v in shared.items() if isinstance(k, str) and isinstance(v, str)},
        root.optional("frozen_param_shapes").shapes(),
        root.optional("frozen_param_fragments").tensors(),
    )


def _groups(root: Fields) -> list[Shapes] | None:
    if root.get("param_shapes") is None:
        return None
    if isinstance(root.get("param_shapes"), dict):
        return [root.fields("param_shapes").shapes()]
    groups = [group.shapes() for group in root.each("param_shapes")]
    seen: set[str] = set()
    for group in groups:
        for name in group:
            if name in seen:
                raise root.bad("param_shapes", f"names {name!r} twice")
            seen.add(name)
    return groups
