"""Calls and puts that are exercised at their expiry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pricers.instruments.base import OPTIONS, Discount, Instrument, exercised
from pricers.parameters import broadcast_shape, choice, within, years
from pricers.paths import Paths

__all__ = ["European"]


@dataclass(frozen=True, eq=False, init=False)
class European(Instrument):
    r"""Call $(S_T - K)^+$ or put $(K - S_T)^+$, paid at expiry.

    Args:
        strike: price at which the option buys or sells, above 0; shape `*batch`.
        expiry: years to exercise and payment, above 0; shape `*batch`.
        option: "call" or "put".

    Raises:
        ValueError: a strike or an expiry that is not above 0, shapes that do not broadcast, another option.

    >>> European(strike=[[90.0], [110.0]], expiry=[0.5, 1.0, 2.0]).batch_shape
    torch.Size([2, 3])
    """

    kind: ClassVar[str] = "european"
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

    def payoff(self, paths: Paths, discount: Discount) -> Tensor:
        spot = paths.at(self.dates)[..., 0]
        return exercised(spot, self.strike.unsqueeze(-1), self.option) * discount(self.expiry).unsqueeze(-1)
