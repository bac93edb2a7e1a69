"""The nouns: Run, Checkpoint, Fork, Event. Frozen, and without input or output.

A `Run` is a series of checkpoints, perhaps in several branches. A `Checkpoint` says where its files
are. The nouns of `analysis360.tensors` say where tensors lie in them, and those of
`analysis360.recipe` how a run was trained; all can be imported from here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import pandas as pd

from analysis360.errors import CheckpointNotFound, FormatError
from analysis360.recipe import Adam, Batch, LearningRate
from analysis360.selection import Selector, chosen, frozen
from analysis360.tensors import DTYPE_BYTES, Label, Part, TensorInfo

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
    batch : Batch or None
        Where the number of sequences a step rose with training.
    sequence_length : int or None
        Tokens of a sequence.
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
    batch: Batch | None = None
    sequence_length: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", frozen(self.layers))
        object.__setattr__(self, "modules", frozen(self.modules))

    @property
    def checkpoints(self) -> pd.DataFrame:
        """One row per checkpoint: branch, number, step, tokens, name, states, bytes, revision, uri.

        Bytes are missing where they have not been asked for yet, as on a plain web server.
        """
        rows = [
            {
                "branch": c.branch, "number": c.number, "step": c.step, "tokens": c.tokens,
                "name": c.name, "states": _states(c.files), "bytes": c.nbytes,
                "revision": c.revision, "uri": c.uri,
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
        branch, number, step = frozen(branch), frozen(number), frozen(step)
        kept = tuple(
            c for c in self.entries
            if chosen(c.branch, branch) and chosen(c.number, number) and chosen(c.step, step)
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
        if not chosen(label.layer, self.layers):
            return False
        wanted = self.modules
        if wanted is None or isinstance(wanted, slice):
            return chosen(label.module, wanted)
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
