"""Trading rules: limits of what may be held, and lots in which it is traded, for policies and textbook hedges alike."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar

import torch
from torch import Tensor

from qfml.errors import ConfigError
from qfml.hedging.holding import Holding

__all__ = ["Ruled", "TradingRules"]

PerInstrument = float | tuple[float | None, ...] | None
SAME = 1e-9  # of a lot: a limit so near to a multiple is that multiple


@dataclass(frozen=True)
class TradingRules:
    r"""What may be held of each instrument: the multiple of the lot, between the limits, that is nearest to the wish.

    The nearest one, and not that towards the holding before: the hedge is then off by half a lot at most and on
    average by nothing, while one that rounds its trades down lags by half a lot at every move. Who wants the inertia
    has the no-transaction band. Between two lots that are equally near the even one is taken.

    In training the loss is that of the holdings as they are brought under the rules; their slopes are those of the
    wish, straight through the lots, which have none of their own. Beyond a limit a slope passes if a step against it
    leads back, and is 0 if it leads further away: a limit that binds does not drive the network on, and a network that
    begins outside comes in.

    Args:
        min_holding: least units held from one date to the next; one number, or one for each instrument, of which None
            has no such limit.
        max_holding: most units; likewise.
        lot: units that are held in whole multiples; likewise.

    Raises:
        ConfigError: limits that leave nothing between them, or no multiple of the lot; a lot that is not positive.

    References:
        Straight through: Bengio, Leonard and Courville (2013), "Estimating or Propagating Gradients Through Stochastic
        Neurons for Conditional Computation", section 3.1. Slopes at limits: Hausknecht and Stone (2016), "Deep
        Reinforcement Learning in Parameterized Action Space", section 3.2 (zeroing gradients).

    Example:
        >>> rules = TradingRules(min_holding=0.0, max_holding=0.95, lot=0.1)
        >>> rules.of(torch.tensor([[-0.3], [0.52], [1.2]]))[:, 0]
        tensor([0.0000, 0.5000, 0.9000])
    """

    min_holding: PerInstrument = None
    max_holding: PerInstrument = None
    lot: PerInstrument = None

    def __post_init__(self) -> None:
        lengths = {len(value) for value in self._settings if isinstance(value, tuple)}
        if 0 in lengths or len(lengths) > 1:
            raise ConfigError(f"the rules must have one number, or one for each instrument, got {self._told}")
        for place in range(max(lengths, default=1)):
            self._check(*(_of(value, place) for value in self._settings))

    def _check(self, low: float | None, high: float | None, lot: float | None) -> None:
        for name, value in (("min_holding", low), ("max_holding", high), ("lot", lot)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, Real)):
                raise ConfigError(f"`{name}` must be a number, or a tuple of one for each instrument, got {value!r}")
            if value is not None and not math.isfinite(value):
                raise ConfigError(f"`{name}` must be finite, got {value}; null for none")
        if lot is not None and not lot > 0:
            raise ConfigError(f"`lot` must be above 0, got {lot}; null to trade any number")
        if low is not None and high is not None and not low < high:
            raise ConfigError(f"`min_holding` must be below `max_holding`, got {low} and {high}")
        least, most = _multiples(low, high, lot)
        if least > most:
            raise ConfigError(
                f"there is no multiple of `lot` {lot} between `min_holding` {low} and `max_holding` {high}: take a "
                "smaller lot, or wider limits"
            )
        if lot is not None and least == most:
            raise ConfigError(
                f"`min_holding` {low}, `max_holding` {high} and `lot` {lot} leave a single holding, {least * lot:g}: "
                "take a smaller lot, or wider limits"
            )

    @property
    def _settings(self) -> tuple[PerInstrument, PerInstrument, PerInstrument]:
        return self.min_holding, self.max_holding, self.lot

    @property
    def _told(self) -> str:
        return f"`min_holding` {self.min_holding}, `max_holding` {self.max_holding}, `lot` {self.lot}"

    @property
    def free(self) -> bool:
        """Whether anything may be held."""
        return self._settings == (None, None, None)

    def lots(self, n_instruments: int) -> list[float | None]:
        """The lot of each instrument."""
        return [_of(self.lot, place) for place in range(n_instruments)]

    def check_instruments(self, n_instruments: int) -> None:
        """Raise ConfigError for rules of another number of instruments."""
        for value in self._settings:
            if isinstance(value, tuple) and len(value) != n_instruments:
                raise ConfigError(
                    f"the rules must have one number, or one for each of {n_instruments} instrument(s), got "
                    f"{self._told}"
                )

    def of(self, wish: Tensor) -> Tensor:
        """What is held (..., K) where a hedge would hold `wish` (..., K); differentiable as described."""
        return wish if self.free else _UnderRules.apply(wish, self)  # pyright: ignore[reportReturnType]

    def slopes(self, slope: Tensor, wish: Tensor) -> Tensor:
        """Slopes of the wish from those of what is held."""
        low, high, lot, _ = self._rows(wish)
        low, high = low * lot, high * lot
        leaves = ((wish > high) & (slope < 0)) | ((wish < low) & (slope > 0))
        return slope.masked_fill(leaves, 0.0)

    def _held(self, wish: Tensor) -> Tensor:
        low, high, lot, whole = self._rows(wish)
        lots = wish / lot
        lots = torch.where(whole, lots.round(), lots)
        return torch.minimum(torch.maximum(lots, low), high) * lot

    def _rows(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Least and most lots, units of a lot (1 where there is none), and whether there is one, each (K,)."""
        each = [[_of(value, place) for value in self._settings] for place in range(like.shape[-1])]
        ends = [_multiples(*one) for one in each]
        least, most = (like.new_tensor(column) for column in zip(*ends, strict=True))
        lot = like.new_tensor([1.0 if one[2] is None else one[2] for one in each])
        return least, most, lot, torch.tensor([one[2] is not None for one in each], device=like.device)


class _UnderRules(torch.autograd.Function):
    """Holdings under the rules, with the slopes that are written beside them."""

    @staticmethod
    def forward(wish: Tensor, rules: TradingRules) -> Tensor:
        return rules._held(wish)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, TradingRules], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.rules = inputs[1]

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None]:
        return ctx.rules.slopes(slopes[0], *ctx.saved_tensors), None


@dataclass(frozen=True)
class Ruled:
    """A holding rule whose holdings are brought under trading rules.

    >>> from qfml.hedging.holding import Direct
    >>> Ruled(Direct(), TradingRules(lot=0.5)).of(torch.tensor([[0.7]]), torch.zeros(1, 1), None)
    tensor([[0.5000]])
    """

    kind: ClassVar[str] = "ruled"
    holding: Holding
    rules: TradingRules

    @property
    def hedge(self) -> tuple[str, ...]:
        """See `Holding.hedge`."""
        return self.holding.hedge

    def n_outputs(self, n_instruments: int) -> int:
        """See `Holding.n_outputs`."""
        return self.holding.n_outputs(n_instruments)

    def of(self, raw: Tensor, before: Tensor, hedge: Tensor | None) -> Tensor:
        """See `Holding.of`."""
        return self.rules.of(self.holding.of(raw, before, hedge))

    def slopes(
        self, slope: Tensor, raw: Tensor, before: Tensor, hedge: Tensor | None, now: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """See `Holding.slopes`."""
        wish = self.holding.of(raw, before, hedge)
        return self.holding.slopes(self.rules.slopes(slope, wish), raw, before, hedge, wish)


def _of(value: PerInstrument, place: int) -> float | None:
    """The number of one instrument."""
    return value[place] if isinstance(value, tuple) else value


def _multiples(low: float | None, high: float | None, lot: float | None) -> tuple[float, float]:
    """Least and most lots; without a lot, units."""
    least, most = -math.inf if low is None else low, math.inf if high is None else high
    if lot is None:
        return least, most
    least, most = least / lot, most / lot
    return (
        math.ceil(least - SAME) if math.isfinite(least) else least,
        math.floor(most + SAME) if math.isfinite(most) else most,
    )
