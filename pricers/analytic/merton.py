"""Options under Merton's jumps: Black's formula mixed over the number of jumps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pricers.black import black_call_put
from pricers.estimate import Estimate
from pricers.instruments.european import European
from pricers.market import Market
from pricers.models.bates import Merton

__all__ = ["FORMULAS", "european_merton", "merton_call_put", "poisson_probabilities"]

TAIL = 1e-17  # probability that the terms left out may have together


def poisson_probabilities(expected: Tensor, n_terms: int) -> Tensor:
    r"""$e^{-m} m^n / n!$ for $n = 0, \dots$, as smooth at $m = 0$ as elsewhere and without overflow.

    Computed as $c_n\,(x e^{1 - x})^n$ with $x = m / n$ and $c_n = n^n e^{-n} / n!$: the base lies in [0, 1].

    Args:
        expected: $m$, 0 or more; shape `*batch`.
        n_terms: how many, at least 1.

    Returns:
        Shape `*batch n_terms`.

    >>> poisson_probabilities(torch.tensor(1.0, dtype=torch.float64), 3)
    tensor([0.3679, 0.3679, 0.1839], dtype=torch.float64)
    """
    count = torch.arange(1, n_terms, dtype=torch.float64, device=expected.device)
    constant = torch.exp(torch.xlogy(count, count) - count - torch.lgamma(count + 1.0)).to(expected.dtype)
    count = count.to(expected.dtype)
    share = expected.unsqueeze(-1) / count
    return torch.cat([torch.exp(-expected).unsqueeze(-1), constant * (share * torch.exp(1.0 - share)) ** count], dim=-1)


def merton_call_put(
    forward: Tensor,
    strike: Tensor,
    expiry: Tensor,
    vol: Tensor,
    intensity: Tensor,
    jump_mean: Tensor,
    jump_std: Tensor,
) -> tuple[Tensor, Tensor]:
    r"""Undiscounted call and put; nothing is checked. All arguments broadcast.

    $$\sum_n e^{-\lambda T} \frac{(\lambda T)^n}{n!}\,\mathrm{Black}(F_n, K, w_n), \qquad
      F_n = F e^{n (\mu + \delta^2/2) - \lambda \bar k T}, \quad w_n = \mathrm{vol}^2 T + n \delta^2$$

    Args:
        forward: above 0.
        strike: above 0.
        expiry: years, above 0.
        vol: above 0.
        intensity: $\lambda$, 0 or more.
        jump_mean: $\mu$.
        jump_std: $\delta$, 0 or more.

    References:
        Merton (1976), Option pricing when underlying stock returns are discontinuous, eq. 19.
    """
    log_growth = jump_mean + 0.5 * jump_std**2
    expected = intensity * expiry
    n_terms = _n_terms(expected, expected * torch.exp(log_growth))
    count = torch.arange(n_terms, dtype=expected.dtype, device=expected.device)
    log_ratio = count * log_growth.unsqueeze(-1) - (expected * torch.expm1(log_growth)).unsqueeze(-1)
    deviation = torch.sqrt((vol**2 * expiry).unsqueeze(-1) + count * (jump_std**2).unsqueeze(-1))
    call, put = black_call_put(forward.unsqueeze(-1) * torch.exp(log_ratio), strike.unsqueeze(-1), deviation)
    weights = poisson_probabilities(expected, n_terms)
    return (weights * call).sum(-1), (weights * put).sum(-1)


def _n_terms(*expected: Tensor) -> int:
    """Terms after which no Poisson law of these means has more than `TAIL` left (Chernoff's bound), nor its slopes."""
    largest = max(mean.detach().max().item() for mean in expected)
    n = math.ceil(largest) + 1
    while largest > 0.0 and n * (1.0 + math.log(largest / n)) - largest > math.log(TAIL):
        n += 1
    return n + 3  # each derivative by the mean brings in one term more


def european_merton(instrument: European, model: Merton, market: Market) -> Estimate:
    """The series, in which calls count jumps under the measure of the asset: both tails are left out below 1e-17."""
    expiry = instrument.expiry
    forward, strike, discount = market.forward(expiry), instrument.strike, market.discount(expiry)
    call, put = merton_call_put(forward, strike, expiry, model.vol, model.intensity, model.jump_mean, model.jump_std)
    value = discount * (call if instrument.option == "call" else put)
    largest = torch.maximum(*torch.broadcast_tensors(forward, strike)).detach()
    bound = 32.0 * torch.finfo(value.dtype).eps * discount.detach() * largest
    return Estimate(value, 0.0, bound, engine="analytic")


# (instrument, model) -> formula(instrument, model, market)
FORMULAS: dict[tuple[type[Any], type[Any]], Callable[..., Estimate]] = {(European, Merton): european_merton}
