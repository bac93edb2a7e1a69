"""Rows of a vocabulary, ranked and named."""

import json

import numpy as np
import pandas as pd
import pytest

from analysis360.errors import TableError
from analysis360.table import KEY
from analysis360.tokens import rank_tokens


def vectors(values, module="embed", **more):
    row = dict.fromkeys(KEY) | {
        "run": "r", "branch": "s", "number": 1, "step": 10, "tokens": 100, "name": f"{module}.w",
        "module": module, "param": "weight", "state": "adam", "against": "", "vector": "row_v_sum",
    }  # fmt: skip
    return pd.DataFrame([row | {"values": np.asarray(values, dtype=float)} | more])


def test_largest_first_with_share_and_distance_from_the_rest():
    rng = np.random.default_rng(0)
    values = np.exp(rng.normal(-20, 1, 30_000))
    values[[7, 777]] = np.exp([-10.0, -8.0])
    values[100:110] = 0  # never seen
    got = rank_tokens(vectors(values), top=3)
    assert got["token"].tolist()[:2] == [777, 7] and got["rank"].tolist() == [1, 2, 3]
    assert got["value"].tolist() == sorted(values)[::-1][:3]
    np.testing.assert_allclose(got["share"], got["value"] / values.sum())
    # logarithms of mean −20 and deviation 1
    assert got["z"].tolist()[:2] == pytest.approx([12, 10], abs=0.3)
    median = np.median(values[values > 0])
    np.testing.assert_allclose(got["over_median"], got["value"] / median, rtol=1e-3)
    assert set(got["text"]) == {""} and got["number"].dtype == "Int64"


def test_every_matrix_and_checkpoint_has_its_own_ranks():
    frames = [vectors([1.0, 5, 2]), vectors([4.0, 1, 9], "head"), vectors([1.0, 1, 1], "mlp.up")]
    frames += [vectors([9.0, 1, 1], number=2, step=20)]
    got = rank_tokens(pd.concat(frames), top=1)
    assert got[["number", "module", "token"]].to_numpy().tolist() == [
        [1, "embed", 1], [1, "head", 2], [2, "embed", 0],
    ]  # fmt: skip
    assert len(rank_tokens(pd.concat(frames), modules=None)) == 12
    assert set(rank_tokens(pd.concat(frames), modules=["mlp.up"])["token"]) == {0, 1, 2}


WORDS = ["<unk>", "the", "cat"]


def tokenizer_json(folder, kind="BPE"):
    vocab = {w: i for i, w in enumerate(WORDS)}
    vocab = [[w, -1.5] for w in WORDS] if kind == "Unigram" else vocab
    said = {"model": {"type": kind, "vocab": vocab}, "added_tokens": [{"id": 3, "content": "<s>"}]}
    (folder / "tokenizer.json").write_text(json.dumps(said), encoding="utf-8")
    return folder


class Indexed:
    """As sentencepiece's: raises for an id that it does not have."""

    def id_to_token(self, token):
        return [*WORDS, "<s>"][token]


def real_tokenizer():
    """One of the library itself, which transformers brings."""
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>")
    )
    made.add_special_tokens(["<s>"])
    return made


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: str(tokenizer_json(folder)),
        lambda folder: tokenizer_json(folder, "Unigram") / "tokenizer.json",
        lambda folder: dict(enumerate([*WORDS, "<s>"])),
        lambda folder: {w: i for i, w in enumerate([*WORDS, "<s>"])},
        lambda folder: Indexed(),
        lambda folder: real_tokenizer(),
    ],
    ids=["folder", "unigram file", "id to text", "text to id", "object", "tokenizers"],
)
def test_tokenizers_of_every_kind(make, tmp_path):
    """Also where the matrix has more rows than the vocabulary, as padded ones do."""
    got = rank_tokens(vectors([1.0, 2, 3, 4, 5]), make(tmp_path))
    assert got["token"].tolist() == [4, 3, 2, 1, 0]
    assert got["text"].tolist() == ["", "<s>", "cat", "the", "<unk>"]


def test_numbers_as_texts_of_tokens():
    """Digits are tokens too: which side has the ids is told by types, not by looks."""
    assert rank_tokens(vectors([1.0, 2]), {"0": 1, "1": 0})["text"].tolist() == ["0", "1"]


def test_what_is_not_defined():
    got = rank_tokens(vectors([0.0, 0, 0]))
    assert got[["share", "z", "over_median"]].isna().all(axis=None)
    got = rank_tokens(vectors([1.0, 1, 1, 5]))
    assert got["z"].isna().all() and got["over_median"].tolist() == pytest.approx([5, 1, 1, 1])
    got = rank_tokens(vectors([1.0, np.nan, 3, np.inf, 2]))
    assert got["token"].tolist() == [2, 4, 0, 1, 3] and got["share"].isna().all()
    assert rank_tokens(vectors([1.0, 3, np.inf]))["share"].isna().all()
    assert rank_tokens(vectors([-1.0, 2, 3]))["share"].isna().all()


def test_wrong_questions(tmp_path):
    one = vectors([1.0, 2])
    with pytest.raises(TableError, match="no vector 'row_sum'"):
        rank_tokens(one, vector="row_sum")
    with pytest.raises(TableError, match="there are"):
        rank_tokens(one, modules=["head"])
    with pytest.raises(TableError, match="missing"):
        rank_tokens(one.drop(columns="values"))
    with pytest.raises(TableError, match="no tokenizer"):
        rank_tokens(one, 3)
    with pytest.raises(TableError, match="could be read"):
        rank_tokens(one, tmp_path)
    with pytest.raises(TableError, match="no number"):
        rank_tokens(one, {"x": "y"})
    for text in ("{", "[]", '{"model": {"vocab": 3}}'):
        (tmp_path / "tokenizer.json").write_text(text)
        with pytest.raises(TableError, match="not a tokenizer.json"):
            rank_tokens(one, tmp_path)


def test_a_matrix_without_a_finite_row_names_nobody():
    """Before the first step all are NaN: whoever comes first is no candidate."""
    unborn = vectors([np.nan] * 3, number=0, step=0)
    got = rank_tokens(pd.concat([unborn, vectors([1.0, 5, 2])]), top=1)
    assert got[["number", "token"]].to_numpy().tolist() == [[1, 1]]
    with pytest.raises(TableError, match="no value of row_v_sum is finite"):
        rank_tokens(unborn)
