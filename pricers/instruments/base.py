"""What every instrument is: contract dates, and the discounted value of its cash flows along a path."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from pricers.paths import Paths

__all__ = ["Discount", "EarlyExercise", "Instrument", "Option", "call_sign", "exercised"]

Option = Literal["call", "put"]
OPTIONS: tuple[str, ...] = ("call", "put")
Discount = Callable[[Tensor], Tensor]  # today's value of one unit of cash at a time in years


def call_sign(option: str) -> float:
    """+1 for a call, -1 for a put."""
    return 1.0 if option == "call" else -1.0


def exercised(spot: Tensor, strike: Tensor, option: str) -> Tensor:
    """Value of a call or put at its exercise; `strike` broadcasts with `spot`."""
    return (call_sign(option) * (spot - strike)).clamp(min=0.0)


class Instrument(ABC):
    """A contract: a frozen dataclass of tensors whose batch axes broadcast; date and asset axes come last."""

    kind: ClassVar[str]
    date_fields: ClassVar[tuple[str, ...]] = ("expiry",)  # what moves when time passes
    bridge_uniforms: ClassVar[bool] = False  # `payoff` draws extremes between the steps: see `Paths.bridge_uniforms`

    @property
    @abstractmethod
    def batch_shape(self) -> torch.Size:
        """Shape of the batch of contracts."""

    @property
    @abstractmethod
    def dates(self) -> Tensor:
        """Contract dates in years, ascending; shape `*batch n_dates`."""

    @property
    def horizon(self) -> Tensor:
        """Last contract date, shape `*batch`."""
        return self.dates[..., -1]

    @property
    def n_assets(self) -> int | None:
        """Number of assets that the contract is written on; None where any number from two on will do."""
        return 1

    def asset_refusal(self, n_assets: int) -> str | None:
        """Why the contract is not one on the assets of a model; None if it is."""
        if self.n_assets is None:
            return None if n_assets > 1 else f"the contract is on several assets, the model has {n_assets}"
        if self.n_assets != n_assets:
            return f"the contract is on {self.n_assets} asset(s), the model has {n_assets}"
        return None

    @property
    def continuous(self) -> bool:
        """Whether the payoff looks at the path between its dates, so that each step of a simulation is recorded."""
        return False

    @property
    def discontinuous(self) -> bool:
        """Whether the payoff jumps along the path, so that its derivative along the path misses something."""
        return False

    @abstractmethod
    def payoff(self, paths: Paths, discount: Discount) -> Tensor:
        """Value today of all cash flows along each path.

        Args:
            paths: recorded at the contract's dates, and at each step when `continuous`.
            discount: today's value of one unit of cash at a time in years; batch axes broadcast, so that
                `discount(expiry).unsqueeze(-1)` stands beside paths.

        Returns:
            Shape `*batch paths`.
        """

    def shifted(self, elapsed: Tensor) -> Instrument:
        """The same contract `elapsed` years later: its dates are nearer. What was fixed before stays."""
        moved = {name: getattr(self, name) - elapsed for name in self.date_fields}
        return replace(self, **moved)  # pyright: ignore[reportArgumentType, reportCallIssue]  # all are dataclasses


class EarlyExercise(Instrument):
    """An instrument whose holder chooses when to be paid."""

    @abstractmethod
    def exercise_value(self, spot: Tensor) -> Tensor:
        """What the holder gets on exercise, not discounted.

        Args:
            spot: prices, shape `*batch paths`, and a last axis of assets where there are several.

        Returns:
            Shape `*batch paths`.
        """
