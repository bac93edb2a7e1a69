"""The floor of rounding: by the digits in use, in every dtype, and met by what rounding does."""

import math

import numpy as np
import pytest
import torch

from analysis360.stats import DEFAULT, accumulators, merge
from tests.measured import alone, pair
from tests.reference import steps_of

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
ULP = accumulators["ulp_sums"]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("length", [1, 2, 3, 7, 64, 4097])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_steps_are_those_of_the_format(dtype, length):
    x = (0.02 * torch.randn(length, generator=generator(length), dtype=torch.float64)).to(dtype)
    x[0] = torch.finfo(dtype).eps * 0.7  # a subnormal of float16
    got = ULP.function(x.double()).item()
    assert got == pytest.approx((steps_of(x.double().numpy()) ** 2).sum(), rel=1e-12)
    if length > 7:  # enough for every digit to be in use
        significant = {torch.float64: 53, torch.float32: 24, torch.bfloat16: 8, torch.float16: 11}
        largest = 2.0 ** (math.floor(math.log2(x.double().abs().max())) + 1 - significant[dtype])
        assert largest**2 <= got <= length * largest**2


@pytest.mark.parametrize("length", [1, 2, 3, 5, 8, 15])
@pytest.mark.parametrize(("digit", "significant"), [(-7, 8), (-8, 11), (-11, 24), (-24, 53)])
def test_a_single_element_tells_the_format(length, digit, significant):
    """Wherever it stands."""
    for place in range(length):
        x = torch.ones(length, dtype=torch.float64)
        x[place] += 2.0**digit
        assert ULP.function(x).item() == length * 4.0 ** (1 - significant)


def test_small_halves_are_as_far_apart_as_the_smallest_normal_ones():
    """Below 2**-14 float16 has a fixed step, and float32 has not."""
    x = torch.full((9,), 2.0**-20, dtype=torch.float64)
    x[4] = 2.0**-14 * (1 + 2.0**-10)
    assert ULP.function(x).item() == 9 * 4.0**-24
    x[4] = 2.0**-14 * (1 + 2.0**-23)
    assert ULP.function(x).item() == pytest.approx(4.0**-37 + 8 * 4.0**-43, rel=1e-12)


def test_bfloat16_exported_wider_has_gained_nothing():
    """As K2's weights, which are float16 on the Hub."""
    x = (0.02 * torch.randn(50_000, generator=generator())).to(torch.bfloat16)
    want = alone(x, ["rounding_error"])["rounding_error"]
    for dtype in (torch.float16, torch.float32, torch.float64):
        got = alone(x.to(dtype), ["rounding_error"])["rounding_error"]
        assert got == pytest.approx(want, rel=1e-3), dtype
    single = alone((0.02 * torch.randn(50_000, generator=generator())), ["rounding_error"])
    assert single["rounding_error"] < 1e-7


@pytest.mark.parametrize(
    ("dtype", "error"), [(torch.bfloat16, 1.66e-3), (torch.float16, 2.1e-4), (torch.float32, 2.5e-8)]
)  # fmt: skip
def test_the_error_is_that_of_rounding(dtype, error):
    """0.166 % in bfloat16: what rounding a Gaussian tensor changes it by."""
    x = 0.02 * torch.randn(200_000, generator=generator(3), dtype=torch.float64)
    stored = x.to(dtype)
    measured = ((stored.double() - x).norm() / x.norm()).item()
    got = alone(stored, ["rounding_error"])["rounding_error"]
    assert got == pytest.approx(measured, rel=0.01)
    assert got == pytest.approx(error, rel=0.02)


def test_the_floor_is_what_two_roundings_show():
    """0.235 % for Gaussian weights that move by much more than a step; 0.13 to 0.21 % for gains."""
    g = generator(4)
    x, move = torch.randn(2, 200_000, generator=g, dtype=torch.float64)
    a, b = 0.02 * x, 0.02 * x + 2e-3 * move
    floor = pair(b.bfloat16(), a.bfloat16(), ["rounding_floor"])["rounding_floor"]
    assert floor == pytest.approx(2.35e-3, rel=0.01)
    rounding = (b.bfloat16().double() - b) - (a.bfloat16().double() - a)
    assert floor == pytest.approx((rounding.norm() / a.norm()).item(), rel=0.01)
    gains = (1.2 + 0.2 * x).bfloat16(), (1.2 + 0.2 * x + 0.1 * move).bfloat16()
    assert 1.3e-3 < alone(gains[0], ["rounding_error"])["rounding_error"] < 2.1e-3
    assert 1.9e-3 < pair(*gains, ["rounding_floor"])["rounding_floor"] < 3.0e-3


def test_a_pair_of_two_dtypes():
    """Each with its own step: bfloat16 against the float32 master it was made of."""
    a = 0.02 * torch.randn(100_000, generator=generator(5))
    floor = pair(a.bfloat16(), a, ["rounding_floor"])["rounding_floor"]
    assert floor == pytest.approx(1.66e-3, rel=0.02)


def test_tensors_of_several_dtypes_add_up():
    """The sums of a layer are those of its tensors."""
    x = torch.randn(3000, generator=generator(6))
    parts = [x[:1000].bfloat16().double(), x[1000:].double()]
    rows = np.stack([ULP.function(part).numpy() for part in parts])
    merged = merge(ULP.fields, rows, np.zeros(1, dtype=np.intp))[0, 0]
    assert merged == pytest.approx(sum((steps_of(p.numpy()) ** 2).sum() for p in parts))


def test_undefined():
    assert math.isnan(alone(torch.zeros(5), ["rounding_error"])["rounding_error"])
    assert math.isnan(pair(torch.ones(5), torch.zeros(5), ["rounding_floor"])["rounding_floor"])
    x = torch.ones(5)
    x[2] = math.inf
    assert math.isnan(alone(x, ["rounding_error"])["rounding_error"])
    assert math.isnan(pair(x, torch.ones(5), ["rounding_floor"])["rounding_floor"])
    assert not {"rounding_error", "rounding_floor"} & set(DEFAULT)
