r"""From values to what a network learns, and back.

| label | the network learns | its output |
|---|---|---|
| exact vols | $\log(\mathrm{vol} / \mathrm{reference})$ | as it is; the vol is above 0 |
| noisy vols | vol / reference | through `exp` |
| prices of claims that never pay less than 0, time values | value / scale | through a softplus |
| of them European calls and puts | the same | and no further than the no-arbitrage bounds |
| claims that may cost something | value / scale | as it is |

All but the first are linear in the value. That is what a noisy label needs: the mean of a curved function of it is not
the function of its mean, so bounds are kept inside the network (`Bounded`), and the loss is one of the value. The lower
bound of a European price, the intrinsic value, has a kink at the forward, which a smooth network would have to undo if
it learned the distance from it: so a price is learned as it is and moved onto the bounds that it would break.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qfml.surrogate.coordinates import Coordinates, row_jacobian
from qfml.surrogate.problem import Problem

OUTPUT_OF = {"log_vol": None, "vol_ratio": "exp", "between_bounds": "softplus", "positive": "softplus", "linear": None}
SIGNED = frozenset({"variance_swap", "autocallable", "cliquet"})  # may be worth less than nothing, or have a floor


@dataclass(frozen=True)
class Target:
    """What the network learns of a value (N,) of the problem's target, and how it is undone.

    Args:
        problem: what the values are of.
        kind: "log_vol", "vol_ratio", "between_bounds", "positive" or "linear": see the table of this module.
        scale: what prices are divided by, in the unit of the target.
    """

    problem: Problem
    kind: str
    scale: float = 1.0

    @classmethod
    def of(cls, problem: Problem, value: Tensor, std_error: Tensor, shaped: bool = False) -> Target:
        """The target that suits labels `value` (N,) with errors `std_error` (N,); `shaped`: monotone or convex."""
        if problem.target == "implied_vol":
            return cls(problem, "vol_ratio" if bool((std_error > 0).any()) else "log_vol")
        kind = problem.instrument["kind"]
        scale = float(value.square().mean().sqrt())
        if kind == "european" and problem.target == "price" and not shaped and _has_flat_market(problem):
            return cls(problem, "between_bounds", scale)
        return cls(problem, "linear" if kind in SIGNED else "positive", scale)

    @property
    def output(self) -> str | None:
        """The function that the network's output passes through: one of `Bounded`'s, or None."""
        return OUTPUT_OF[self.kind]

    def encode(self, value: Tensor, inputs: Tensor) -> Tensor:
        """What the network learns (N,) of `value` (N,) at `inputs` (N, d)."""
        if self.kind == "log_vol":
            return torch.log(value / self.problem.reference_vol(inputs))
        return value / self._size(inputs)

    def decode(self, learnt: Tensor, inputs: Tensor, reference: Tensor | None = None) -> Tensor:
        """The value (N,) of what the network puts out (N,); `reference` vols (N,) if known already."""
        if self.kind == "log_vol":
            return (self.problem.reference_vol(inputs) if reference is None else reference) * torch.exp(learnt)
        value = self._size(inputs, reference) * learnt
        if self.kind != "between_bounds":
            return value
        low, high = european_bounds(self.problem, inputs)
        return torch.minimum(torch.maximum(value, low), high)

    def slope(self, value: Tensor, inputs: Tensor) -> Tensor:
        """By how much the value moves with what is learnt (N,): errors of the one times it are errors of the other."""
        return value if self.kind == "log_vol" else self._size(inputs).expand_as(value)

    @property
    def by_reference(self) -> bool:
        """Whether the value is measured in reference vols."""
        return self.kind in ("log_vol", "vol_ratio")

    def decode_gradient(
        self,
        value: Tensor,
        slopes: Tensor,
        inputs: Tensor,
        reference: Tensor | None = None,
        log_reference: Tensor | None = None,
    ) -> Tensor:
        """Derivatives of the value in the inputs (N, d), from those of what the network puts out in the inputs.

        Args:
            value: (N,), the value.
            slopes: derivatives of what the network puts out in the inputs (N, d).
            inputs: (N, d).
            reference: reference vols (N,), where the target needs them.
            log_reference: derivatives of log(reference vol) in the inputs (N, d), where the target needs them.
        """
        if self.by_reference:
            assert reference is not None
            assert log_reference is not None
            size = value if self.kind == "log_vol" else reference
            return size[:, None] * slopes + value[:, None] * log_reference
        own = self.slope(value, inputs)[:, None] * slopes
        if self.kind != "between_bounds":
            return own
        at = torch.stack(european_bounds(self.problem, inputs), 1)
        bounds = row_jacobian(lambda rows: torch.stack(european_bounds(self.problem, rows), 1), inputs)
        own = torch.where((value <= at[:, 0])[:, None], bounds[:, 0], own)
        return torch.where((value >= at[:, 1])[:, None], bounds[:, 1], own)

    def encode_gradient(self, value: Tensor, gradient: Tensor, inputs: Tensor) -> Tensor:
        """Derivatives in the features (N, d) of what is learnt, from those of the value in the inputs (N, d)."""

        def by_inputs(rows: Tensor) -> Tensor:
            return self.encode(value, rows)[:, None]

        along = row_jacobian(by_inputs, inputs)[:, 0]  # at a fixed value: the reference moves with the inputs
        total = along + gradient / self.slope(value, inputs)[:, None]
        return Coordinates(self.problem).feature_gradient(inputs, total)

    def _size(self, inputs: Tensor, reference: Tensor | None = None) -> Tensor:
        """What a value (N,) is divided by where the target is linear in it."""
        if self.kind == "vol_ratio":
            return self.problem.reference_vol(inputs) if reference is None else reference
        return self.scale * torch.ones_like(inputs[:, 0])


def european_bounds(problem: Problem, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """No-arbitrage bounds (N,) each of a European option's price per unit of spot, in a market of flat rates.

    The discounted intrinsic value of the forward, and the discounted forward of a call or strike of a put.
    """
    columns = problem.columns(inputs)
    market = _numbers(problem, "market", columns)
    expiry, spot = problem.expiry(columns), market["spot"]
    discount = torch.exp(-market.get("rate", 0.0 * expiry) * expiry)
    forward = torch.exp(-market.get("dividend_yield", 0.0 * expiry) * expiry)  # discounted, per unit of spot
    if "log_moneyness" in columns:
        strike = forward * torch.exp(columns["log_moneyness"])
    else:
        strike = discount * _numbers(problem, "instrument", columns)["strike"] / spot
    forward, strike = torch.broadcast_tensors(forward, strike)
    first, second = (forward, strike) if problem.instrument.get("option", "call") == "call" else (strike, forward)
    return torch.relu(first - second).expand_as(inputs[:, 0]), first.expand_as(inputs[:, 0])


def _numbers(problem: Problem, owner: str, columns: Any) -> dict[str, Tensor]:
    return problem._numbers(owner, columns, next(iter(columns.values())))


def _has_flat_market(problem: Problem) -> bool:
    """Whether spot, rate and dividend yield are numbers, so that discounting is one exponential."""
    return not any(isinstance(value, (dict, list)) for value in problem.market.values())
