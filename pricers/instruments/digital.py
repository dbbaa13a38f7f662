"""Digital options: a fixed payment if the asset ends on the right side of the strike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pricers.instruments.base import OPTIONS, Discount, Instrument
from pricers.parameters import broadcast_shape, choice, within, years
from pricers.paths import Paths

__all__ = ["Digital"]


@dataclass(frozen=True, eq=False, init=False)
class Digital(Instrument):
    r"""Pays one unit of cash, or one share, at expiry if $S_T \ge K$ (call) or $S_T < K$ (put).

    Its payoff jumps, so that along a path it has no useful derivative: take Greeks from a closed form or by the
    likelihood ratio.

    Args:
        strike: level that decides, above 0; shape `*batch`.
        expiry: years to the payment, above 0; shape `*batch`.
        option: "call" or "put".
        pays: "cash" or "asset".

    Raises:
        ValueError: a strike or an expiry that is not above 0, shapes that do not broadcast, another word.

    References:
        Reiner and Rubinstein (1991), Unscrambling the binary code.

    >>> Digital(strike=[90.0, 110.0], expiry=1.0, option="put", pays="asset").batch_shape
    torch.Size([2])
    """

    kind: ClassVar[str] = "digital"
    strike: Tensor
    expiry: Tensor
    option: str
    pays: str

    def __init__(self, strike: Any, expiry: Any, option: str = "call", pays: str = "cash") -> None:
        object.__setattr__(self, "strike", within("strike", strike, above=0.0))
        object.__setattr__(self, "expiry", years("expiry", expiry))
        object.__setattr__(self, "option", choice("option", option, OPTIONS))
        object.__setattr__(self, "pays", choice("pays", pays, ("cash", "asset")))
        broadcast_shape(strike=self.strike, expiry=self.expiry)

    @property
    def batch_shape(self) -> torch.Size:
        return broadcast_shape(strike=self.strike, expiry=self.expiry)

    @property
    def dates(self) -> Tensor:
        return self.expiry.unsqueeze(-1)

    @property
    def discontinuous(self) -> bool:
        return True

    def payoff(self, paths: Paths, discount: Discount) -> Tensor:
        spot = paths.at(self.dates)[..., 0]
        above = spot >= self.strike.unsqueeze(-1)
        paid = spot if self.pays == "asset" else torch.ones_like(spot)
        return torch.where(above == (self.option == "call"), paid, 0.0) * discount(self.expiry).unsqueeze(-1)
