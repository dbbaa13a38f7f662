"""The implied normal volatility has all its digits: its last step is not one too few."""

import mpmath as mp
import torch

from pricers.black import bachelier_implied_vol


def test_normal_vol_to_a_few_units_of_the_last_digit():
    with mp.workdps(40):
        distances = [mp.mpf(k) / 16 for k in range(128)]
        prices = [float(mp.npdf(a) - a * mp.ncdf(-a)) for a in distances]  # of total volatility 1
    price, distance = (torch.tensor([float(x) for x in row], dtype=torch.float64) for row in (prices, distances))
    found = bachelier_implied_vol(price, 0.0, distance, 1.0)
    torch.testing.assert_close(found, torch.ones_like(found), rtol=2e-15, atol=0.0)
