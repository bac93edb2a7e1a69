"""Which tokens the rows of an embedding or a head name: those of an offending batch, perhaps."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis360.errors import TableError
from analysis360.table import KEY

__all__ = ["rank_tokens"]

Values = npt.NDArray[np.float64]

_TENSOR = ["run", "branch", "number", "step", "tokens", "name", "module", "state", "against"]
_COLUMNS = [
    *_TENSOR, "vector", "rank", "token", "text", "value", "share", "over_median", "z",
]  # fmt: skip


def rank_tokens(
    vectors: pd.DataFrame,
    tokenizer: object = None,
    top: int = 20,
    *,
    vector: str = "row_v_sum",
    modules: Sequence[str] | None = ("embed", "head"),
) -> pd.DataFrame:
    r"""Name the tokens whose rows are largest, in every checkpoint.

    By default the rows with most of Adam's second moment, :math:`\sum_{row}\hat v`: the tokens
    that the gradients of the last batches were about.

    Parameters
    ----------
    vectors : DataFrame
        From ``load_table(path, kind="vectors")``: key columns, ``vector`` and ``values``.
    tokenizer : optional
        What turns ids to text: a tokenizer of ``tokenizers`` or ``transformers``, a mapping of id
        to text or of text to id, or the path of a ``tokenizer.json`` or its folder.
    top : int
        How many rows of each matrix.
    vector : str
        Which vector, with one element a row.
    modules : sequence of str, optional
        Modules whose rows are tokens; None for all matrices, whatever their rows are.

    Returns
    -------
    DataFrame
        One row per matrix, checkpoint and rank, largest first: ``token`` (id), ``text`` (as the
        vocabulary has it; empty where it is not known, or the row is padding), ``value``,
        ``share`` of the sum over all rows, ``over_median`` = value over the median of the rows that
        are not zero, and ``z``, how far its logarithm is above theirs in robust standard deviations
        (1.4826 MAD).

    Raises
    ------
    TableError
        If the frame has no such vector or modules, no finite value in it, or if the tokenizer is of
        no known kind.

    Notes
    -----
    *What it can name.* The second moment forgets: half in :math:`\ln\tfrac12/\ln\beta_2` steps,
    13.5 at :math:`\beta_2` = 0.95. A checkpoint names the tokens of a batch if it was saved within
    about 15 steps of it; later ones name the batches before the checkpoint. At K2's 941 steps
    between checkpoints nothing of the batch is left.

    Frequent tokens come first in any batch. Read the ranks against the same checkpoint of an
    undisturbed branch, or against one earlier: a token that is high here and not there is a
    candidate, and no more. In a head every token has a gradient from the softmax, so the embedding
    tells more.

    ``share`` is NaN if a value is negative or the sum is zero; ``z`` and ``over_median`` are NaN
    for a value that is not positive, ``z`` also where half of the rows are equal. Rows that are
    not finite come last, and make the shares of their matrix NaN; a matrix that has no other, such
    as the moments before the first step, is left out.

    Examples
    --------
    >>> vectors = pd.DataFrame({"run": "r", "branch": "s", "number": 1, "step": 10, "tokens": 100,
    ...     "name": "embed.weight", "layer": None, "module": "embed", "param": "weight",
    ...     "expert": None, "head": None, "state": "adam", "against": "", "vector": "row_v_sum",
    ...     "values": [np.array([1.0, 2.0, 96.0, 1.0])]})
    >>> named = rank_tokens(vectors, {"a": 0, "b": 1, "<s>": 2}, top=2)
    >>> named[["rank", "token", "text", "share", "over_median"]].round(2)
       rank  token text  share  over_median
    0     1      2  <s>   0.96        64.00
    1     2      1    b   0.02         1.33
    """
    missing = [c for c in (*KEY, "vector", "values") if c not in vectors]
    if missing:
        raise TableError(f'not a frame of load_table(kind="vectors"): {missing} are missing')
    rows = vectors[vectors["vector"] == vector]
    if rows.empty:
        there = list(pd.unique(vectors["vector"]))
        raise TableError(f"no vector {vector!r}; the frame has {there}")
    if modules is not None:
        known = list(pd.unique(rows["module"]))
        rows = rows[rows["module"].isin(list(modules))]
        if rows.empty:
            raise TableError(f"no matrix with {vector} is of {list(modules)}; there are {known}")
    text = _reader(tokenizer)
    rows = rows[[bool(np.isfinite(values).any()) for values in rows["values"]]]
    if rows.empty:
        raise TableError(f"no value of {vector} is finite")
    pieces = [
        _ranked(np.asarray(row["values"], dtype=np.float64), top, text).assign(
            **{name: row[name] for name in (*_TENSOR, "vector")}
        )
        for _, row in rows.iterrows()
    ]
    found = pd.concat(pieces, ignore_index=True)[_COLUMNS]
    return found.astype({name: KEY[name] for name in _TENSOR} | {"vector": "str", "text": "str"})


def _ranked(values: Values, top: int, text: Callable[[int], str]) -> pd.DataFrame:
    """Largest rows of one matrix, ties by id."""
    order = np.argsort(np.where(np.isfinite(values), -values, np.inf), kind="stable")[:top]
    positive = values[(values > 0) & np.isfinite(values)]
    chosen = values[order]
    total = values.sum() if (values >= 0).all() else np.nan  # of a NaN too
    total = total if np.isfinite(total) else np.nan
    with np.errstate(invalid="ignore", divide="ignore"):
        middle, median, spread = np.nan, np.nan, np.nan
        if len(positive):
            middle, median = float(np.median(np.log(positive))), float(np.median(positive))
            spread = 1.4826 * float(np.median(np.abs(np.log(positive) - middle)))
        above = np.where(chosen > 0, np.log(chosen) - middle, np.nan)
        return pd.DataFrame(
            {
                "rank": np.arange(1, len(order) + 1),
                "token": order,
                "text": [text(int(token)) for token in order],
                "value": chosen,
                "share": chosen / total if total > 0 else np.full(len(order), np.nan),
                "over_median": np.where(chosen > 0, chosen / median, np.nan),
                "z": above / spread if spread > 0 else np.full(len(order), np.nan),
            }
        )


def _reader(tokenizer: object) -> Callable[[int], str]:
    """Id → text, whatever kind of tokenizer it is."""
    if tokenizer is None:
        return lambda token: ""
    if isinstance(tokenizer, str | os.PathLike):
        tokenizer = _vocabulary(Path(tokenizer))
    if isinstance(tokenizer, Mapping):
        known = _by_id(tokenizer)
        return lambda token: known.get(token, "")
    for name in ("id_to_token", "convert_ids_to_tokens"):
        method = getattr(tokenizer, name, None)
        if callable(method):
            return _asking(method)
    raise TableError(
        f"a {type(tokenizer).__name__} is no tokenizer: give one of tokenizers or transformers, a "
        "mapping of id to text, or the path of a tokenizer.json"
    )


def _asking(method: Callable[[int], Any]) -> Callable[[int], str]:
    def read(token: int) -> str:
        try:
            said = method(token)
        except (IndexError, KeyError, OverflowError):  # sentencepiece raises for rows of padding
            said = None
        return "" if said is None else str(said)

    return read


def _by_id(known: Mapping[Any, Any]) -> dict[int, str]:
    """Mapping of ids, whichever way round it was given."""
    turned = all(isinstance(key, str) and isinstance(value, int) for key, value in known.items())
    pairs = ((value, key) for key, value in known.items()) if turned else known.items()
    try:
        return {int(token): str(text) for token, text in pairs}
    except (TypeError, ValueError) as error:
        raise TableError(f"a mapping of tokens has an id that is no number: {error}") from error


def _vocabulary(path: Path) -> dict[int, str]:
    """Tokens of a ``tokenizer.json``, of any of its models, and the added ones."""
    file = path / "tokenizer.json" if path.is_dir() else path
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
        vocabulary = said["model"]["vocab"]
        if isinstance(vocabulary, list):  # unigram: pieces with their scores, in order
            found = {place: str(piece[0]) for place, piece in enumerate(vocabulary)}
        else:
            found = {int(token): str(piece) for piece, token in vocabulary.items()}
        added = {int(t["id"]): str(t["content"]) for t in said.get("added_tokens") or ()}
    except OSError as error:
        raise TableError(f"no tokenizer could be read from {file}: {error}") from error
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise TableError(f"{file} is not a tokenizer.json: {error!r}") from error
    return found | added
