"""Derivatives of the implied vol: against one over vega, as the inverse of the price, and by finite differences."""

import math

import pytest
import torch
from torch import Tensor
from torch.autograd import grad

from pricers.black import (
    bachelier_greeks,
    bachelier_implied_vol,
    bachelier_price,
    black_greeks,
    black_price,
    implied_vol,
)

# torch's own forward-mode module calls the deprecated torch.jit.script when it is first loaded
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
BLACK = (black_price, implied_vol, black_greeks, 1.0)
BACHELIER = (bachelier_price, bachelier_implied_vol, bachelier_greeks, 100.0)
both = pytest.mark.parametrize(("price", "invert", "greeks", "scale"), [BLACK, BACHELIER], ids=["black", "bachelier"])


def tensor(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def leaves(scale: float) -> list[Tensor]:
    """Forward, strike, expiry, vol, discount: at the money, close to it, in both wings, long and short."""
    columns = [
        tensor([100.0, 100.0, 100.0, 100.0, 100.0, 100.0]),
        tensor([100.0, 120.0, 80.0, 100.0001, 200.0, 140.0]),
        tensor([1.0, 0.5, 2.0, 0.01, 0.5, 30.0]),
        tensor([0.2, 0.3, 0.15, 0.05, 0.4, 0.9]) * scale,
        tensor([0.9, 1.0, 0.8, 0.99, 0.7, 0.5]),
    ]
    return [column.requires_grad_() for column in columns]


@both
@pytest.mark.parametrize("option", ["call", "put"])
def test_first_and_second_derivative_by_price_are_those_of_the_inverse(price, invert, greeks, scale, option) -> None:
    forward, strike, expiry, vol, discount = [leaf.detach() for leaf in leaves(scale)]
    given = price(forward, strike, expiry, vol, discount, option).requires_grad_()
    closed = greeks(forward, strike, expiry, vol, discount, option)
    first = grad(invert(given, forward, strike, expiry, discount, option).sum(), given, create_graph=True)[0]
    second = grad(first.sum(), given)[0]
    # in the money the vol is conditioned by price / (vega vol), up to some 1e3 here
    torch.testing.assert_close(first, 1.0 / closed.vega, rtol=1e-10, atol=0)
    torch.testing.assert_close(second, -closed.volga / closed.vega**3, rtol=1e-9, atol=1e-12)


@both
@pytest.mark.parametrize("option", ["call", "put"])
def test_vol_of_the_price_is_the_identity_to_third_order(price, invert, greeks, scale, option) -> None:
    arguments = leaves(scale)
    forward, strike, expiry, vol, discount = arguments
    value = price(forward, strike, expiry, vol, discount, option)
    again = invert(value, forward, strike, expiry, discount, option)
    unit = [scale * leaf.detach().abs() / vol.detach() for leaf in arguments]  # derivatives made relative
    first = grad(again.sum(), arguments, create_graph=True)
    for i, slope in enumerate(first):
        torch.testing.assert_close(slope * unit[i] / scale, torch.full_like(vol, float(i == 3)), rtol=0, atol=1e-9)
    for i, slope in enumerate(first):
        for j, second in enumerate(grad(slope.sum(), arguments, create_graph=True)):
            size = (second * unit[i] * arguments[j] / scale).detach().abs().max()
            assert size < 1e-5  # the terms that cancel reach 1e7 at the money for 4 days
            third = grad(second.sum(), vol, retain_graph=True, allow_unused=True)[0]
            if j != 0 and i != 0 and third is not None:  # by the forward twice or more rounding leaves too little
                assert (third * unit[i] * arguments[j]).detach().abs()[[0, 1, 2, 4, 5]].max() < 1e-5


@both
def test_gradcheck_twice_in_reverse_and_forward_mode(price, invert, greeks, scale) -> None:
    del greeks
    forward, strike = tensor([1.0, 1.0, 1.0]), tensor([0.8, 1.0, 1.4])
    expiry, discount, vol = tensor([1.0, 0.5, 2.0]), tensor([0.9, 1.0, 0.8]), tensor([0.4, 0.3, 0.5])
    value = price(forward, strike, expiry, vol, discount)
    arguments = [leaf.detach().requires_grad_() for leaf in (value, forward, strike, expiry, discount)]
    assert torch.autograd.gradcheck(
        lambda *a: invert(*a, errors="nan"), arguments, check_forward_ad=True, check_undefined_grad=False
    )
    assert torch.autograd.gradgradcheck(lambda *a: invert(*a, errors="nan"), arguments, check_fwd_over_rev=True)


def test_nested_forward_mode_gives_the_second_derivative() -> None:
    value = black_price(100.0, 110.0, 0.5, tensor([0.2, 0.5]))
    one = torch.ones_like(value)

    def slope(value: Tensor) -> Tensor:
        return torch.func.jvp(lambda p: implied_vol(p, 100.0, 110.0, 0.5), (value,), (one,))[1]

    first, second = torch.func.jvp(slope, (value,), (one,))
    closed = black_greeks(100.0, 110.0, 0.5, tensor([0.2, 0.5]))
    torch.testing.assert_close(first, 1.0 / closed.vega, rtol=1e-12, atol=0)
    torch.testing.assert_close(second, -closed.volga / closed.vega**3, rtol=1e-11, atol=0)


def test_forward_mode_and_vmap_agree_with_reverse_mode() -> None:
    strike = tensor([90.0, 100.0, 125.0])
    value = black_price(100.0, strike, 0.5, 0.3)

    def vols(value: Tensor) -> Tensor:
        return implied_vol(value, 100.0, strike, 0.5, errors="nan")

    torch.testing.assert_close(torch.func.jacfwd(vols)(value), torch.func.jacrev(vols)(value), rtol=1e-13, atol=0)
    stacked = torch.func.vmap(vols)(torch.stack([value, 1.01 * value]))
    torch.testing.assert_close(stacked[1], vols(1.01 * value), rtol=1e-14, atol=0)


@pytest.mark.parametrize("invert", [implied_vol, bachelier_implied_vol])
def test_elements_without_a_vol_leave_the_gradients_of_the_others_alone(invert) -> None:
    good = [tensor([8.0, 12.0]), tensor([100.0, 90.0]), tensor([100.0, 85.0]), tensor([1.0, 0.5]), tensor([0.9, 1.0])]
    bad = [
        tensor([math.nan, -1.0, 8.0, 8.0, 8.0, 8.0, 8.0, 0.0]),
        tensor([100.0, 100.0, math.nan, math.inf, 100.0, 100.0, 100.0, 100.0]),
        tensor([100.0, 100.0, 100.0, 100.0, math.nan, 100.0, 100.0, 100.0]),
        tensor([1.0, 1.0, 1.0, 1.0, 1.0, -1.0, 1.0, 1.0]),
        tensor([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 1.0]),
    ]
    alone = [leaf.clone().requires_grad_() for leaf in good]
    mixed = [torch.cat([b, g]).requires_grad_() for g, b in zip(good, bad, strict=True)]
    shared = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)  # enters every element
    expected = invert(*alone)
    vols = invert(*(leaf + shared for leaf in mixed), errors="nan")
    assert bool(vols[:8].isnan().all())
    assert torch.equal(vols[8:], expected)
    slopes = grad(vols.nan_to_num(0.0).sum(), [*mixed, shared], retain_graph=True)
    for slope, true in zip(slopes, grad(expected.sum(), alone), strict=False):
        assert slope[:8].tolist() == [0.0] * 8
        assert torch.equal(slope[8:], true)
    assert bool(slopes[-1].isfinite())
    assert bool(grad(vols[9], shared)[0].isfinite())


def test_one_expiry_shared_by_a_row_of_strikes_sums_the_gradient() -> None:
    expiry = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    strike = tensor([90.0, 110.0])
    value = black_price(100.0, strike, 0.5, 0.25).detach()
    slope = grad(implied_vol(value, 100.0, strike, expiry).sum(), expiry)[0]
    assert slope.item() == pytest.approx(-2 * 0.25 / (2 * 0.5), rel=1e-12)  # vol times root of expiry is given
