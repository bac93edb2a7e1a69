"""Histograms of magnitudes: exact counts, in every form, and quantiles within a bin."""

import math

import numpy as np
import pytest
import torch

import analysis360 as a360
from analysis360.stats import DEFAULT, accumulators, compiled, merge
from analysis360.stats.bins import BINS, edges
from analysis360.stats.tiles import exact
from tests.measured import alone, run_of

BINNED = accumulators["magnitude_bins"]
DTYPES = [torch.bfloat16, torch.float32, torch.float16, torch.float64]
numba = pytest.mark.skipif(not compiled.available(), reason="numba is not installed")


def awkward(dtype):
    """All magnitudes that a bin can go wrong on, and some random ones."""
    at = edges()[1:-1]
    near = np.concatenate([at, np.nextafter(at, 0), np.nextafter(at, np.inf), [0.0, -0.0]])
    odd = torch.tensor([math.nan, math.inf, -math.inf, 1e-45, -3e38])
    g = torch.randn(5001, generator=torch.Generator().manual_seed(0))
    return torch.cat([torch.from_numpy(near).to(dtype), odd.to(dtype), (0.02 * g).to(dtype)])


def counted(x):
    """By comparison with the edges."""
    a = x.double().abs().numpy()
    place = np.searchsorted(edges()[1:-1], a, side="right")
    return np.bincount(place, minlength=BINS).astype(float)


def torch_form(x):
    return BINNED.function(exact(x)).numpy()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_counts_are_exact(dtype):
    x = awkward(dtype)
    np.testing.assert_array_equal(torch_form(x), counted(x))
    assert torch_form(x).sum() == x.numel()


@numba
@pytest.mark.slow  # compiles, when it runs for the first time
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("length", [1, 3, 4, 4097, None])
def test_the_compiled_form_counts_the_same(dtype, length):
    x = awkward(dtype)[-length if length else 0 :]
    (got,) = compiled.run([BINNED], {"tensor": x}, {})
    np.testing.assert_array_equal(got, counted(x))
    among = compiled.run([accumulators["norm_sums"], BINNED], {"tensor": x}, {})
    np.testing.assert_array_equal(among[1], counted(x))


def test_histograms_add_up():
    x = awkward(torch.float32)
    parts = np.stack([torch_form(part) for part in x.split(700)])
    whole = merge(BINNED.fields, parts, np.zeros(1, dtype=np.intp))[0]
    np.testing.assert_array_equal(whole, torch_form(x))


@pytest.mark.parametrize("scale", [1e-25, 1e-8, 1.0, 1e6])
def test_quantiles_are_within_a_bin(scale):
    x = scale * torch.randn(200_000, generator=torch.Generator().manual_seed(1))
    row = alone(x, ["abs_median", "abs_p99", "abs_p999"])
    a = x.double().abs().numpy()
    for name, q in (("abs_median", 0.5), ("abs_p99", 0.99), ("abs_p999", 0.999)):
        assert row[name] == pytest.approx(np.quantile(a, q), rel=0.125)
    assert row["abs_median"] == pytest.approx(0.6745 * scale, rel=0.02)


def test_undefined_quantiles():
    x = torch.ones(100)
    x[:30] = math.nan
    row = alone(x, ["abs_median", "abs_p99"])
    assert row["abs_median"] == pytest.approx(1, rel=0.125) and math.isnan(row["abs_p99"])
    zeros = alone(torch.zeros(5), ["abs_median", "abs_p999"])
    assert (zeros["abs_median"], zeros["abs_p999"]) == (0, 0)


def test_opt_in_by_layer_and_resumed(tmp_path):
    """Not measured by default; the counts of a layer's tensors add up to the layer's."""
    assert "abs_median" not in DEFAULT
    g = torch.Generator().manual_seed(2)
    layer = {f"layers.0.w{i}.weight": 10.0**i * torch.randn(300, 70, generator=g) for i in range(3)}
    run, stores = run_of(layer)
    a360.plan(run, ["rms"], against=[]).run(tmp_path / "m", progress=False)
    plan = a360.plan(run, ["abs_median", "abs_p99", "rms"], against=[])
    table = plan.run(tmp_path / "m", progress=False)
    assert table["abs_median"].notna().all() and stores
    everything = torch.cat([t.reshape(-1) for t in layer.values()]).abs().double().numpy()
    by_layer = a360.load_table(tmp_path / "m", by="layer")
    got = by_layer.loc[by_layer["layer"] == 0, "abs_median"].item()
    assert got == pytest.approx(np.quantile(everything, 0.5), rel=0.125)
