"""From names to a run: which folders, files and refs are checkpoints, of which branch and step."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from analysis360.core import Batch, Checkpoint, Fork, Run
from analysis360.errors import CheckpointNotFound, FormatError

__all__ = [
    "Layout",
    "Place",
    "are_tensors",
    "described",
    "is_usual",
    "layout_of",
    "not_found",
    "whole_model",
]

PATTERNS = (
    r"(?:(?P<branch>[A-Za-z0-9]+?)[_-])?ckpt[_-](?P<number>\d+)",
    r"checkpoint-(?P<step>\d+)",
    r"(?:(?P<branch>(?!global_)[A-Za-z0-9]+?)[_-])?(?:global_?)?step[_-]?(?P<step>\d+)"
    r"(?:-[\w-]+|_universal)?",
    r"iter[_-](?P<step>\d+)",
)
"""Names that checkpoints are known to have, tried in this order: LLM360, Hugging Face Trainer, OLMo
and Pythia, Megatron."""


class Place(NamedTuple):
    """Where in training a checkpoint is; None is what a name does not tell."""

    branch: str
    number: int | None = None
    step: int | None = None
    tokens: int | None = None


@dataclass(frozen=True)
class Layout:
    """How names of folders, files or refs say branch, number, step and tokens.

    Attributes
    ----------
    patterns : tuple of re.Pattern
    steps_per_number, steps_at_zero : int
        Steps between two numbers, and steps done at number 0.
    tokens_per_step : int or None
    batch : Batch or None
        Where the number of sequences a step rose with training, in place of `tokens_per_step`.
    unnamed_branch : str
        What a branch is called whose names do not tell.
    unstepped : tuple of str
        Branches whose steps are not known, though their numbers are.
    steps_before : mapping of str to int
        Steps of training before a branch whose names begin to count anew.
    numbers : mapping of str to int
        Numbers of checkpoints whose names do not tell.
    folder : str
        Where the checkpoints are.
    folders : bool
        Whether, on the Hub, they are folders of the main branch, whatever refs there are.
    said : bool
        Whether the patterns were given, so that what they don't match is no checkpoint.
    """

    patterns: tuple[re.Pattern[str], ...] = ()
    steps_per_number: int | None = None
    tokens_per_step: int | None = None
    unnamed_branch: str = "main"
    unstepped: tuple[str, ...] = ()
    folder: str = "."
    said: bool = False
    steps_at_zero: int = 0
    batch: Batch | None = None
    steps_before: Mapping[str, int] = field(default_factory=dict)
    numbers: Mapping[str, int] = field(default_factory=dict)
    folders: bool = False

    def place(self, name: str) -> Place | None:
        """Branch, number, step and tokens of a name; None if it is no checkpoint's."""
        if name in self.numbers:
            return self._at(self.unnamed_branch, self.numbers[name], None)
        for pattern in self.patterns:
            match = pattern.fullmatch(name)
            if match is None:
                continue
            said = match.groupdict()
            number, step = (_digits(said.get(k), k, name, pattern) for k in ("number", "step"))
            return self._at(said.get("branch") or self.unnamed_branch, number, step)
        return None

    def _at(self, branch: str, number: int | None, step: int | None) -> Place:
        if branch in self.unstepped:
            return Place(branch, number, step)
        if step is None and number is not None and self.steps_per_number is not None:
            step = number * self.steps_per_number + self.steps_at_zero
        if step is None:
            return Place(branch, number)
        step += self.steps_before.get(branch, 0)
        return Place(branch, number, step, self._tokens(step))

    def _tokens(self, step: int) -> int | None:
        if self.batch is not None:
            return self.batch.tokens(step)
        return None if self.tokens_per_step is None else step * self.tokens_per_step

    @property
    def asked(self) -> str:
        """The patterns, for an error message."""
        shown = ", ".join(p.pattern for p in self.patterns)
        return f"{'asked for' if self.said else 'tried'} {shown}"


def layout_of(said: Mapping[str, Any], asked: Layout) -> Layout:
    """What was asked for, else what a description says, else the names in common use."""
    named = said.get("checkpoints", {})
    given = asked.patterns or ((named["pattern"],) if "pattern" in named else ())
    batch = None if asked.tokens_per_step else named.get("batch")
    return Layout(
        given or tuple(re.compile(p) for p in PATTERNS),
        asked.steps_per_number or named.get("steps_per_number"),
        asked.tokens_per_step or named.get("tokens_per_step"),
        named.get("unnamed_branch", "main"),
        named.get("unstepped_branches", ()),
        named.get("folder", "."),
        said=bool(given),
        steps_at_zero=named.get("steps_at_zero", 0),
        batch=batch,
        steps_before=named.get("steps_before", {}),
        numbers=named.get("numbers", {}),
        folders=named.get("folders", False),
    )


def _digits(text: str | None, kind: str, name: str, pattern: re.Pattern[str]) -> int | None:
    if not text:
        return None
    if not text.isdecimal():
        raise FormatError(f"pattern {pattern.pattern!r} takes {text!r} of {name!r} for a {kind}")
    return int(text)


def is_usual(name: str) -> bool:
    """Whether a name is in common use for checkpoints, whatever a run calls its own."""
    return any(re.fullmatch(pattern, name) for pattern in PATTERNS)


def whole_model(layout: Layout, name: str) -> Place:
    """Place of a folder or repository that is one checkpoint itself."""
    return layout.place(name) or Place("main")


def not_found(
    where: str, layout: Layout, seen: Iterable[str], nothing: str = "nothing is"
) -> CheckpointNotFound:
    """Make the error that says what is there, and which names were looked for."""
    shown = ", ".join(list(seen)[:5]) or "nothing"
    verb = "it holds" if nothing == "nothing is" else "it has"
    return CheckpointNotFound(
        f"{where}: {nothing} named like a checkpoint; {verb} {shown}; {layout.asked}"
    )


def are_tensors(names: Iterable[str]) -> bool:
    """Whether any of these files may hold tensors."""
    ends = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar", ".distcp")
    return any(n.endswith(ends) or n.startswith("mp_rank_") for n in names)  # Megatron's folders


def described(said: Mapping[str, Any], name: str, home: str, entries: Sequence[Checkpoint]) -> Run:
    """Make a run of its description, which may be empty, and its checkpoints."""
    run, forks = said.get("name", name), said.get("forks", ())
    batch: Batch | None = said.get("checkpoints", {}).get("batch")
    length = said.get("checkpoints", {}).get("sequence_length")
    entries = _once(_parented(entries, forks), home)
    ordered = sorted(entries, key=lambda c: (c.branch, c.order, c.name))
    return Run(
        name=run, title=said.get("title", run), home=home,
        entries=tuple(replace(c, run=run) for c in ordered), family=said.get("family"),
        adam=said.get("adam"), learning_rate=said.get("learning_rate"), forks=forks,
        events=said.get("events", ()), sources=said.get("sources", {}),
        published=said.get("published", {}), batch=batch,
        sequence_length=length or (batch.length if batch else None),
    )  # fmt: skip


def _once(entries: Sequence[Checkpoint], home: str) -> Sequence[Checkpoint]:
    """Each checkpoint once: rows of a table are told apart by branch, number and step."""
    found: dict[tuple[object, ...], Checkpoint] = {}
    for mine in entries:
        place: tuple[object, ...] = mine.branch, mine.number, mine.step
        if mine.number is None and mine.step is None:
            place = mine.branch, None, mine.name
        other = found.setdefault(place, mine)
        # A commit is one content; fingerprints of two folders may agree by chance.
        if (other.uri, other.revision) != (mine.uri, mine.revision):
            at = f"step {mine.step}" if mine.number is None else f"number {mine.number}"
            names = " and ".join(f"{c.name!r} ({c.revision[:14]})" for c in (other, mine))
            raise FormatError(
                f"{home}: {names} are both {at} of branch {mine.branch!r}; "
                "say with pattern= which names are checkpoints, or remove one of them"
            )
    return tuple(found.values())


def _parented(entries: Sequence[Checkpoint], forks: Sequence[Fork]) -> Sequence[Checkpoint]:
    """Where a fork's parent goes by an unknown name, the only other branch is that parent."""
    there = {c.branch for c in entries}
    left = there - {f.branch for f in forks}
    for fork in forks:
        if fork.parent not in there and fork.branch in there and len(left) == 1:
            entries = [replace(c, branch=fork.parent) if c.branch in left else c for c in entries]
    return entries
