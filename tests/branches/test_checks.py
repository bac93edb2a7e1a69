"""What a comparison rests on: each check passes, fails and is not available where it should."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from analysis360.branches import check_branches
from analysis360.core import Checkpoint, Fork, Run
from analysis360.errors import TableError
from tests.branches.test_placebos import measured

NAMES = [
    "ancestor identical", "ancestor published", "equal learning rates", "matched by tokens",
    "data after the fork", "shared decay removable", "gaps equal",
]  # fmt: skip


def run_with(fork):
    entries = tuple(
        Checkpoint("r", b, k, 10 * k, 100 * k, "", "", f"{b}_{k}", {})
        for b in "sn"
        for k in range(4)
    )
    return Run("r", "r", "", entries, forks=(fork,))


def checked(table, **more):
    found = check_branches(table, "s", "n", **more)
    assert found["check"].tolist() == NAMES
    return found.set_index("check")


def log(**columns):
    pieces = [
        pd.DataFrame({"branch": b, "step": range(1, 31), "loss": 1.0} | {c: v[b] for c, v in columns.items()})
        for b in "sn"
    ]  # fmt: skip
    return pd.concat(pieces)


def against(table, role, **columns):
    return table[table["number"] > 0].assign(against=role, rms=np.nan, mean=np.nan, **columns)


def test_ancestors():
    table = measured(0, ["s", "n"])
    fork = Fork("s", "n", 0)
    found = checked(table, run=run_with(fork))
    assert found.loc["ancestor identical", ["result", "value", "limit"]].tolist() == ["PASS", 0, 0]
    assert found.loc["ancestor published", ["result", "value"]].tolist() == ["PASS", 0]
    other = table.copy()
    other.loc[
        (other["branch"] == "s") & (other["number"] == 0) & (other["name"] == "w2"), "rms"
    ] *= 2
    row = checked(other, run=run_with(fork)).loc["ancestor identical"]
    assert row["result"] == "FAIL" and row["value"] == 0.5 and row["where"] == "w2 rms"
    assert "1 of them differ" in row["note"]
    # the trunk alone has it
    cut = table[(table["branch"] == "n") | (table["number"] > 0)]
    found = checked(cut, run=run_with(fork))
    assert found.loc["ancestor identical", "result"] == "not applicable"
    assert found.loc["ancestor published", "result"] == "PASS"
    # nobody has it
    found = checked(table[table["number"] != 2], run=run_with(Fork("s", "n", 2)))
    assert found.loc["ancestor identical", "result"] == "not available"
    assert "ancestor not available" in found.loc["ancestor identical", "note"]
    row = found.loc["ancestor published"]
    assert (
        row["result"] == "not available" and "nearest earlier one of 'n' is step 10" in row["note"]
    )
    # a NaN in one only is a difference
    table.loc[(table["branch"] == "s") & (table["number"] == 0), "mean"] = np.nan
    assert checked(table, run=run_with(fork)).loc["ancestor identical", "result"] == "FAIL"


def test_rates_and_data():
    table = measured(0, ["s", "n"])
    one = np.linspace(1e-3, 1e-4, 30)
    chunks = np.repeat([1, 2, 3], 10)
    found = checked(table, loss=log(lr={"s": one, "n": one}, chunk={"s": chunks, "n": chunks}))
    assert found.loc["equal learning rates", ["result", "value"]].tolist() == ["PASS", 0]
    assert found.loc["data after the fork", ["result", "value"]].tolist() == ["PASS", 1]
    off = one.copy()
    off[4] *= 2
    found = checked(
        table, loss=log(lr={"s": off, "n": one}, chunk={"s": chunks, "n": chunks[::-1]})
    )
    row = found.loc["equal learning rates"]
    assert (row["result"], row["value"], row["where"]) == ("FAIL", 0.5, "step 5")
    row = found.loc["data after the fork"]
    assert row["result"] == "FAIL" and row["value"] == pytest.approx(1 / 3)
    assert row["note"].startswith("not aligned: the same chunk in 10 of 30")
    # steps before the fork do not count
    later = checked(table, run=run_with(Fork("s", "n", 1)), loss=log(lr={"s": off, "n": one}))
    assert later.loc["equal learning rates", "result"] == "PASS"
    bare = checked(table)
    assert bare.loc["equal learning rates", "result"] == "not available"
    assert bare.loc["data after the fork", "note"].startswith("not aligned, as far as is known")


def test_matching_decay_and_gaps():
    table = measured(0, ["s", "n"])
    row = checked(table).loc["matched by tokens"]
    assert (row["result"], row["value"]) == ("PASS", 4)
    shifted = table.copy()
    shifted.loc[shifted["branch"] == "s", "tokens"] += 7
    assert checked(shifted).loc["matched by tokens", "result"] == "FAIL"
    bare = checked(table.assign(tokens=pd.NA)).loc["matched by tokens"]
    assert (
        bare["result"] == "not available" and "4 of 4 checkpoints have equal steps" in bare["note"]
    )
    assert checked(table).loc["shared decay removable", "result"] == "not available"
    assert checked(table).loc["gaps equal", "result"] == "not applicable"
    ancestor = against(table, "ancestor", reference_step=0, decay_between=0.9, projection=0.1)
    previous = against(table, "previous", reference_step=lambda t: t["step"] - 10)
    found = checked(pd.concat([table, ancestor, previous]))
    assert found.loc["shared decay removable", ["result", "value"]].tolist() == ["PASS", 0.9]
    assert found.loc["gaps equal", ["result", "value"]].tolist() == ["PASS", 0]
    # the fork is taken from the rows against the ancestor
    assert found.loc["ancestor identical", "result"] == "PASS"
    lacking = pd.concat([table, ancestor[ancestor["branch"] == "s"]])
    row = checked(lacking).loc["shared decay removable"]
    assert row["result"] == "not available" and "decay_between of 'n'" in row["note"]
    previous.loc[(previous["branch"] == "s") & (previous["step"] == 20), "reference_step"] = 0
    row = checked(pd.concat([table, previous])).loc["gaps equal"]
    assert (row["result"], row["value"], row["where"]) == ("FAIL", 10, "step 20")


def test_partner_rows_at_the_fork_are_looked_at():
    table = measured(0, ["s", "n"])
    start = table[(table["number"] == 0) & (table["branch"] == "s")]
    for far, result in ((0.0, "PASS"), (1e-7, "FAIL")):
        whole = pd.concat([table, start.assign(against="partner", displacement=far)])
        row = checked(whole, run=run_with(Fork("s", "n", 0))).loc["ancestor identical"]
        assert row["result"] == result


def test_each_run_by_itself_and_wrong_names():
    table = measured(0, ["s", "n"])
    both = pd.concat([table, table.assign(run="q")])
    found = check_branches(both, "s", "n", run=run_with(Fork("s", "n", 0)))
    assert found["run"].tolist() == ["r"] * 7 + ["q"] * 7
    results = found.set_index(["run", "check"])["result"]
    assert results["r", "ancestor identical"] == "PASS"
    assert results["q", "ancestor identical"] == "not available"
    with pytest.raises(TableError, match="no branch 'x'"):
        check_branches(table, "x", "n")
    with pytest.raises(TableError, match="both 's'"):
        check_branches(table, "s", "s")
