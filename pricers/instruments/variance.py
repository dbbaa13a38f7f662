"""Variance swaps and options on realised variance, sampled continuously."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pricers.instruments.base import OPTIONS, Discount, Instrument, exercised
from pricers.parameters import broadcast_shape, choice, within, years
from pricers.paths import Paths

__all__ = ["VarianceOption", "VarianceSwap", "realised_variance", "steps_before"]


def steps_before(times: Tensor, horizon: Tensor) -> Tensor:
    """1 for each recorded interval that lies before the horizon, 0 after it; shape `*batch n-1`.

    The horizon is itself a recorded time, so that no interval straddles it.

    >>> steps_before(torch.tensor([0.0, 0.5, 1.0, 2.0]), torch.tensor(1.0))
    tensor([1., 1., 0.])
    """
    middle = 0.5 * (times[1:] + times[:-1]).detach()
    return (middle < horizon.detach().unsqueeze(-1)).to(times.dtype)


def realised_variance(paths: Paths, horizon: Tensor) -> Tensor:
    r"""Annualised quadratic variation of the log price, $\frac{1}{T}\left(\int_0^T v_t\,dt + \sum J^2\right)$.

    Args:
        paths: recorded at each step, with their integrated variance.
        horizon: $T$ in years, shape `*batch`.

    Returns:
        Shape `*batch paths`.
    """
    assert paths.variance is not None, "recorded for continuous instruments"
    increments = paths.variance if paths.jumps_squared is None else paths.variance + paths.jumps_squared
    counted = steps_before(paths.times, horizon).unsqueeze(-2)
    return (increments * counted).sum(-1) / horizon.unsqueeze(-1)


@dataclass(frozen=True, eq=False, init=False)
class VarianceSwap(Instrument):
    r"""Pays realised minus agreed variance, $\frac{1}{T}[\log S]_T - K$, at expiry.

    The realised variance is the quadratic variation of the log price, sampled continuously, jumps included, per year.

    Args:
        strike: annualised variance (0.04 is a volatility of 20 %), 0 or more; shape `*batch`.
        expiry: years to payment, above 0; shape `*batch`.

    Raises:
        ValueError: a negative strike, an expiry that is not above 0, shapes that do not broadcast.

    >>> VarianceSwap(strike=0.04, expiry=[0.5, 1.0]).batch_shape
    torch.Size([2])
    """

    kind: ClassVar[str] = "variance_swap"
    strike: Tensor
    expiry: Tensor

    def __init__(self, strike: Any, expiry: Any) -> None:
        object.__setattr__(self, "strike", within("strike", strike, at_least=0.0))
        object.__setattr__(self, "expiry", years("expiry", expiry))
        broadcast_shape(strike=self.strike, expiry=self.expiry)

    @property
    def batch_shape(self) -> torch.Size:
        return broadcast_shape(strike=self.strike, expiry=self.expiry)

    @property
    def dates(self) -> Tensor:
        return self.expiry.unsqueeze(-1)

    @property
    def continuous(self) -> bool:
        return True

    def payoff(self, paths: Paths, discount: Discount) -> Tensor:
        gain = realised_variance(paths, self.expiry) - self.strike.unsqueeze(-1)
        return gain * discount(self.expiry).unsqueeze(-1)


@dataclass(frozen=True, eq=False, init=False)
class VarianceOption(Instrument):
    r"""Call $(V - K)^+$ or put $(K - V)^+$ on the realised variance $V = \frac{1}{T}[\log S]_T$, paid at expiry.

    The realised variance is the quadratic variation of the log price, sampled continuously, jumps included, per year.

    Args:
        strike: annualised variance, above 0; shape `*batch`.
        expiry: years to payment, above 0; shape `*batch`.
        option: "call" or "put".

    Raises:
        ValueError: a strike or an expiry that is not above 0, shapes that do not broadcast, another option.

    >>> VarianceOption(strike=[0.03, 0.04], expiry=1.0, option="put").batch_shape
    torch.Size([2])
    """

    kind: ClassVar[str] = "variance_option"
    strike: Tensor
    expiry: Tensor
    option: str

    def __init__(self, strike: Any, expiry: Any, option: str = "call") -> None:
        object.__setattr__(self, "strike", within("strike", strike, above=0.0))
        object.__setattr__(self, "expiry", years("expiry", expiry))
        object.__setattr__(self, "option", choice("option", option, OPTIONS))
        broadcast_shape(strike=self.strike, expiry=self.expiry)

    @property
    def batch_shape(self) -> torch.Size:
        return broadcast_shape(strike=self.strike, expiry=self.expiry)

    @property
    def dates(self) -> Tensor:
        return self.expiry.unsqueeze(-1)

    @property
    def continuous(self) -> bool:
        return True

    def payoff(self, paths: Paths, discount: Discount) -> Tensor:
        value = exercised(realised_variance(paths, self.expiry), self.strike.unsqueeze(-1), self.option)
        return value * discount(self.expiry).unsqueeze(-1)
