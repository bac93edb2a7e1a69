"""Tilt and inequality over depth, against definitions and closed forms."""

import numpy as np
import pandas as pd
import pytest

from analysis360.errors import TableError
from analysis360.profiles import depth_profile, gini
from analysis360.table import KEY


def table(values, module="mlp.up", **more):
    """One tensor a layer."""
    return pd.DataFrame([
        dict.fromkeys(KEY) | {
            "run": "r", "branch": "s", "number": 1, "step": 10, "tokens": 100,
            "name": f"{layer}.{module}", "layer": layer, "module": module, "param": "weight",
            "state": "weight", "against": "", "rms": value,
        } | more
        for layer, value in enumerate(values)
    ])  # fmt: skip


def test_slopes_are_over_the_whole_depth():
    got = depth_profile(table([2.0, 3.0, 4.0, 5.0]), "rms").iloc[0]
    assert got["slope"] == pytest.approx(3) and got["layers"] == 4 and got["highest"] == 3
    assert depth_profile(table(2.0 ** np.arange(5)), "rms")["log2_slope"].item() == pytest.approx(4)
    some = table([2.0, np.nan, 4.0, np.inf, 6.0])
    got = depth_profile(some, "rms").iloc[0]  # those that are left keep their depth
    assert (got["slope"], got["layers"]) == (pytest.approx(4), 3)


def test_noise_is_fitted_by_least_squares():
    value = np.random.default_rng(0).uniform(1, 2, 30)
    got = depth_profile(table(value), "rms").iloc[0]
    depth = np.arange(30) / 29
    assert got["slope"] == pytest.approx(np.polyfit(depth, value, 1)[0])
    assert got["log2_slope"] == pytest.approx(np.polyfit(depth, np.log2(value), 1)[0])
    by_pairs = np.abs(value[:, None] - value).sum() / (2 * 30**2 * value.mean())
    assert got["gini"] == pytest.approx(by_pairs)


def test_closed_forms_of_gini():
    assert gini(np.full(7, 3.0)) == pytest.approx(0, abs=1e-15)
    assert gini(np.array([0, 0, 0, 0, 1e-200])) == pytest.approx(0.8)
    assert gini(np.arange(1.0, 1001)) == pytest.approx((1000 - 1) / (3 * 1000))
    assert np.isnan(gini(np.array([-1.0, 2, 3]))) and np.isnan(gini(np.zeros(3)))


def test_where_it_is_not_defined():
    got = depth_profile(table([1.0, 2.0]), "rms").iloc[0]
    assert got["status"] == "too few layers: 2, needs 3"
    assert np.isnan([got["slope"], got["log2_slope"], got["gini"]]).all()
    got = depth_profile(table([-1.0, 0.0, 1.0]), "rms").iloc[0]
    assert (
        got["slope"] == pytest.approx(2) and np.isnan(got["log2_slope"]) and np.isnan(got["gini"])
    )
    assert got["status"] == "measured"


def test_one_profile_for_each_checkpoint_and_module():
    frames = [
        table([1.0, 2, 3], m, number=n, step=n * 10) for m in ("attn.q", "mlp.up") for n in (1, 2)
    ]
    got = depth_profile(pd.concat(frames), "rms")
    assert len(got) == 4 and set(got["module"]) == {"attn.q", "mlp.up"}
    assert got["number"].dtype == "Int64" and got["slope"].tolist() == pytest.approx([2] * 4)
    layers = pd.concat(frames[:1]).assign(module="", param="", name="")
    assert len(depth_profile(layers, "rms")) == 1


def test_wrong_questions():
    one = table([1.0, 2, 3])
    with pytest.raises(TableError, match="no column"):
        depth_profile(one, "std")
    with pytest.raises(TableError, match="did you mean rms"):
        depth_profile(one, "rmss")
    many = pd.concat([one, pd.DataFrame(0.0, one.index, [f"x{n}" for n in range(40)])], axis=1)
    with pytest.raises(TableError, match=r"x10 and 29 more$"):  # not a screen of names
        depth_profile(many, "std")
    with pytest.raises(TableError, match="has a layer"):
        depth_profile(one.assign(layer=None, name=["a", "b", "c"]), "rms")
    with pytest.raises(TableError, match="not a number"):
        depth_profile(one.assign(words="x"), "words")
    with pytest.raises(TableError, match="has one already"):
        depth_profile(pd.concat([one, one.assign(name=["a", "b", "c"])]), "rms")
