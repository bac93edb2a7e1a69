"""The table of log formats, and the choice among them."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from analysis360.errors import LogError
from analysis360.logs import (
    deepspeed,
    delimited,
    jsonlines,
    llmc,
    megatron,
    olmo,
    tensorboard,
    torchtitan,
    trainer_state,
    wandb_export,
    wandb_offline,
)
from analysis360.logs.source import LogFormat, Source
from analysis360.registry import Registry

__all__ = ["formats", "parse_log"]

formats: Registry[LogFormat] = Registry("log format", LogError)
"""Every format, in the order in which they are tried: the first whose `sniff` says yes reads."""

for _module in (
    tensorboard, wandb_offline, trainer_state, jsonlines, llmc, megatron, olmo, torchtitan,
    deepspeed, wandb_export, delimited,
):  # fmt: skip
    formats.add(_module.FORMAT.name, _module.FORMAT)


def parse_log(path: Path) -> pd.DataFrame:
    """Read a log file or folder into cells as written.

    Parameters
    ----------
    path : Path
        Any of `formats`. Told apart by what is in it, not by its name (but for ``.tsv``).

    Returns
    -------
    DataFrame
        Index: the line, or the entry of a list, as the index's name says. Blank is ``""``.
        ``.attrs["skipped"]`` counts what belongs to no row, ``.attrs["truncated"]`` what was cut
        off at the end.

    Raises
    ------
    LogError
        If there is nothing, if it is empty or damaged, or of no make that is known: the message
        lists those.

    Examples
    --------
    >>> list(formats)[:3]
    ['tensorboard', 'wandb_offline', 'trainer_state']
    """
    source = Source(path)
    if not source.is_folder and not source.head.strip() and not source.text.strip():
        raise LogError(f"{path}: the log is empty")
    for _, one in formats.items():
        if one.sniff(source):
            return one.read(source)
    known = "; ".join(f"{one.name}: {one.what}" for _, one in formats.items())
    raise LogError(f"{path}: cannot be read as a log: it is none of these. {known}")
