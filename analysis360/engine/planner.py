"""Make a plan: read headers, name tensors, pair checkpoints, cut jobs, count bytes and memory."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from analysis360.core import Adam, Checkpoint, Label, Run, TensorInfo, holds_optimizer
from analysis360.engine import schedule
from analysis360.engine.plan import Plan, size
from analysis360.engine.probe import measure_rate
from analysis360.engine.roles import find_references
from analysis360.engine.schedule import Job
from analysis360.engine.work import Works
from analysis360.errors import FormatError, MemoryBudgetError, StatisticError, StorageError
from analysis360.formats import Index, index_checkpoint
from analysis360.names import find_family, label
from analysis360.results.contents import together
from analysis360.stats import BETWEEN, DEFAULT, STORED, statistics
from analysis360.stats import states as derived
from analysis360.stats.base import Measure, Whole
from analysis360.storage import Store, open_store
from analysis360.storage.local import LocalStore
from analysis360.table import AGAINST

__all__ = ["nbytes", "plan", "workers"]

SCRATCH = 32 * 10**6
"""Bytes for the tiles of one worker and its share of results not yet written (measured, with a
margin)."""

PER_TENSOR, PER_PART = 2_000, 600
"""Bytes that the plan itself takes for one tensor of one checkpoint, and for each part of it
(measured, with a margin)."""

COMPILER = 150 * 10**6
"""Bytes that numba takes when it is loaded and compiles (measured, with a margin)."""

COMPILED_FROM = 2 * 10**9
"""Bytes to be read from which compiling pays."""

FLOATING = ("float64", "float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2")

INDEX_THREADS = 8
"""Headers are small and wait for the network: read those of several checkpoints at once."""

_UNITS = {
    "": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip


def nbytes(memory: float | str, name: str = "memory") -> int:
    """Read the size `name`, such as ``"16 GB"`` (decimal) or ``"1 GiB"``.

    Raises
    ------
    MemoryBudgetError
        If it is no size.

    Examples
    --------
    >>> nbytes("1.5 GB"), nbytes("1 GiB"), nbytes(10)
    (1500000000, 1073741824, 10)
    """
    if not isinstance(memory, str):
        return int(memory)
    text = memory.strip().lower()
    digits = text.rstrip("abcdefghijklmnopqrstuvwxyz")
    try:
        return int(float(digits) * _UNITS[text[len(digits) :]])
    except (KeyError, ValueError):
        raise MemoryBudgetError(f"{name}={memory!r} is not a size such as '16 GB'") from None


def workers() -> int:
    """Threads that measure: one a core that this process may use, four at most."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(4, usable or 1))


def plan(
    run: Run,
    statistics: Sequence[str] | None = None,
    *,
    states: Sequence[str] = ("weight",),
    against: Sequence[str] = ("previous",),
    memory: float | str = "4 GB",
    device: str = "cpu",
    per_head: bool = False,
    compiled: bool | None = None,
    probe: bool = False,
) -> Plan:
    """Plan what to read and measure; only headers are read.

    Parameters
    ----------
    run : Run
        With its selection of checkpoints, layers and modules.
    statistics : sequence of str, optional
        Names of registered statistics; by default those that `list_statistics` marks ``default``:
        norms, moments, changes and Adam's basic sums. Histograms, rows and spectra are asked for by
        name. Those over Adam's moments are skipped where none are stored.
    states : sequence of str
        Stored (``weight``, ``exp_avg``, ``exp_avg_sq``, ``master``) or derived (``update``) states
        to which the statistics of one tensor are applied.
    against : sequence of {"previous", "partner", "ancestor"}
        Checkpoints to compare with: the preceding selected one of the branch, the other branch at
        the same tokens, the fork point.
    memory : float or str
        Private host memory for reading and measuring, above what the process holds already, in
        bytes or as ``"16 GB"``. The table that is made at the end comes on top: about 0.3 kB for
        each stored row of sums.
    device : str
        ``"cpu"`` or a CUDA device.
    per_head : bool
        Divide the matrices of queries, keys and values by attention head: rows of the table are
        then heads, named ``…q_proj.weight[3]``, with their number in the column ``head``.
    compiled : bool, optional
        Take sums on the CPU by loops that numba compiles, several times faster than torch. By
        default where numba is installed and at least 2 GB are to be read, since compiling takes
        seconds. Both agree to rounding.
    probe : bool
        Read for about two seconds what the plan would read, to estimate how long it takes; the
        estimate is shown with the plan, and the rate is its attribute `rate`.

    Returns
    -------
    Plan

    Raises
    ------
    StatisticError
        If a statistic, state or role is unknown.
    MemoryBudgetError
        If the budget is too small; the message names what does not fit.
    FormatError, StorageError
        If a checkpoint cannot be read.

    Examples
    --------
    >>> import analysis360 as a360, torch
    >>> run = a360.open_run({"w": torch.ones(4, 4)})
    >>> a360.plan(run, ["rms"], against=[]).nbytes
    64
    """
    for text in (statistics, states, against):
        if isinstance(text, str):  # before it becomes a tuple of letters
            raise StatisticError(f"{text!r} is one name; give a list: [{text!r}]")
    states, against = tuple(states), tuple(against)
    wanted = _checked(statistics, states, against)
    _check_device(device)
    entries, indices, opened = _ordered(run, *_indices(run, per_head))
    skipped = [
        (f"{c.name}: {key}", why) for c, i in zip(entries, indices) for key, why in i.skipped
    ]
    tensors, labels = _selected(run, entries, indices, skipped)
    adam = tuple(_adam(run, c, i) for c, i in zip(entries, indices))
    references = find_references(run, entries, against, skipped)
    kept = _usable(
        wanted, run, entries, tensors, labels, adam, references, against, states, skipped
    )
    made = Plan(
        name=run.name, checkpoints=tuple(entries), tensors=tensors, labels=labels, adam=adam,
        references=references, between=_between(run, entries, adam, references),
        statistics=kept, states=states, against=against, jobs=(), skipped=tuple(_counted(skipped)),
        probes=tuple((c, *probe) for c, index in enumerate(indices) for probe in index.probes),
        memory=nbytes(memory), device=device, opened=opened,
    )  # fmt: skip
    made = _budgeted(_compiled(_with_jobs(made), compiled))
    return replace(made, rate=measure_rate(made)) if probe else made


def _between(
    run: Run,
    entries: Sequence[Checkpoint],
    adam: Sequence[Adam],
    references: Mapping[tuple[int, str], int],
) -> dict[tuple[int, str], tuple[float, float, float]]:
    """Learning rates between each checkpoint and those it is compared with; empty if not known."""
    found = {}
    for (c, role), r in references.items():
        first, last = sorted(e.step if e.step is not None else -1 for e in (entries[r], entries[c]))
        if run.learning_rate is not None and first >= 0:
            decay = adam[c].weight_decay
            decay = math.nan if decay is None else decay
            found[c, role] = run.learning_rate.between(first, last, decay)
    return found


def _compiled(made: Plan, wanted: bool | None) -> Plan:
    """Decide by whom sums are taken; on a CUDA device that is torch."""
    from analysis360.stats import compiled as twins

    if wanted and not twins.available():
        raise StatisticError(
            f"compiled=True needs numba (pip install numba), and {twins.SWITCH} not to be 0"
        )
    if wanted is None:
        stored = sum(t.nbytes for mine in made.tensors for t in mine.values())
        wanted = twins.available() and stored >= COMPILED_FROM
    return replace(made, compiled=bool(wanted) and made.device == "cpu")


def _checked(
    wanted: Sequence[str] | None, states: Sequence[str], against: Sequence[str]
) -> tuple[str, ...]:
    for state in states:
        if state not in STORED and state not in derived:
            raise StatisticError(
                f"unknown state {state!r}; allowed: {', '.join((*STORED, *derived))}"
            )
    for role in against:
        if role not in AGAINST:
            raise StatisticError(f"unknown against {role!r}; allowed: {', '.join(AGAINST)}")
    names = tuple(dict.fromkeys(DEFAULT if wanted is None else wanted))
    for name in names:
        try:
            entry = statistics[name]
        except StatisticError as error:
            raise StatisticError(f"{error} analysis360.list_statistics() has them all") from None
        if any(m.pair for m in entry.measures) and not against and wanted is not None:
            raise StatisticError(f"{name!r} compares checkpoints: say against=, one of {AGAINST}")
    if not against:
        names = tuple(n for n in names if not any(m.pair for m in statistics[n].measures))
    return names


def _check_device(device: str) -> None:
    import torch

    try:
        kind = torch.device(device).type
    except RuntimeError:
        kind = "unknown"
    if kind == "cpu" or (kind == "cuda" and torch.cuda.is_available()):
        return
    there = "no CUDA device is available" if kind == "cuda" else "allowed: cpu, cuda, cuda:N"
    raise StatisticError(f"device={device!r}: {there}")


def _ordered(
    run: Run, indices: Sequence[Index], opened: Mapping[int, Store]
) -> tuple[list[Checkpoint], list[Index], dict[int, Store]]:
    """By tokens (else step), parents before the branches that left them.

    A step that only the checkpoint's own files tell is filled in.
    """
    entries = [
        replace(c, step=index.step) if c.step is None and index.step is not None else c
        for c, index in zip(run.entries, indices)
    ]
    tokens = all(c.tokens is not None for c in entries)
    parents = {fork.branch: fork.parent for fork in run.forks}

    def depth(branch: str) -> int:
        above: list[str] = []
        while branch in parents and branch not in above:
            above.append(branch)
            branch = parents[branch]
        return len(above)

    def place(i: int) -> tuple[int, int, int, str, str]:
        c = entries[i]
        first = c.tokens if tokens and c.tokens is not None else c.order
        return first, depth(c.branch), c.order, c.branch, c.name

    order = sorted(range(len(entries)), key=place)
    kept = {new: opened[old] for new, old in enumerate(order) if old in opened}
    return [entries[i] for i in order], [indices[i] for i in order], kept


def _indices(run: Run, per_head: bool) -> tuple[list[Index], dict[int, Store]]:
    """Headers of every checkpoint, and the stores that cost requests to open.

    Those are kept for the run; a folder is opened again then, so that files changed in between are
    noticed.
    """
    begun: list[Store] = []

    def one(checkpoint: Checkpoint) -> tuple[Index, Store]:
        try:
            store = open_store(checkpoint.uri, checkpoint.revision, files=checkpoint.files)
            begun.append(store)
            return index_checkpoint(store, run.family, per_head=per_head), store
        except (FormatError, StorageError) as error:
            raise type(error)(f"checkpoint {checkpoint.name}: {error}") from error

    with ThreadPoolExecutor(INDEX_THREADS) as pool:
        try:
            found = list(pool.map(one, run.entries))
        except BaseException:
            for store in begun:
                store.interrupt()
            raise
    opened = {c: s for c, (_, s) in enumerate(found) if not isinstance(s, LocalStore)}
    for _, store in found:
        store.close()
    return [index for index, _ in found], opened


def _selected(
    run: Run,
    entries: Sequence[Checkpoint],
    indices: Sequence[Index],
    skipped: list[tuple[str, str]],
) -> tuple[tuple[dict[tuple[str, str], TensorInfo], ...], dict[str, Label]]:
    """Tensors of the selection; names get their labels, other shapes and dtypes are left out."""
    labels = {}
    family = run.family or find_family({t.name for index in indices for t in index.tensors})
    shapes: dict[str, tuple[int, ...]] = {}
    kept: list[dict[tuple[str, str], TensorInfo]] = []
    refused: list[set[str]] = []
    for checkpoint, index in zip(entries, indices):
        there = {tensor.name for tensor in index.tensors}
        mine: dict[tuple[str, str], TensorInfo] = {}
        for tensor in index.tensors:
            if tensor.name not in labels:
                labels[tensor.name] = label(tensor.name, family)
            where = f"{checkpoint.name}: {tensor.key}"
            if not run.keeps(labels[tensor.name]):
                continue
            if tensor.state != "step" and tensor.dtype not in FLOATING:
                skipped.append((where, f"dtype {tensor.dtype} is not floating point"))
            elif tensor.numel == 0:
                skipped.append((where, "it has no elements"))
            elif tensor.state == "step":
                mine[tensor.name, "step"] = tensor
            elif shapes.setdefault(tensor.name, tensor.shape) != tensor.shape:
                was = list(shapes[tensor.name])
                skipped.append((where, f"its shape is {list(tensor.shape)}, elsewhere {was}"))
            else:
                mine[tensor.name, tensor.state] = tensor
        kept.append(mine)
        refused.append(there - {name for name, _ in mine})
    names = {name for mine in kept for name, _ in mine}
    for checkpoint, mine, known in zip(entries, kept, refused):
        for name in sorted(names - known - {name for name, _ in mine}):
            skipped.append((f"{checkpoint.name}: {name}", "this checkpoint has no such tensor"))
    return tuple(kept), {name: labels[name] for name in labels if name in names}


def _adam(run: Run, checkpoint: Checkpoint, index: Index) -> Adam:
    """What the checkpoint holds, else what the run says; the learning rate is that of its step."""
    known = (index.adam or Adam()).filled(run.adam)
    step = checkpoint.step if checkpoint.step is not None else index.step
    if known.lr is None and run.learning_rate is not None and step is not None:
        known = replace(known, lr=run.learning_rate.at(step))
    return known


def _usable(
    wanted: Sequence[str],
    run: Run,
    entries: Sequence[Checkpoint],
    tensors: Sequence[Mapping[tuple[str, str], TensorInfo]],
    labels: Mapping[str, Label],
    adam: Sequence[Adam],
    references: Mapping[tuple[int, str], int],
    against: Sequence[str],
    states: Sequence[str],
    skipped: list[tuple[str, str]],
) -> tuple[str, ...]:
    """Statistics that at least one checkpoint has the inputs for; whatever is missing is said."""
    stored = [{state for _, state in mine} for mine in tensors]
    known = [
        {"step"} if c.step is not None or "step" in mine else set()
        for c, mine in zip(entries, stored)
    ]
    for found, a in zip(known, adam):
        found |= {name for name in Adam.__dataclass_fields__ if getattr(a, name) is not None}
        if run.learning_rate is not None:
            found |= {"lr_sum", "lr_sq_sum"}
            found |= {"decay"} if a.weight_decay is not None else set()
    kept = []
    for name in wanted:
        measures = statistics[name].measures
        named = {s for m in measures for s in m.named_states}
        enters = (*Adam.__dataclass_fields__, *BETWEEN, "step")
        told = {s for s in statistics[name].scalars if s in enters}
        lacking = [s for s in sorted(named) if not any(s in mine for mine in stored)]
        unknown = {s for s in told if not any(s in found for found in known)}
        unfit = _unfit(measures, tensors, labels)
        if lacking and set(lacking) <= {"exp_avg", "exp_avg_sq"}:
            skipped.append((name, _no_optimizer(entries, wanted)))
        elif lacking:
            skipped.append((name, f"no {' or '.join(lacking)} in any selected checkpoint"))
        elif unknown:
            skipped.append((name, f"{_settings(unknown, run)} unknown for {run.name}"))
        elif unfit:
            skipped.append((name, unfit))
        elif any(m.pair for m in measures) and not references:
            roles = " or ".join(against)
            skipped.append((name, f"no selected checkpoint has one to compare with ({roles})"))
        else:
            kept.append(name)
            for c, mine, found in zip(entries, stored, known):
                if named - mine:
                    why = f"no {' or '.join(sorted(named - mine))} in it"
                    skipped.append((f"{c.name}: {name}", why))
                elif told - found:
                    why = f"{_settings(told - found, run)} unknown for it"
                    skipped.append((f"{c.name}: {name}", why))
    if any(not m.named_states for name in kept for m in statistics[name].measures):
        for state in states:
            made_of = {state} if state in STORED else set(derived[state].stored)
            for c, mine in zip(entries, stored):
                if made_of - mine:
                    why = f"no {' or '.join(sorted(made_of - mine))} in it"
                    skipped.append((f"{c.name}: state {state}", why))
    return tuple(kept)


def _settings(unknown: Iterable[str], run: Run) -> str:
    """Scalars that are not known, by what a run's description calls them."""
    rates = {*BETWEEN, "lr"} if run.learning_rate is None else set()
    named = {"learning_rate" if scalar in rates else scalar for scalar in unknown}
    if "decay" in unknown and run.learning_rate is not None:
        named = named - {"decay"} | {"weight_decay"}
    return ", ".join(sorted(named))


def _unfit(
    measures: Sequence[Measure],
    tensors: Sequence[Mapping[tuple[str, str], TensorInfo]],
    labels: Mapping[str, Label],
) -> str:
    """Why no selected tensor can be measured so; empty if one can, or if there is none at all."""
    shapes = {t.shape for mine in tensors for (_, state), t in mine.items() if state != "step"}
    for measure in measures:
        if isinstance(measure, Whole) and measure.of:
            if not together(labels, measure):
                return _apart(measure, labels)
        elif shapes and not any(measure.fits(shape) for shape in shapes):
            vector = isinstance(measure, Whole) and measure.ndim == 1
            return f"no selected tensor is a {'vector' if vector else 'matrix'}"
    return ""


def _apart(step: Whole, labels: Mapping[str, Label]) -> str:
    """Why no layer has the tensors that a step takes together."""
    modules = list(step.of.values())
    there = {label.module for label in labels.values()}
    missing = [module for module in modules if module not in there]
    if missing:
        return f"no selected tensor is {' or '.join(missing)}"
    first = [label for label in labels.values() if label.module == modules[0]]
    if step.by_head and all(label.head is None for label in first):
        return "heads are not divided: per_head=True does, where their number is known"
    return f"no layer has one each of {', '.join(modules)}"


def _no_optimizer(entries: Sequence[Checkpoint], wanted: Sequence[str]) -> str:
    """Why there are no moments: no file is named as trainers name theirs, or none of those has any.

    Ends with what compares weights alone, which is what is left to tell how training moved.
    """
    named = [f"{c.name}/{f}" for c in entries for f in c.files if holds_optimizer(f)]
    many = f"any of {len(entries)} checkpoints" if len(entries) > 1 else "the checkpoint"
    why = f"no optimizer state in {many}"
    if named:
        why = f"no moments in {many}, though there are files such as {named[0]}"
    alone = [n for n in statistics if any(m.pair for m in statistics[n].measures)]
    alone = [n for n in alone if n in wanted] or alone
    more = " and others" if len(alone) > 3 else ""
    return f"{why}; from weights alone: {', '.join(alone[:3])}{more}"


def _counted(skipped: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Say a reason once, with how often it holds and the first few of what it is about."""
    grouped: dict[str, list[str]] = {}
    for what, why in skipped:
        grouped.setdefault(why, []).append(what)
    said = []
    for why, whats in grouped.items():
        more = f" and {len(whats) - 3} more" if len(whats) > 3 else ""
        said.append((", ".join(whats[:3]) + more, why))
    return said


def _with_jobs(made: Plan) -> Plan:
    need = {s for m in made.measures for s in (*m.named_states, *m.reference_states)}
    if any(not m.named_states for m in made.measures):
        need |= {s for made_of in made.made_of.values() for s in made_of}
    order: dict[str, tuple[int, ...]] = {}
    for mine in made.tensors:  # in file order of the first checkpoint that has them
        there = [t for (_, state), t in mine.items() if state in need]
        for tensor in sorted(there, key=lambda t: (t.parts[0].file, t.parts[0].offset)):
            order.setdefault(tensor.name, tensor.shape)
    spectra = [m for m in made.measures if isinstance(m, Whole)]
    whole = {n for n, shape in order.items() if any(m.fits(shape) and not m.of for m in spectra)}
    whole |= {  # the bytes of its rows lie between each other: taken by rows, each is read often
        name
        for mine in made.tensors
        for (name, _), t in mine.items()
        if any(part.interleaved for part in t.parts)
    }
    columns = {
        name: t.key
        for mine in made.tensors
        for (name, _), t in mine.items()
        if any(part.stride is not None and not part.interleaved for part in t.parts)
    }
    tied = [{*members} for m in spectra if m.of for members in together(made.labels, m).values()]
    jobs = schedule.group(order, whole, columns, tied)
    return replace(made, jobs=tuple(Job(cut) for cut in jobs))


def _budgeted(made: Plan) -> Plan:
    """Count requests, bytes and the peak; refuse a budget that is too small."""
    stored = [tensor for mine in made.tensors for tensor in mine.values()]
    fixed = SCRATCH * workers() + PER_TENSOR * len(stored)
    fixed += PER_PART * sum(len(tensor.parts) for tensor in stored)
    fixed += COMPILER if made.compiled else 0
    most, most_work, which, read, requests = 0, 0, "nothing", 0, 0
    works = Works(made)
    tied = {m: together(made.labels, m) for m in made.measures if isinstance(m, Whole) and m.of}
    for job in made.jobs:
        work = works.whole(job)
        steps = list(work.steps(made))
        requests += sum(len(reads) for _, reads in steps)
        read += sum(r.nbytes for _, reads in steps for r in reads)
        besides = _workspace(made, job, tied)
        held = schedule.peak(steps, work.until)
        most_work = max(most_work, besides)
        if held + besides > most:
            names = list(job.spans)
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            most, which = held + besides, names[0] + more
    if fixed + most > made.memory:
        spectra = any(isinstance(m, Whole) for m in made.measures)
        raise MemoryBudgetError(
            f"memory={size(made.memory)} is too small: {which} needs {size(most)} in "
            f"{len(made.checkpoints)} checkpoints, and {size(fixed)} are needed besides; "
            f"give {math.ceil((fixed + most) / 1e7) / 100:.2f} GB or more"
            + (", or leave out spectra, which hold whole matrices" if spectra else "")
        )
    totals = {"nbytes": read, "requests": requests, "fixed": fixed, "work": most_work}
    return replace(made, peak_nbytes=fixed + most, totals=totals)


def _workspace(made: Plan, job: Job, tied: Mapping[Whole, Mapping[str, tuple[str, ...]]]) -> int:
    """Workspace of the whole-matrix steps of a checkpoint that may run at once."""
    sizes = []
    for m in made.measures:
        for name in job.spans if isinstance(m, Whole) else ():
            shape = made.shape(name)
            if not isinstance(m, Whole) or not m.fits(shape) or (m.of and name not in tied[m]):
                continue
            members = tied[m][name] if m.of else (name,)
            shapes = tuple(made.shape(member) for member in members)
            work = m.workspace(shapes if m.of else shape)
            # A derived state is made of float32 copies of what is stored, and one more of its own
            elements = sum(math.prod(one) for one in shapes) * (2 if m.pair else 1)
            for state, of in made.made_of.items():
                copies = len(of) + 1 if state not in STORED else 0
                sizes.append(work + 4 * copies * elements)
    return sum(sorted(sizes)[-workers() :])
