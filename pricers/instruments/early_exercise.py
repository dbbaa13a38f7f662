"""Options whose holder chooses the time of exercise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NoReturn

import torch
from torch import Tensor

from pricers.instruments.base import OPTIONS, Discount, EarlyExercise, exercised
from pricers.parameters import broadcast_shape, choice, dates, within, years
from pricers.paths import Paths

__all__ = ["American", "Bermudan"]

BermudanOn = Literal["single", "max", "min"]
ON: tuple[str, ...] = ("single", "max", "min")


@dataclass(frozen=True, eq=False, init=False)
class American(EarlyExercise):
    r"""Call or put that may be exercised at any time up to its expiry.

    $$\sup_{\tau \le T} E\left[e^{-\int_0^\tau r}\,(\phi (S_\tau - K))^+\right]$$

    Args:
        strike: price at which the option buys or sells, above 0; shape `*batch`.
        expiry: years to the last time of exercise, above 0; shape `*batch`.
        option: "call" or "put".

    Raises:
        ValueError: a strike or an expiry that is not above 0, shapes that do not broadcast, another option.

    >>> put = American(strike=[90.0, 100.0], expiry=1.0, option="put")
    >>> put.exercise_value(torch.tensor([80.0, 95.0], dtype=torch.float64))
    tensor([[10.,  0.],
            [20.,  5.]], dtype=torch.float64)
    """

    kind: ClassVar[str] = "american"
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
        _refuse_payoff("an American option")

    def exercise_value(self, spot: Tensor) -> Tensor:
        return exercised(spot, self.strike.unsqueeze(-1), self.option)


@dataclass(frozen=True, eq=False, init=False)
class Bermudan(EarlyExercise):
    r"""Call or put that may be exercised on given dates, on one asset or on the dearest or cheapest of several.

    $$\sup_{\tau \in \{t_1, \dots, t_n\}} E\left[e^{-\int_0^\tau r}\,(\phi (S_\tau - K))^+\right], \qquad
      S = S^1,\ \max_i S^i\ \text{or}\ \min_i S^i$$

    Args:
        strike: price at which the option buys or sells, above 0; shape `*batch`.
        times: dates of exercise in years, positive and ascending; shape `*batch n_dates`.
        option: "call" or "put".
        on: "single" asset, "max" or "min" of any number of assets.

    Raises:
        ValueError: a strike that is not above 0, times out of order, shapes that do not broadcast, another word.

    References:
        Glasserman (2004), section 8.1.

    >>> option = Bermudan(strike=100.0, times=[1.0, 2.0, 3.0], option="call", on="max")
    >>> option.exercise_value(torch.tensor([[90.0, 104.0], [95.0, 80.0]], dtype=torch.float64))
    tensor([4., 0.], dtype=torch.float64)
    """

    kind: ClassVar[str] = "bermudan"
    date_fields: ClassVar[tuple[str, ...]] = ("times",)
    strike: Tensor
    times: Tensor
    option: str
    on: str

    def __init__(self, strike: Any, times: Any, option: str = "call", on: str = "single") -> None:
        object.__setattr__(self, "strike", within("strike", strike, above=0.0))
        object.__setattr__(self, "times", dates("times", times))
        object.__setattr__(self, "option", choice("option", option, OPTIONS))
        object.__setattr__(self, "on", choice("on", on, ON))
        _ = self.batch_shape  # shapes that do not broadcast are an error here

    @property
    def batch_shape(self) -> torch.Size:
        return broadcast_shape(strike=self.strike, times=self.times.shape[:-1])

    @property
    def dates(self) -> Tensor:
        return self.times

    @property
    def n_assets(self) -> int | None:
        return 1 if self.on == "single" else None

    def payoff(self, paths: Paths, discount: Discount) -> Tensor:
        _refuse_payoff("a Bermudan option")

    def exercise_value(self, spot: Tensor) -> Tensor:
        if self.on != "single":
            spot = spot.amax(dim=-1) if self.on == "max" else spot.amin(dim=-1)
        return exercised(spot, self.strike.unsqueeze(-1), self.option)


def _refuse_payoff(name: str) -> NoReturn:
    raise ValueError(
        f"{name} has no payoff along a path: its holder needs a rule of exercise; "
        "use LongstaffSchwartz, or FiniteDifference for a single asset"
    )
