"""Options on the average price that die or come alive when the asset fixes beyond a barrier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pricers.instruments.barrier import KINDS
from pricers.instruments.base import OPTIONS, Discount, Instrument, exercised
from pricers.parameters import broadcast_shape, choice, dates, within
from pricers.paths import Paths

__all__ = ["AsianBarrier"]


@dataclass(frozen=True, eq=False, init=False)
class AsianBarrier(Instrument):
    r"""Option on the average of fixings, void once one of them lies at or beyond the barrier ("out"), or until ("in").

    With the average $A = \frac1n \sum_i S_{t_i}$ (or $(\prod_i S_{t_i})^{1/n}$), a call that is knocked out from above
    pays at the last date

    $$(A - K)^+\,1\{S_{t_1} < B, \dots, S_{t_n} < B\}.$$

    The barrier is watched on the fixing dates only, the last one among them. There is no rebate.

    Args:
        strike: above 0; shape `*batch`.
        times: fixing dates in years, above 0 and ascending; shape `*batch n_dates`.
        barrier: level, above 0; shape `*batch`. A spot beyond it today is allowed.
        kind: "down-out", "up-out", "down-in" or "up-in"; a fixing is beyond a "down" barrier at or below it.
        option: "call" or "put".
        average: "arithmetic" or "geometric".

    Raises:
        ValueError: a number out of its bounds, dates out of order, shapes that do not broadcast, another word.

    References:
        Glasserman (2004), sections 4.2.4 (averages) and 3.2.2 (barriers on dates).

    >>> AsianBarrier(100.0, times=[0.25, 0.5], barrier=[120.0, 130.0], kind="up-out", option="call").batch_shape
    torch.Size([2])
    """

    date_fields: ClassVar[tuple[str, ...]] = ("times",)
    strike: Tensor
    times: Tensor
    barrier: Tensor
    # The class is registered as "asian_barrier"; of a contract it is the kind of barrier.
    kind: str = "asian_barrier"  # pyright: ignore[reportIncompatibleVariableOverride]
    option: str
    average: str

    def __init__(
        self, strike: Any, times: Any, barrier: Any, kind: str, option: str = "call", average: str = "arithmetic"
    ) -> None:
        set_field = object.__setattr__  # the class is frozen
        set_field(self, "strike", within("strike", strike, above=0.0))
        set_field(self, "times", dates("times", times))
        set_field(self, "barrier", within("barrier", barrier, above=0.0))
        set_field(self, "kind", choice("kind", kind, KINDS))
        set_field(self, "option", choice("option", option, OPTIONS))
        set_field(self, "average", choice("average", average, ("arithmetic", "geometric")))
        _ = self.batch_shape  # shapes that do not broadcast are an error here

    @property
    def batch_shape(self) -> torch.Size:
        return broadcast_shape(strike=self.strike, times=self.times.shape[:-1], barrier=self.barrier)

    @property
    def dates(self) -> Tensor:
        return self.times

    @property
    def discontinuous(self) -> bool:
        return True

    @property
    def down(self) -> bool:
        """Whether fixings at or below the barrier count, not those at or above it."""
        return self.kind.startswith("down")

    @property
    def out(self) -> bool:
        """Whether the option dies at the barrier."""
        return self.kind.endswith("out")

    def payoff(self, paths: Paths, discount: Discount) -> Tensor:
        fixings, level = paths.at(self.times), self.barrier[..., None, None]
        beyond = fixings <= level if self.down else fixings >= level
        hit = beyond.any(dim=-1)
        if self.average == "arithmetic":
            average = fixings.mean(-1)
        else:  # the logarithm of a price that was absorbed at 0 is finite, and has a finite gradient
            average = fixings.clamp(min=torch.finfo(fixings.dtype).tiny).log().mean(-1).exp()
        paid = exercised(average, self.strike.unsqueeze(-1), self.option)
        return torch.where(~hit if self.out else hit, paid, 0.0) * discount(self.horizon).unsqueeze(-1)
