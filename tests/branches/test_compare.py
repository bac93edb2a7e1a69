"""Branches held against each other, with partners, without, and with damaged tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis360.branches import compare_branches, rank_layers, shares
from analysis360.errors import TableError
from analysis360.table import KEY

NORMAL = {100: 1.0, 200: 2.0, 300: 4.0}


def table(branches: Mapping[str, Mapping[Any, float]], run: str = "r", **more: Any) -> pd.DataFrame:
    """Make a measured table: branch -> tokens -> value; tensors a (the value) and b (twice it)."""
    rows = []
    for branch, points in branches.items():
        for number, (tokens, value) in enumerate(points.items()):
            step = None if tokens is None else tokens // 10
            for layer, name in enumerate("ab"):
                row = dict.fromkeys(KEY) | {
                    "run": run, "branch": branch, "number": number, "step": step, "tokens": tokens,
                    "name": name, "layer": layer, "module": "mlp.up", "param": "weight",
                    "state": "weight", "against": "", "l2_norm": value * (layer + 1),
                }  # fmt: skip
                rows.append(row | more)
    return pd.DataFrame(rows)


def test_matched_by_tokens_and_not_by_number() -> None:
    apart = compare_branches(table({"spike": {200: 8.0, 300: 4.0}, "normal": NORMAL}), "spike")
    assert apart["name"].tolist() == ["a", "b", "a", "b"]
    assert apart["tokens"].tolist() == [200, 200, 300, 300]
    assert apart["number"].tolist() == [0, 0, 1, 1]  # those of the spike branch
    assert apart["value"].tolist() == [8, 16, 4, 8] and apart["reference"].tolist() == [2, 4, 4, 8]
    assert apart["difference"].tolist() == [6, 12, 0, 0]
    assert apart["log2_ratio"].tolist() == [2, 2, 0, 0]
    assert set(apart["status"]) == {"matched"}
    assert list(apart)[:9] == [
        "run",
        "name",
        "layer",
        "module",
        "param",
        "expert",
        "head",
        "state",
        "against",
    ]
    assert apart["layer"].dtype == apart["tokens_since"].dtype == "Int64"


def test_checkpoint_without_partner_is_stated() -> None:
    apart = compare_branches(table({"spike": {200: 8.0, 250: 5.0}, "normal": NORMAL}), "spike")
    lost = apart[apart["tokens"] == 250]
    assert lost["status"].tolist() == ["no partner"] * 2
    assert lost["value"].tolist() == [5, 10]
    assert lost[["reference", "difference", "log2_ratio"]].isna().all(axis=None)


def test_tensor_of_one_branch_only_is_stated() -> None:
    whole = table({"spike": {200: 8.0}, "normal": {200: 2.0}})
    for branch, column in (("normal", "reference"), ("spike", "value")):
        cut = whole[~((whole["branch"] == branch) & (whole["name"] == "b"))]
        apart = compare_branches(cut, "spike").set_index("name")
        assert apart["status"].to_dict() == {"a": "matched", "b": "no partner"}
        assert apart[column].isna().to_dict() == {"a": False, "b": True}
        assert apart[["number", "step", "tokens"]].to_numpy().tolist() == [[0, 20, 200]] * 2


def test_ratio_needs_two_positive_finite_values() -> None:
    values = {100: 1.0, 200: 0.0, 300: -1.0, 400: np.inf, 500: np.nan}
    other = dict.fromkeys(values, 2.0)
    apart = compare_branches(table({"spike": values, "normal": other}), "spike")
    one = apart[apart["name"] == "a"].set_index("tokens")
    assert one["log2_ratio"].notna().to_dict() == {
        100: True, 200: False, 300: False, 400: False, 500: False,
    }  # fmt: skip
    assert one["difference"].iloc[:3].tolist() == [-1, -2, -3]
    assert set(one["status"]) == {"matched"}


def test_steps_are_used_where_tokens_are_missing() -> None:
    whole = table({"spike": {200: 8.0}, "normal": NORMAL})
    whole["tokens"] = None
    apart = compare_branches(whole, "spike")
    assert apart["step"].tolist() == [20, 20] and apart["reference"].tolist() == [2, 4]
    assert apart["tokens_since"].isna().all()


def test_missing_tokens_never_match_missing_tokens() -> None:
    whole = table({"spike": {200: 8.0, None: 1.0}, "normal": {200: 2.0, None: 1.0}})
    apart = compare_branches(whole, "spike")
    assert apart["status"].tolist() == ["matched", "matched", "no partner", "no partner"]
    assert apart["reference"].iloc[2:].isna().all()


@pytest.mark.parametrize(
    ("branches", "expected"),
    [
        # equal up to 200: that is the fork
        ({"spike": {100: 1.0, 200: 2.0, 300: 9.0}, "normal": NORMAL}, [None, 0, 100]),
        # the reference goes back beyond the branch: its last checkpoint before
        ({"spike": {200: 8.0, 300: 9.0}, "normal": NORMAL}, [100, 200]),
        # the other way round
        ({"spike": {100: 1.0, 200: 2.5, 300: 9.0}, "normal": {200: 2.0, 300: 4.0}}, [0, 100, 200]),
        # both leave a trunk
        ({"spike": {300: 9.0}, "normal": {300: 4.0}, "trunk": {100: 1.0, 250: 2.0}}, [50]),
        # nothing is known
        ({"spike": {300: 9.0}, "normal": {300: 4.0}}, [None]),
    ],
)
def test_tokens_since_the_fork(branches: Any, expected: list[int | None]) -> None:
    apart = compare_branches(table(branches), "spike")
    since = apart[apart["name"] == "a"].sort_values("tokens")["tokens_since"]
    assert [None if pd.isna(v) else v for v in since] == expected


def test_runs_are_compared_each_within_itself() -> None:
    one = table({"spike": {200: 8.0}, "normal": NORMAL})
    two = table({"spike": {200: 3.0}, "normal": {200: 1.0}}, run="q")
    third = table({"main": {200: 3.0}}, run="p")
    apart = compare_branches(pd.concat([one, two, third]), "spike")
    assert apart.groupby("run", sort=False)["reference"].first().to_dict() == {"r": 2.0, "q": 1.0}


def test_statistics_that_do_not_fit_a_state_are_left_out() -> None:
    weights = table({"spike": {200: 8.0}, "normal": NORMAL})
    adam = table({"spike": {200: 8.0}, "normal": NORMAL}, state="adam").rename(
        columns={"l2_norm": "update_rms"}
    )
    whole = pd.concat([weights, adam])
    apart = compare_branches(whole, "spike")
    found = set(zip(apart["state"], apart["statistic"], strict=True))
    assert found == {("weight", "l2_norm"), ("adam", "update_rms")}
    assert set(compare_branches(whole, "spike", statistics=["l2_norm"])["state"]) == {"weight"}


def test_rows_against_the_partner_are_left_out() -> None:
    whole = table({"spike": {200: 8.0}, "normal": NORMAL})
    against = whole[whole["branch"] == "spike"].assign(against="partner")
    assert len(compare_branches(pd.concat([whole, against]), "spike")) == 2


def test_layers_compare_as_tensors_do() -> None:
    layers = table({"spike": {200: 8.0}, "normal": NORMAL}).assign(name="", module="", param="")
    apart = compare_branches(layers, "spike")
    assert apart["layer"].tolist() == [0, 1] and apart["log2_ratio"].tolist() == [2, 2]


def test_wrong_names_and_tables() -> None:
    whole = table({"spike": {250: 8.0, 350: 8.0}, "normal": NORMAL})
    with pytest.raises(TableError, match=r"no branch 'spik' .*\['spike', 'normal'\]"):
        compare_branches(whole, "spik")
    with pytest.raises(TableError, match="no branch 'calm'"):
        compare_branches(whole, "spike", to="calm")
    with pytest.raises(TableError, match="both 'spike'"):
        compare_branches(whole, "spike", to="spike")
    with pytest.raises(
        TableError, match="'spike' .*tokens 250, 350; 'normal' .*tokens 100, 200, 300"
    ):
        compare_branches(whole, "spike")
    with pytest.raises(TableError, match=r"no column \['rms'\].*l2_norm"):
        compare_branches(whole, "spike", statistics=["rms"])
    with pytest.raises(TableError, match="repeat a key"):
        compare_branches(pd.concat([whole, whole]), "spike")
    twice = pd.concat([whole, whole.assign(number=9)])
    with pytest.raises(TableError, match=r"'spike' has several checkpoints at tokens \[250, 350\]"):
        compare_branches(twice, "spike")
    with pytest.raises(TableError, match=r"\['note'\] are not numbers"):
        compare_branches(whole.assign(note="x"), "spike", statistics=["l2_norm", "note"])


def test_shares_add_to_one_in_every_checkpoint() -> None:
    whole = table({"spike": {200: 3e-170, 300: 8.0}, "normal": NORMAL})
    found = shares(whole, "l2_norm")
    assert found["l2_norm_share"].tolist() == pytest.approx([0.2, 0.8] * 5)
    group = found.groupby(["run", "branch", "number"])["l2_norm_share"]
    assert group.sum().to_numpy() == pytest.approx(1)


def test_shares_that_are_not_known() -> None:
    whole = table({"spike": {200: 0.0, 300: np.inf}})
    assert shares(whole, "l2_norm")["l2_norm_share"].isna().all()
    with pytest.raises(TableError, match="one row with l2_norm"):
        shares(whole[whole["name"] == "a"], "l2_norm")
    with pytest.raises(TableError, match="grad_norm_ema"):
        shares(whole)


def test_ranking_says_which_and_when() -> None:
    branches = {"spike": {100: 1.0, 200: 8.0, 300: 0.25}, "normal": NORMAL}
    whole = table(branches)
    whole.loc[
        (whole["branch"] == "spike") & (whole["name"] == "b") & (whole["tokens"] == 300), "l2_norm"
    ] = 8.0
    ranked = rank_layers(compare_branches(whole, "spike"), "l2_norm", state="weight")
    assert ranked["name"].tolist() == ["a", "b"]
    assert ranked["log2_ratio"].tolist() == [-4.0, 2.0] and ranked["tokens"].tolist() == [300, 200]
    assert ranked["tokens_since"].tolist() == [200, 100] and ranked["checkpoints"].tolist() == [
        3,
        3,
    ]


def test_ranking_of_what_is_not_there() -> None:
    apart = compare_branches(table({"spike": {200: -8.0}, "normal": NORMAL}), "spike")
    with pytest.raises(TableError, match=r"no statistic 'rms'.*\['l2_norm'\]"):
        rank_layers(apart, "rms")
    with pytest.raises(TableError, match=r"no state 'adam'; it has \['weight'\]"):
        rank_layers(apart, "l2_norm", state="adam")
    with pytest.raises(TableError, match="l2_norm has no ratio"):
        rank_layers(apart, "l2_norm")
