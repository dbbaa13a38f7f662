"""Batch axes that do not move a price are there all the same, in prices and Greeks."""

import pytest
import torch

import pricers as pr

HESTON = pr.Heston(0.04, 2.0, 0.05, 0.5, -0.6)
MARKET = pr.Market([95.0, 104.0], 0.02)
CASES = {
    "variance option": (pr.VarianceOption(0.04, 1.0, "call"), pr.Analytic()),
    "variance swap": (pr.VarianceSwap(0.04, 1.0), pr.Analytic()),
    "cliquet": (pr.Cliquet([0.5, 1.0], local_floor=-0.05, local_cap=0.05), pr.Fourier()),
}


@pytest.mark.parametrize("name", CASES)
def test_a_price_that_no_spot_moves_has_the_batch_of_the_spots(name):
    instrument, engine = CASES[name]
    together = pr.price(instrument, HESTON, MARKET, engine).value
    alone = pr.price(instrument, HESTON, pr.Market(95.0, 0.02), engine).value
    assert together.shape == (2,)
    assert torch.equal(together, alone.expand(2))
    wrt = ("spot", "v0", ("spot", "spot"), ("time", "spot"), ("v0", "v0"))
    found = pr.greeks(instrument, HESTON, MARKET, wrt, engine=engine)
    alone = pr.greeks(instrument, HESTON, pr.Market(95.0, 0.02), wrt, engine=engine)
    for key in wrt:
        assert found[key].value.shape == (2,)
        torch.testing.assert_close(found[key].value, alone[key].value.expand(2), rtol=1e-12, atol=1e-14)
    assert bool((found["spot"].value == 0).all())
    assert bool((found["v0"].value != 0).all())
