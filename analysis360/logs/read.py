"""A log of any make into a LOSS frame."""

from __future__ import annotations

from os import PathLike, fspath
from pathlib import Path

import pandas as pd

from analysis360.core import Run
from analysis360.errors import LogError
from analysis360.logs.columns import FIRST, canonical
from analysis360.logs.files import parse_log
from analysis360.logs.restarts import stitch
from analysis360.logs.units import Units, fill_units, units_of
from analysis360.logs.wandb_api import is_address, read_address

__all__ = ["read_loss"]

_LAST = ("samples", "segment", "overwritten_by", "tokens_from", "samples_from")


def read_loss(
    source: Run | str | PathLike[str] | pd.DataFrame,
    *,
    which: str = "loss",
    branch: str | None = None,
    tokens_per_step: int | None = None,
    sequence_length: int | None = None,
) -> pd.DataFrame:
    """Read a training log into a LOSS frame.

    Understood, told apart by what is in them (`analysis360.logs.formats`):

    - CSV, TSV and JSON lines, whoever wrote them;
    - TensorBoard event files, or a folder of them, every point (extra ``tensorboard``);
    - Weights & Biases: a chart's CSV, an offline run's folder or ``.wandb`` file, and by address a
      run on a server, with its whole history (extra ``wandb`` for the last two);
    - the ``trainer_state.json`` of the Hugging Face Trainer, or a checkpoint folder with one;
    - what Megatron-LM, Megatron-DeepSpeed, GPT-NeoX, DeepSpeed's pipeline engine, OLMo and
      torchtitan print, and llm.c's ``main.log``; a validation loss becomes the column ``val_loss``
      of that step's row;
    - a DataFrame.

    Parameters
    ----------
    source : Run, path, address or DataFrame
        A `Run` says in ``run.sources[which]`` where its logs lie below ``run.home``. An address is
        ``"wandb://entity/project/run"``, or that of the run's page.
    which : str
        Which of a run's logs: ``"loss"``, or for example ``"heldout"``. Only for a `Run`.
    branch : str, optional
        Name of the branch for a log that has no column of that name. By default the file's stem if
        that is a branch of the run, the run's only branch, or ``"main"`` for a path or frame.
    tokens_per_step : int, optional
        Fills `tokens` where the log has none: ``step * tokens_per_step``. By default taken from
        the run's checkpoints, where these agree on one whole number. Also finds the steps of a log
        that counts tokens alone.
    sequence_length : int, optional
        Tokens of a sample, to make samples of tokens and tokens of samples. By default the
        run's own, where its description tells (``[checkpoints] sequence_length`` or ``batch``).

    Returns
    -------
    DataFrame
        ``branch`` (str), ``parent`` (str, missing for a trunk), ``step`` and ``tokens`` (Int64;
        optimizer steps and tokens seen), ``loss`` (float64, nat per token as logged), then the
        other columns of the log, and at the end

        - ``samples`` (Int64): sequences seen;
        - ``segment`` (Int64): the stretch of the branch's log, from 1 on, in which the row was
          written; every restart begins one;
        - ``overwritten_by`` (Int64): the segment that took the row's place; missing if it was kept;
        - ``tokens_from``, ``samples_from`` (str): ``"logged"``, a formula such as
          ``"step × 256"``, or ``"not known: …"`` with the reason, where the value is missing.

        Each step once per branch, branches in order of appearance, steps rising.

        ``.attrs["log"]`` counts what was done: ``dropped_rows`` (rows of another kind, say of an
        evaluation), ``restarts``, ``overwritten_rows``, ``nan_loss`` and ``truncated_rows`` (a last
        line that was cut off).

    Raises
    ------
    LogError
        If there is no such log, or it is of a make that is not known (the message lists those
        that are), empty, damaged, lacks a step or loss column, or has a value there that is not a
        number; the message names file and line.

    Notes
    -----
    *Restarts.* Where the steps of a branch go back to `s`, the run went on from a checkpoint before
    `s`. The later rows win: they are what the run continued from. All that was logged before at
    `s` and after is not lost but becomes a branch of its own, ``"<branch>.cut1"`` (then ``cut2``
    …), with this branch as its parent (or with a later cut, where its own past was overwritten
    too). A log whose steps go back in more than a tenth of its rows (and over ten times) is not in
    the order of training and is an error. `list_restarts` lists what was done.

    *Cut short.* A last line without its end, as a killed job leaves it, is left out if that can be
    seen, and counted; a damaged line before it is an error.

    *Rows without a loss.* A row whose loss is written as NaN is kept. A row whose loss is left
    blank is dropped if it is of another kind, which is to say has a value in a column that no row
    with a loss fills; otherwise it is kept as NaN. TensorBoard and Weights & Biases log every value
    for itself: there a step without a loss is one at which none was logged, and is dropped.

    *Parent.* From a column of that name, or from ``run.forks``. Rows of the parent before the
    first step of a branch are the branch's history.

    Examples
    --------
    >>> import pandas as pd
    >>> log = pd.DataFrame({"iteration": [1, 2, 3, 2, 3], "lm loss": [5.0, 4.0, 9.0, 3.9, 3.5]})
    >>> read_loss(log, tokens_per_step=100)[["branch", "step", "tokens", "loss"]]
          branch  step  tokens  loss
    0       main     1     100   5.0
    1       main     2     200   3.9
    2       main     3     300   3.5
    3  main.cut1     2     200   4.0
    4  main.cut1     3     300   9.0
    """
    run = source if isinstance(source, Run) else None
    if run is None and which != "loss":
        raise LogError(f"which={which!r} chooses among the logs of a Run; the source is no Run")
    units = units_of(run, tokens_per_step, sequence_length)
    if isinstance(source, Run):
        parts = _of_run(source, which, branch, units)
    else:
        parts = [_of_source(source, branch or "main", branch is not None, units)]
    frame = pd.concat(parts)
    parents = {} if run is None else {fork.branch: fork.parent for fork in run.forks}
    known = frame["parent"].where(frame["parent"].ne(""))
    frame["parent"] = known.fillna(frame["branch"].map(parents).astype("str"))
    whole, restarts = stitch(frame, parts[0].attrs["where"])
    whole = fill_units(whole, units)
    counts = {
        "dropped_rows": sum(part.attrs["dropped"] for part in parts),
        **restarts,
        "nan_loss": int(whole["loss"].isna().sum()),
        "truncated_rows": sum(part.attrs["truncated"] for part in parts),
    }
    rest = [name for name in whole.columns if name not in (*FIRST, *_LAST)]
    whole = whole[[*FIRST, *rest, *_LAST]]
    whole.attrs = {"log": counts}
    return whole


def _of_run(run: Run, which: str, branch: str | None, units: Units) -> list[pd.DataFrame]:
    paths = run.sources.get(which, ())
    if not paths:
        there = sorted(name for name in run.sources if name != "benchmarks")
        raise LogError(f"{run.name}: the run names no log {which!r}; it names {there}. Pass a path")
    if "://" in run.home:
        raise LogError(
            f"{run.name}: its logs {list(paths)} are at {run.home}, not on this machine; "
            "download them and pass the path: read_loss('train.csv')"
        )
    parts = []
    for path in paths:
        file = Path(run.home) / path
        names = run.branches
        named = file.stem if file.stem in names else names[0] if len(names) == 1 else None
        given = branch is not None
        parts.append(_of_source(file, branch if given else named, given, units))
    return parts


def _of_source(
    source: str | PathLike[str] | pd.DataFrame, branch: str | None, given: bool, units: Units
) -> pd.DataFrame:
    """One log with canonical columns, in the order of the log; `branch` where it names none."""
    if isinstance(source, pd.DataFrame):
        raw, where = source.rename_axis("row"), "the frame"
    else:
        where = fspath(source)
        raw = read_address(where) if is_address(source) else parse_log(Path(source))
    if raw.empty:
        raise LogError(f"{where}: the log is empty")
    frame = canonical(raw, where, units)
    if "branch" not in frame:
        if branch is None:
            raise LogError(f"{where}: no branch column, and the run has several: pass branch=")
        frame["branch"] = branch
    elif given:
        raise LogError(
            f"{where}: it has branches {list(pd.unique(frame['branch']))} of its own; "
            f"choose from the frame instead of passing branch={branch!r}"
        )
    for column in ("branch", "parent"):
        said = frame[column] if column in frame else pd.Series("", frame.index)
        frame[column] = said.astype("str")
    rest = [column for column in frame.columns if column not in FIRST]
    out = frame[[*FIRST, *rest]]
    dropped = len(raw) - len(frame) + raw.attrs.get("skipped", 0)
    out.attrs = {"where": where, "dropped": dropped, "truncated": raw.attrs.get("truncated", 0)}
    return out
