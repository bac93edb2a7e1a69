"""The model files of a DeepSpeed checkpoint: which parameters there are, and the 16-bit weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from analysis360.core import DTYPE_BYTES, Adam, Part
from analysis360.errors import FormatError
from analysis360.formats.base import HeaderReader
from analysis360.formats.deepspeed_files import Files, ModelFile, by_threads, read_model
from analysis360.formats.deepspeed_parallel import Rule, Shape, Slices, degree, is_whole, rules_of
from analysis360.formats.fields import Fields, plain_number, size_of
from analysis360.formats.inert import StoredTensor
from analysis360.formats.layout import Assembly, Stretch, Strip, place
from analysis360.formats.torch_file import TorchFile, open_torch
from analysis360.storage.memory import adam_of

__all__ = ["Model", "add_weights", "adam_of_groups", "check_ranks", "open_model"]

_Slice = tuple[TorchFile, StoredTensor]
_TIED = "tied_modules."  # as DeepSpeed's pipelines name modules that several stages have
Note = tuple[str, str]


@dataclass
class Model:
    """What the model files say, of all model-parallel ranks.

    Attributes
    ----------
    uri : str
    files : list of ModelFile
        By model-parallel rank: those of a pipeline stage follow each other.
    layers : dict of (int, int) to TorchFile
        Weights of a pipeline, by layer and tensor-parallel rank.
    slices : Slices
    prefix : str
        What a wrapper put before every name.
    skipped : list of (str, str)
    """

    uri: str
    files: list[ModelFile]
    layers: dict[tuple[int, int], TorchFile]
    slices: Slices
    prefix: str = ""
    skipped: list[Note] = field(default_factory=list)
    _strips: dict[str, list[list[Strip]] | None] = field(default_factory=dict)
    _stages: dict[str, int] = field(default_factory=dict)

    def place(self, made: Assembly, mp: int, name: str, state: str, key: str, run: Stretch) -> None:
        """Put elements of a rank's slice of a parameter where they belong."""
        strips = self._strips.get(name)
        if strips is None or self._stages[name] != mp // self.slices.degree:
            return
        mine = strips[mp % self.slices.degree]
        if mine:
            self._put(made, self.files[mp].shapes[name], mine, state, key, run)

    def _put(
        self, made: Assembly, shape: Shape, strips: list[Strip], state: str, key: str, run: Stretch
    ) -> None:
        if is_whole(strips, shape):
            nbytes = (run.stop - run.start) * DTYPE_BYTES[run.dtype]
            part = Part(run.file, run.offset, nbytes, run.dtype, flat=(run.start, run.stop))
            made.put(self.named(strips[0].name), state, key, shape, part)
            return
        for strip, part in place(shape, strips, run):
            made.put(self.named(strip.name), state, key, strip.shape, part)

    def named(self, name: str) -> str:
        """Name without a wrapper's prefix."""
        return name.removeprefix(self.prefix)

    @property
    def names(self) -> list[str]:
        """Parameters of the optimizer."""
        return [name for m in self.files for group in m.groups or () for name in group]

    def full_shape(self, name: str) -> Shape | None:
        """Shape of a parameter; None if it isn't known, as of slices that no rule puts together."""
        strips = self._strips.get(name) or []
        return next((strip.shape for held in strips for strip in held), None)

    def plan(self) -> None:
        """Work out how the slices of every parameter of the optimizer make it up."""
        for stage, files in enumerate(self._by_stage()):
            for name in files[0].shapes:
                if name in self._stages:
                    self.skipped.append((name, f"also in pipeline stage {stage}, a tied copy"))
                    continue
                self._stages[name] = stage
                self._strips[name] = self._known(name, [f.shapes[name] for f in files])

    def _known(self, name: str, shapes: list[Shape]) -> list[list[Strip]] | None:
        found = self.slices.strips(name, shapes)
        if isinstance(found, str):
            self.skipped.append((name, found))
            return None
        return found

    def _by_stage(self) -> Iterator[list[ModelFile]]:
        count = self.slices.degree
        for at in range(0, len(self.files), count):
            files = self.files[at : at + count]
            for other in files[1:]:
                missing = files[0].shapes.keys() ^ other.shapes.keys()
                if missing:
                    raise FormatError(
                        f"{other.file.where}: param_shapes: {min(missing)!r} is only in one of it "
                        f"and {files[0].file.path}, which hold slices of the same parameters"
                    )
            yield files

    def add_weights(self, made: Assembly) -> None:
        """Put the weights of the module, those that the optimizer doesn't update included."""
        for name, held in self._weights().items():
            why = self._unwanted(name, [value for _, value in held])
            why = why or next(filter(None, (file.why_unread(value) for file, value in held)), "")
            if why:
                self.skipped.append((name, why))
                continue
            shapes = [value.shape for _, value in held]
            strips = self._strips.get(name)
            if name not in self._strips:
                strips = self._known(name, shapes)
            for (file, value), mine in zip(held, strips or [], strict=False):
                self._add_weight(made, name, file, value, mine)

    def _add_weight(
        self, made: Assembly, name: str, file: TorchFile, value: StoredTensor, strips: list[Strip]
    ) -> None:
        if not strips or not size_of(value.shape):
            return
        if is_whole(strips, value.shape):
            part = file.part(value, name)
            assert part is not None
            made.put(self.named(name), "weight", name, value.shape, part)
        else:
            self._put(made, value.shape, strips, "weight", name, file.stretch(value, name))

    def no_parameter(self, name: str) -> str:
        """Why a stored name is no parameter of its own; empty if it is."""
        if name in self._stages:
            return ""
        for file in self.files:
            if name in file.shared:
                return f"the same parameter as {file.shared[name]}"
            if name in file.buffers:
                return "a buffer, not a parameter"
        return ""

    def _unwanted(self, name: str, held: list[StoredTensor]) -> str:
        """Why a weight isn't listed; empty if it is."""
        stage, count = self._stages.get(name), self.slices.degree
        if stage is None:
            return self.no_parameter(name)
        told = [file.shapes[name] for file in self.files[stage * count : (stage + 1) * count]]
        shapes = [value.shape for value in held]
        if any(map(size_of, told)) and not any(map(size_of, shapes)):
            if any(name in file.frozen for file in self.files):
                return ""  # put together from the ranks' shares
            return "a placeholder: ZeRO 3 partitions the weights, and stores their masters only"
        if told != shapes:
            where = self.files[stage * count].file.where
            raise FormatError(
                f"{where}: {name!r} is {', '.join(map(str, shapes))} among the weights, "
                f"{', '.join(map(str, told))} in param_shapes"
            )
        return ""

    def _weights(self) -> dict[str, list[_Slice]]:
        """Slices of every weight, by tensor-parallel rank; of tied copies the first stage's."""
        found: dict[str, dict[int, _Slice]] = {}
        for mp, model in enumerate(self.files):
            for name, value in {**model.module, **self._frozen(model)}.items():
                found.setdefault(name, {}).setdefault(mp % self.slices.degree, (model.file, value))
        for (layer, tp), file in self.layers.items():
            held = Fields(file.root, file.where).tensors()
            start = self._layer_name(layer, held)
            for name, value in held.items():
                found.setdefault(start + name, {})[tp] = (file, value)
        for name, held_by in found.items():
            if len(held_by) != self.slices.degree:
                have = ", ".join(f.path for f, _ in held_by.values())
                raise FormatError(
                    f"{self.uri}: {name!r} has slices in {have} only, not in those of all "
                    f"{self.slices.degree} tensor-parallel ranks"
                )
        return {name: [s for _, s in sorted(h.items())] for name, h in found.items()}

    def _frozen(self, model: ModelFile) -> dict[str, StoredTensor]:
        """Parameters that are stored beside the module only: whole ones, as ZeRO 1 and 2 do."""
        return {
            name: value for name, value in model.fragments.items()
            if name not in model.module and value.shape == model.frozen.get(name)
        }  # fmt: skip

    def _layer_name(self, layer: int, held: Iterable[str]) -> str:
        """What stands before the names in the file of a layer: its number, or what it's tied as."""
        if any(name.startswith(f"{layer}.") for name in self._stages):
            return f"{layer}."
        tied = {".".join(n.split(".")[:2]) + "." for n in self._stages if n.startswith(_TIED)}
        fits = [t for t in sorted(tied) if all(t + name in self._stages for name in held)]
        return fits[0] if len(fits) == 1 else f"{layer}."


def add_weights(reader: HeaderReader, files: Files, model: Model, made: Assembly) -> None:
    """Put the weights, also what ZeRO 3 keeps of those that aren't trained: a share in each rank.

    Raises
    ------
    FormatError
        If the file of a rank is missing or damaged, or its share is of another size.
    """
    model.add_weights(made)
    for mp, first in enumerate(model.files):
        names = first.sharded
        if not names:
            continue
        ranks = sorted(dp for m, dp in files.models if m == mp)
        check_ranks(reader.store.uri, "model_states.pt of data-parallel rank", ranks)
        paths = [files.models[mp, dp] for dp in ranks[1:]]
        others = by_threads(lambda path: read_model(reader, open_torch(reader, path)), paths)
        for dp, file in enumerate([first, *others]):
            for name in names:
                shape = first.frozen[name]
                run = file.share(name, dp, -(-size_of(shape) // len(ranks)), size_of(shape))
                if run is not None:
                    model.place(made, mp, name, "weight", name, run)


def open_model(reader: HeaderReader, files: Files) -> Model:
    """Read the model files and those of pipeline layers.

    Raises
    ------
    FormatError
        If one is missing or damaged, or they disagree.
    """
    uri = reader.store.uri
    ranks = sorted({mp for mp, _ in files.models})
    check_ranks(uri, "model_states.pt of model-parallel rank", ranks)
    for mp in ranks:
        if (mp, 0) not in files.models:
            raise FormatError(f"{uri}: zero_pp_rank_0_mp_rank_{mp:02d}_model_states.pt is missing")
    paths = [files.models[mp, 0] for mp in ranks]
    opened = by_threads(lambda path: open_torch(reader, path), [*paths, *files.layers.values()])
    models = [read_model(reader, file) for file in opened[: len(paths)]]
    layers = dict(zip(files.layers, opened[len(paths) :], strict=True))
    count = _degree(uri, models, files)
    model = Model(uri, models, layers, Slices(_rules(models if count > 1 else []), count))
    names = {name for m in models for name in (*m.shapes, *m.module)}
    if names and all(name.startswith("module.") for name in names):
        model.prefix = "module."
    model.plan()
    for m in models:
        if m.groups is None and m.root.get("optimizer") is not None:
            why = "the optimizer of a training without ZeRO, which isn't read"
            model.skipped.append((f"{m.file.path}: optimizer", why))
    return model


def _rules(models: list[ModelFile]) -> Rule:
    return rules_of(models[0].root if models else Fields({}, ""))


def _degree(uri: str, models: list[ModelFile], files: Files) -> int:
    count = degree([m.shapes or m.module for m in models]) if models else 1
    if files.layers:
        ranks = sorted({tp for _, tp in files.layers})
        check_ranks(uri, "layer file of tensor-parallel rank", ranks)
        count = len(ranks)
    if models and len(models) % count:
        raise FormatError(
            f"{uri}: {len(models)} model-parallel ranks, of {count} tensor-parallel ones each"
        )
    return count


def check_ranks(uri: str, what: str, ranks: list[int]) -> None:
    """Check that ranks are counted from 0 without a gap.

    Raises
    ------
    FormatError
        With the first that is missing.
    """
    for expected, rank in enumerate(ranks):
        if rank != expected:
            raise FormatError(f"{uri}: the {what} {expected} is missing; there is one of {rank}")


def adam_of_groups(model: Model, mp: int, settings: list[Fields], told: Fields) -> Adam | None:
    """Hyper-parameters of the optimizer's groups; the one with most in matrices speaks for all."""
    groups = (model.files[mp].groups if mp < len(model.files) else None) or []
    sizes = [sum(size_of(s) for s in group.values() if len(s) > 1) for group in groups]
    sizes += [0] * len(settings)
    config = Fields({}, told.where)
    if mp < len(model.files) and isinstance(model.files[mp].root.get("ds_config"), dict):
        config = model.files[mp].root.fields("ds_config")
    adam = adam_of((s.data, float(size)) for s, size in zip(settings, sizes, strict=False))
    adam = adam or _configured(config)
    clip = plain_number(told.get("clip_grad")) or plain_number(config.get("gradient_clipping"))
    return replace(adam, clip=clip) if adam is not None and clip else adam


def _configured(config: Fields) -> Adam | None:
    """What the trainer's settings say of Adam; not the learning rate, which a schedule changes."""
    said: object = config.data
    for key in ("optimizer", "params"):
        said = said.get(key) if isinstance(said, dict) else None
    if not isinstance(said, dict):
        return None
    return adam_of([({k: v for k, v in said.items() if k != "lr"}, 1.0)])
