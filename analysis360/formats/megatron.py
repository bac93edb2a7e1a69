"""Checkpoints as Megatron-LM's trainer writes them: one folder a rank, tensors cut and fused."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from analysis360.errors import FormatError
from analysis360.formats.base import Format, HeaderReader, Index, formats
from analysis360.formats.layout import Assembly, place
from analysis360.formats.megatron_flat import Piece
from analysis360.formats.megatron_names import Local, layer_of, locate
from analysis360.formats.megatron_optimizer import groups_of, read_adam, states
from analysis360.formats.megatron_rank import MAIN, RANK_FILE, Rank, open_rank, places
from analysis360.storage.base import Store

__all__ = ["MegatronFormat"]


class MegatronFormat(Format):
    """Checkpoints of Megatron-LM: ``mp_rank_TT_PPP/model_optim_rng.pt``.

    The names of its first models and those of its core are read, divided by tensor and pipeline
    parallelism, with the interleaved pipeline too. Fused and divided tensors are given the names
    and shapes of Hugging Face's Llama; what all ranks hold is read once, and rows that pad the
    vocabulary are not read. Optimizer states are those of its 16-bit and 32-bit optimizers, in the
    order of the model's parameters, and the flat buffers of the distributed one. Mixtures of
    experts and the formats of ``dist_checkpointing`` are not read here.
    """

    name = "megatron"

    def matches(self, files: Mapping[str, int]) -> bool:
        """Whether there is a rank's file."""
        return any(RANK_FILE.fullmatch(path) for path in files)

    def index(self, store: Store) -> Index:
        """List the tensors of all ranks.

        Raises
        ------
        FormatError
            If a rank is missing, two contradict each other or their arguments, or a file is
            damaged.
        """
        reader = HeaderReader(store)
        there = places(store.uri, reader.files)
        with ThreadPoolExecutor(min(8, len(there))) as pool:  # headers wait for the network
            ranks = list(pool.map(lambda rank: open_rank(reader, *rank), there))
        found = _Found(store.uri, ranks)
        return found.index(reader)


formats.add("megatron", MegatronFormat())


class _Found:
    """Puts together what the ranks hold."""

    def __init__(self, uri: str, ranks: list[Rank]) -> None:
        self.uri, self.ranks, self.first = uri, ranks, ranks[0]
        self.model = self.first.model
        self.skipped = list(dict.fromkeys(note for rank in ranks for note in rank.skipped))
        self._check_ranks()
        self._check_stages()
        self.starts = self._starts()

    def index(self, reader: HeaderReader) -> Index:
        """Give all tensors."""
        weights, moments = Assembly(self.uri), Assembly(self.uri)
        pieces: list[tuple[dict[str, Local], Piece]] = []
        lost: dict[str, str] = {}
        for rank in self.ranks:
            known = self._known(rank)
            for param in rank.params:
                if param.key in known:
                    stretch = rank.file.stretch(param.value, param.key)
                    piece = Piece(param.key, "weight", param.key, stretch)
                    _put(weights, known, piece)
            found, missing = states(rank)
            pieces += [(known, piece) for piece in found if piece.param in known]
            self.skipped += [(f"{rank.file.path}: {s}", why) for s, why in missing.items()]
            lost |= missing
        for known, piece in pieces:
            if piece.state not in lost:
                _put(moments, known, piece)
        tensors = (*weights.tensors(), *moments.tensors(self.skipped))
        adam = read_adam(self.first)
        self._note()
        return Index(tensors, adam, self.first.step, tuple(self.skipped), reader.probes)

    def _check_ranks(self) -> None:
        """All ranks that the arguments speak of are there, and say the same."""
        model, first = self.model, self.first
        for rank in self.ranks:
            if rank.model != model or rank.step != first.step:
                what = "arguments" if rank.model != model else "iteration"
                raise FormatError(
                    f"{rank.file.where}: its {what} and those of {first.file.path} differ"
                )
        there = {(rank.tp, rank.pp) for rank in self.ranks}
        wanted = ((t, p) for p in range(model.stages) for t in range(model.ranks))
        missing = next((place for place in wanted if place not in there), None)
        if missing is not None or len(there) != model.ranks * model.stages:
            which = "too many" if missing is None else "missing"
            tp, pp = missing or next(
                (t, p) for t, p in sorted(there) if t >= model.ranks or p >= model.stages
            )
            name = f"mp_rank_{tp:02d}_{pp:03d}" if model.stages > 1 else f"mp_rank_{tp:02d}"
            raise FormatError(
                f"{self.uri}: {name}/{MAIN} is {which}: the arguments in {first.file.path} say "
                f"{model.ranks} tensor-parallel ranks by {model.stages} pipeline stages"
            )

    def _check_stages(self) -> None:
        """Tensor-parallel ranks of a stage have the same parameters."""
        firsts = {rank.pp: rank for rank in self.ranks if rank.tp == 0}
        for rank in self.ranks:
            other = firsts[rank.pp]
            names = [[param.name for param in chunk] for chunk in rank.chunks]
            if names != [[param.name for param in chunk] for chunk in other.chunks]:
                odd = {p.key for p in rank.params} ^ {p.key for p in other.params}
                what = repr(min(odd)) if odd else "the order of the parameters"
                raise FormatError(f"{rank.file.where}: {what} differs from {other.file.path}")
            if len(rank.chunks) != len(self.first.chunks):
                raise FormatError(
                    f"{rank.file.where}: {len(rank.chunks)} pieces of the model, in "
                    f"{self.first.file.path} {len(self.first.chunks)}"
                )

    def _starts(self) -> dict[tuple[int, int], int]:
        """Number in the model of the first block of each piece of each stage.

        Blocks go through all stages piece by piece; they are counted, since stages may differ.
        """
        starts: dict[tuple[int, int], int] = {}
        total = 0
        stages = [rank for rank in self.ranks if rank.tp == 0]
        for chunk in range(len(self.first.chunks)):
            for rank in stages:
                numbers = (layer_of(param.name) for param in rank.chunks[chunk])
                layers = {number for number in numbers if number is not None}
                if layers != set(range(len(layers))):
                    raise FormatError(
                        f"{rank.file.where}: blocks {sorted(layers)[:8]} are not counted from 0"
                    )
                starts[chunk, rank.pp] = total
                total += len(layers)
        if total != self.model.layers:
            raise FormatError(
                f"{self.uri}: {total} blocks in all stages; the arguments in "
                f"{self.first.file.path} say {self.model.layers}"
            )
        return starts

    def _known(self, rank: Rank) -> dict[str, Local]:
        """What each parameter of a rank is; those that are not known are noted."""
        found: dict[str, Local] = {}
        for number, chunk in enumerate(rank.chunks):
            for param in chunk:
                local = locate(self.model, param.name, rank.tp, self.starts[number, rank.pp])
                if local is None:
                    self.skipped.append((param.key, "no known parameter of a GPT model"))
                    continue
                if local.shape != param.value.shape:
                    raise FormatError(
                        f"{rank.file.where}: {param.key!r} has shape {list(param.value.shape)}; by "
                        f"the arguments it should have {list(local.shape)}"
                    )
                found[param.key] = local
        return found

    def _note(self) -> None:
        args, model = self.first.args, self.model
        if not model.vocab_told:
            why = f"its {model.padded} rows may contain padding: 'vocab_size' does not tell"
            self.skipped.append(("model.embed_tokens.weight", why))
        if args.flag("apply_layernorm_1p") or args.flag("layernorm_zero_centered_gamma"):
            self.skipped.append(("weights of norms", "kept as stored: their difference from one"))
        steps = [n for g in groups_of(self.first) if type(n := g.get("step")) is int]
        if set(steps) - {self.first.step}:
            why = f"{max(steps)} in the optimizer, {self.first.step} iterations; those are used"
            self.skipped.append(("step", why))


def _put(made: Assembly, known: Mapping[str, Local], piece: Piece) -> None:
    local = known[piece.param]
    for strip, part in place(local.shape, local.strips, piece.stretch):
        made.put(strip.name, piece.state, piece.key, strip.shape, part)
