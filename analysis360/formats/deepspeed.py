"""Checkpoints as DeepSpeed's ranks write them: ZeRO 1, 2 and 3, and its bf16 optimizer.

Sources: ``deepspeed/utils/zero_to_fp32.py``, ``deepspeed/runtime/engine.py``,
``deepspeed/runtime/zero/stage_1_and_2.py``, ``stage3.py`` and ``runtime/bf16_optimizer.py``.
"""

from __future__ import annotations

from collections.abc import Mapping

from analysis360.core import Adam
from analysis360.errors import FormatError
from analysis360.formats.base import Format, HeaderReader, Index, formats
from analysis360.formats.deepspeed_files import Files, by_threads, find_files, kinds
from analysis360.formats.deepspeed_model import (
    Model,
    adam_of_groups,
    add_weights,
    check_ranks,
    open_model,
)
from analysis360.formats.deepspeed_ranks import Rank, pieces, read_rank
from analysis360.formats.fields import read_number
from analysis360.formats.layout import Assembly
from analysis360.formats.torch_file import open_torch
from analysis360.storage.base import Store

__all__ = ["DeepSpeedFormat"]

_TAIL = 16_384  # bytes: the directory of a rank's few buffers; there may be hundreds of ranks


class DeepSpeedFormat(Format):
    """Weights, fp32 masters and Adam's moments of DeepSpeed's ZeRO, as training saves them.

    Read are ``…model_states.pt`` and ``…optim_states.pt`` at the top or in one folder
    (``global_step100/``). Masters and moments are put together from the ranks' flat buffers without
    their padding, weights (``module``) are those of 16 bits. Names are the module's. Of
    tensor-parallel slices those parameters are read for which a rule says how they fit.
    """

    name = "deepspeed"

    def matches(self, files: Mapping[str, int]) -> bool:
        """Whether there is a file of a rank, and none of a universal checkpoint."""
        found = kinds(files)
        return "ranks" in found and "universal" not in found

    def index(self, store: Store) -> Index:
        """List the tensors of all ranks.

        Raises
        ------
        FormatError
            If the file of a rank is missing or damaged, ranks disagree or hold more or less than
            the parameters need, or there are several checkpoints.
        """
        reader = HeaderReader(store)
        files = find_files(store.uri, reader.files)
        model = open_model(reader, files)
        made = Assembly(store.uri)
        add_weights(reader, files, model, made)
        ranks = _ranks(reader, files)
        for mp, held in ranks.items():
            _add_states(model, made, mp, held)
        model.skipped += [(path, "weights of experts, which aren't read") for path in files.experts]
        found = [rank for held in ranks.values() for rank in held]
        tensors = made.tensors()
        if not tensors:
            listed = ", ".join([*files.models.values(), *files.optims.values()][:5])
            raise FormatError(f"{store.uri}: no weights and no optimizer state in {listed}")
        return Index(
            tuple(tensors), _adam(model, found), _step(reader, model, found),
            tuple(dict.fromkeys(model.skipped)), reader.probes,
        )  # fmt: skip


formats.add("deepspeed", DeepSpeedFormat())


def _ranks(reader: HeaderReader, files: Files) -> dict[int, list[Rank]]:
    """Read the optimizer files: by model-parallel rank, in the order of the data-parallel ones."""
    uri = reader.store.uri
    ranks: dict[int, list[int]] = {}
    for mp, dp in sorted(files.optims):
        ranks.setdefault(mp, []).append(dp)
    check_ranks(uri, "optim_states.pt of model-parallel rank", list(ranks))
    for mp, found in ranks.items():
        check_ranks(uri, f"optim_states.pt of mp_rank_{mp:02d} and data-parallel rank", found)
    if len(ranks) not in (0, len({mp for mp, _ in files.models})):
        raise FormatError(
            f"{uri}: optim_states.pt of {len(ranks)} model-parallel ranks, but model_states.pt, "
            f"which names the parameters, of {len({mp for mp, _ in files.models})}"
        )
    read = by_threads(
        lambda at: read_rank(open_torch(reader, files.optims[at], tail=_TAIL), *at),
        sorted(files.optims),
    )
    found_ranks: dict[int, list[Rank]] = {}
    for rank in read:
        found_ranks.setdefault(rank.mp, []).append(rank)
    return found_ranks


def _add_states(model: Model, made: Assembly, mp: int, ranks: list[Rank]) -> None:
    file, count = model.files[mp], len(ranks[0].groups)
    groups = file.groups
    if groups is None or (file.ungrouped and ranks[0].stage < 3 and count != 1):
        why = "is missing" if groups is None else f"doesn't tell its {count} groups apart"
        where = f"{file.file.path}: param_shapes"
        model.skipped.append((where, f"{why}, so the parameters in the flat buffers aren't known"))
        return
    for piece in pieces(groups, ranks, model.skipped):
        model.place(made, mp, piece.name, piece.state, piece.key, piece.stretch)


def _adam(model: Model, ranks: list[Rank]) -> Adam | None:
    if not ranks:
        return None
    return adam_of_groups(model, ranks[0].mp, ranks[0].settings, ranks[0].told)


def _step(reader: HeaderReader, model: Model, ranks: list[Rank]) -> int | None:
    """Steps as the optimizer counted them, else the trainer."""
    for rank in ranks[:1]:
        for value in rank.steps:
            step = read_number(reader, rank.file, value, "step")
            if step is not None:
                return int(step)
    return next((m.step for m in model.files if m.step is not None), None)
