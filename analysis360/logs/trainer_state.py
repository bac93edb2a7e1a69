"""The Hugging Face Trainer's ``trainer_state.json``, or the checkpoint folder that holds it."""

from __future__ import annotations

import json

import pandas as pd

from analysis360.errors import LogError
from analysis360.logs.jsonlines import records_frame
from analysis360.logs.source import LogFormat, Source

__all__ = ["FORMAT"]

NAME = "trainer_state.json"


def sniff(source: Source) -> bool:
    """A JSON object with the key ``log_history``, or a folder that holds such a file."""
    if source.is_folder:
        return (source.path / NAME).is_file()
    return source.text.lstrip()[:1] == "{" and '"log_history"' in source.text


def read(source: Source) -> pd.DataFrame:
    """Read ``log_history``; its entries are the rows."""
    if source.is_folder:
        return read(Source(source.path / NAME))
    try:
        history = json.loads(source.text).get("log_history")
    except ValueError as problem:
        raise LogError(f"{source.path}: not JSON: {problem}") from problem
    if not isinstance(history, list):
        raise LogError(f"{source.path}: log_history is {type(history).__name__}, expected a list")
    return records_frame(dict(enumerate(history)), "entry", source)


FORMAT = LogFormat("trainer_state", "trainer_state.json of the Hugging Face Trainer", sniff, read)
