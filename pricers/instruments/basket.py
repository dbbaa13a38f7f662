"""Options on several assets: a weighted sum, the best, the worst, or the difference of two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pricers.instruments.base import OPTIONS, Discount, Instrument, exercised
from pricers.parameters import broadcast_shape, choice, real, within, years
from pricers.paths import Paths

__all__ = ["Basket"]


@dataclass(frozen=True, eq=False, init=False)
class Basket(Instrument):
    r"""Call $(B - K)^+$ or put $(K - B)^+$ on a value $B$ of several assets, paid at expiry.

    $B = \sum_i w_i S_i$ with `weights`; $\max_i S_i$, $\min_i S_i$ or the spread $S_1 - S_2$ with `on`.

    Args:
        strike: above 0; for a spread and for weights of which one is negative any real number; shape `*batch`.
        expiry: years to exercise and payment, above 0; shape `*batch`.
        option: "call" or "put".
        weights: units of each asset, shape `*batch n_assets` with at least two assets.
        on: "max", "min" or "spread", instead of weights; a spread has two assets.

    Raises:
        ValueError: neither or both of `weights` and `on`, fewer than two weights, a strike or an expiry out of bounds,
            shapes that do not broadcast.

    >>> Basket(strike=100.0, expiry=1.0, option="put", weights=[0.5, 0.3, 0.2]).n_assets
    3
    """

    kind: ClassVar[str] = "basket"
    strike: Tensor
    expiry: Tensor
    option: str
    weights: Tensor | None
    on: str | None

    def __init__(
        self, strike: Any, expiry: Any, option: str = "call", weights: Any = None, on: str | None = None
    ) -> None:
        if (weights is None) == (on is None):
            raise ValueError(
                "give either `weights`, one for each asset, or `on`, one of 'max', 'min', 'spread', "
                f"got {'neither' if on is None else 'both'}"
            )
        if weights is not None:
            weights = real("weights", weights)
            if weights.ndim == 0 or weights.shape[-1] < 2:
                raise ValueError(
                    f"`weights` must have a last axis of two or more assets, got shape {tuple(weights.shape)}; "
                    "an option on one asset is a European"
                )
        else:
            on = choice("on", on, ("max", "min", "spread"))
        positive = on in ("max", "min") or (weights is not None and bool((weights.detach() >= 0).all()))
        strike = within("strike", strike, above=0.0) if positive else real("strike", strike)
        object.__setattr__(self, "strike", strike)
        object.__setattr__(self, "expiry", years("expiry", expiry))
        object.__setattr__(self, "option", choice("option", option, OPTIONS))
        object.__setattr__(self, "weights", weights)
        object.__setattr__(self, "on", on)
        _ = self.batch_shape

    @property
    def batch_shape(self) -> torch.Size:
        weights = torch.Size() if self.weights is None else self.weights.shape[:-1]
        return broadcast_shape(strike=self.strike, expiry=self.expiry, weights=weights)

    @property
    def dates(self) -> Tensor:
        return self.expiry.unsqueeze(-1)

    @property
    def n_assets(self) -> int | None:
        if self.weights is not None:
            return self.weights.shape[-1]
        return 2 if self.on == "spread" else None

    def underlying(self, spot: Tensor) -> Tensor:
        """The value $B$ that the option is written on.

        Args:
            spot: prices, shape `*batch paths n_assets`.

        Returns:
            Shape `*batch paths`.

        Raises:
            ValueError: `spot` has another number of assets; the message names both shapes.
        """
        n_assets = spot.shape[-1]
        if self.n_assets not in (None, n_assets):
            what = f"`weights` of shape {tuple(self.weights.shape)}" if self.weights is not None else "a spread"
            raise ValueError(
                f"{what} needs {self.n_assets} assets along the last axis of `spot`, got shape {tuple(spot.shape)}"
            )
        if self.weights is not None:
            return (spot * self.weights.unsqueeze(-2)).sum(-1)
        if self.on == "max":
            return spot.amax(-1)
        if self.on == "min":
            return spot.amin(-1)
        return spot[..., 0] - spot[..., 1]

    def payoff(self, paths: Paths, discount: Discount) -> Tensor:
        value = self.underlying(paths.at(self.dates)[..., 0, :])
        return exercised(value, self.strike.unsqueeze(-1), self.option) * discount(self.expiry).unsqueeze(-1)
