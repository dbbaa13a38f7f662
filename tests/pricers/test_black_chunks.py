"""Long tensors are worked through in chunks: no value, slope or error message may show it."""

import functools

import pytest
import torch
from torch import Tensor

from pricers.black import bachelier_digital, bachelier_price, black_digital, black_price, implied_vol
from pricers.black.chunks import CHUNK
from pricers.parameters import plausible, volatility, within

PRICES = [
    black_price,
    bachelier_price,
    black_digital,
    functools.partial(black_digital, pays="asset"),
    bachelier_digital,
]


def many(rows: int, columns: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Strikes down a column, expiries along a row, vols everywhere: more elements than two chunks hold."""
    assert rows * columns > 2 * CHUNK
    noise = torch.Generator().manual_seed(5)
    strike = 60.0 + 80.0 * torch.rand(rows, 1, generator=noise, dtype=dtype)
    expiry = 2.0 * torch.rand(columns, generator=noise, dtype=dtype)
    return strike, expiry, torch.rand(rows, columns, generator=noise, dtype=dtype)


@pytest.mark.parametrize("option", ["call", "put"])
@pytest.mark.parametrize("price", PRICES)
def test_prices_in_chunks_have_the_bits_of_prices_row_by_row(price: functools.partial[Tensor], option: str) -> None:
    strike, expiry, vol = many(350, 101)
    whole = price(100.0, strike, expiry, vol, 0.9, option=option)
    rows = [price(100.0, strike[i], expiry, vol[i], 0.9, option=option) for i in range(350)]
    assert torch.equal(whole, torch.stack(rows))


def test_slopes_in_chunks_are_those_of_the_rows() -> None:
    strike, expiry, vol = many(350, 101)
    forward = torch.tensor(100.0, dtype=torch.float64, requires_grad=True)
    inputs = [forward, *(part.requires_grad_() for part in (strike, expiry, vol))]
    whole = torch.autograd.grad(black_price(forward, strike, expiry, vol).sum(), inputs)
    rows = sum(black_price(forward, strike[i], expiry, vol[i]).sum() for i in range(350))
    for one, other in zip(whole, torch.autograd.grad(rows, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    tangent = torch.func.jvp(
        lambda f: black_price(f, strike.detach(), expiry.detach(), vol.detach()).sum(),
        (forward.detach(),),
        (torch.ones_like(forward),),
    )[1]
    torch.testing.assert_close(tangent, whole[0], rtol=1e-12, atol=0)


def test_a_number_without_axes_does_not_widen_the_dtype_of_a_chunk() -> None:
    strike, expiry, vol = many(350, 101, torch.float32)
    forward = torch.tensor(100.0, dtype=torch.float64)
    short = black_price(forward, strike[:2], expiry, vol[:2])
    whole = black_price(forward, strike, expiry, vol)
    assert short.dtype == whole.dtype == torch.float32
    assert torch.equal(whole[:2], short)


def test_vols_in_chunks_come_back_and_the_message_names_the_element() -> None:
    strike, expiry, vol = many(350, 101)
    vol, expiry = 0.2 + 0.5 * vol, 0.5 + expiry
    out_of_the_money = torch.where(
        strike > 100.0, black_price(100.0, strike, expiry, vol), black_price(strike, 100.0, expiry, vol)
    )
    low, high = strike.clamp(max=100.0), strike.clamp(min=100.0)
    torch.testing.assert_close(implied_vol(out_of_the_money, low, high, expiry), vol, rtol=1e-10, atol=0)
    out_of_the_money[340, 7] = -1.0
    with pytest.raises(ValueError, match=r"got -1 against 0 at index \(340, 7\); pass errors"):
        implied_vol(out_of_the_money, low, high, expiry)


def test_one_bad_number_among_many_is_found_and_named() -> None:
    numbers = torch.ones(1000, 3, dtype=torch.float64)
    for bad, rule in ((float("nan"), "be finite, got nan"), (float("inf"), "be finite, got inf"), (0.0, "be above 0")):
        broken = numbers.clone()
        broken[991, 2] = bad
        with pytest.raises(ValueError, match=rf"`x` must {rule}.* at index \(991, 2\)"):
            within("x", broken, above=0.0)
        with pytest.raises(ValueError, match=rf"`x` must {rule}.* at index \(991, 2\)"):
            volatility("x", broken)
    with pytest.raises(ValueError, match=r"`x` must lie in \[-0.5, 0.5\], got 1 at index \(0, 0\); wrong unit"):
        plausible("x", numbers, 0.5, "wrong unit")
    for bounds in ({"at_most": 0.5}, {"below": 1.0}, {"above": 1.0}, {"at_least": 2.0}):
        with pytest.raises(ValueError, match=r"got 1 at index \(0, 0\)"):
            within("x", numbers, **bounds)
    assert within("x", numbers, above=0.0, at_most=1.0) is numbers
