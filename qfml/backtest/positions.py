"""Predictions -> positions: what fraction of capital to hold in each asset, decided row by row.

Everything here works on matrices of shape (times, assets). A nan prediction means "no row or no prediction": the
position is 0 there, so a matrix of positions never holds a nan. With n assets predicted at a time, each gets at most
1/n of the capital (times `max_leverage` in `vol_target`): `n` is counted at that time, because how many assets a
panel will have later is not known at the decision.

`returns[t]` is the simple return from row t to the asset's next row, so a decision at row t knows `returns[:t]` only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from scipy.special import ndtr

from qfml.backtest.volatility import trailing_volatility
from qfml.errors import UserError

__all__ = [
    "POSITIONS",
    "BetSize",
    "Direct",
    "PositionRule",
    "PredictedVolTarget",
    "QuantileLongShort",
    "Sign",
    "Tanh",
    "VolTarget",
    "bet_size",
    "quantile_long_short",
    "sign_positions",
    "tanh_positions",
    "vol_target",
]

Matrix = Float[np.ndarray, "times assets"]


def sign_positions(prediction: Matrix) -> Matrix:
    r"""Long where the prediction is positive, short where it is negative, equal weights.

    $w_{t,i} = \operatorname{sign}(\hat y_{t,i}) / n_t$, with $n_t$ the number of assets predicted at $t$.

    Args:
        prediction: Predictions, shape (times, assets); nan = none.

    Returns:
        Positions as fractions of capital, same shape, no nan.

    Example:
        >>> sign_positions(np.array([[0.3, -0.1], [0.2, np.nan]]))
        array([[ 0.5, -0.5],
               [ 1. ,  0. ]])
    """
    return _equal_share(np.sign(prediction))


def tanh_positions(prediction: Matrix, *, scale: float) -> Matrix:
    r"""Positions that grow with the prediction and saturate.

    $w_{t,i} = \tanh(\hat y_{t,i} / s) / n_t$.

    Args:
        prediction: Predictions, shape (times, assets); nan = none.
        scale: The prediction $s$ at which a position reaches 76 % of its limit, in the unit of the prediction.

    Returns:
        Positions as fractions of capital, same shape, no nan.

    Raises:
        UserError: If `scale` is not positive.

    Example:
        >>> tanh_positions(np.array([[0.0, 50.0]]), scale=1.0)
        array([[0. , 0.5]])
    """
    _require_positive("scale", scale)
    return _equal_share(np.tanh(prediction / scale))


def vol_target(
    prediction: Matrix, volatility: Matrix, *, target: float, max_leverage: float, periods_per_year: float
) -> Matrix:
    r"""The sign of the prediction, sized so that each asset alone would run at the target volatility.

    $w_{t,i} = \operatorname{sign}(\hat y_{t,i}) \min(\sigma^* / (\sigma_{t,i}\sqrt{P}),\ L) / n_t$.

    Assets that are not perfectly correlated diversify, so the whole runs below the target. An asset whose volatility
    is unknown or zero at the decision (too little history, a stale price) is left flat: neither says what its risk is.

    Args:
        prediction: Predictions, shape (times, assets); nan = none.
        volatility: Per-period volatility known at the decision, same shape, as from `trailing_volatility`.
        target: Target volatility $\sigma^*$, annualised, decimal.
        max_leverage: Largest multiple $L$ of an asset's equal share of capital.
        periods_per_year: Periods in a year, $P$.

    Returns:
        Positions as fractions of capital, same shape, no nan.

    Raises:
        UserError: If a setting is not positive.

    References:
        Moskowitz, Ooi and Pedersen (2012), "Time series momentum", eq. 5.

    Example:
        >>> daily = np.array([[0.01, 0.0001]])
        >>> vol_target(np.array([[1.0, -1.0]]), daily, target=0.1, max_leverage=2.0, periods_per_year=252).round(3)
        array([[ 0.315, -1.   ]])
    """
    for name, value in (("target", target), ("max_leverage", max_leverage), ("periods_per_year", periods_per_year)):
        _require_positive(name, value)
    known = np.isfinite(volatility) & (volatility > 0.0)
    annual = np.where(known, volatility, 1.0) * np.sqrt(periods_per_year)
    leverage = np.where(known, np.minimum(target / annual, max_leverage), 0.0)
    return _equal_share(np.sign(prediction) * leverage)


def quantile_long_short(prediction: Matrix, *, quantile: float) -> Matrix:
    r"""Long the highest predictions of a panel, short the lowest, half of the capital on each side.

    With $n_t$ assets predicted, each leg holds $k_t = \max(1, \lfloor q\,n_t \rfloor)$ assets at $\pm 1/(2 k_t)$.
    Assets tied at the edge of a leg share what is left of it, so the order of the columns never matters and a row of
    equal predictions is flat. A row with fewer than two predictions is flat.

    Args:
        prediction: Predictions, shape (times, assets); nan = none.
        quantile: Fraction $q$ of the assets in each leg, in (0, 0.5].

    Returns:
        Positions as fractions of capital, same shape, no nan, each row summing to zero.

    Raises:
        UserError: If `quantile` is outside (0, 0.5] or the panel has a single asset.

    Example:
        >>> quantile_long_short(np.array([[3.0, 1.0, 2.0, np.nan], [5.0, 5.0, 5.0, 5.0]]), quantile=0.3)
        array([[ 0.5, -0.5,  0. ,  0. ],
               [ 0. ,  0. ,  0. ,  0. ]])
    """
    if not 0.0 < quantile <= 0.5:
        raise UserError(f"`quantile` must lie in (0, 0.5], got {quantile}")
    if prediction.shape[1] < 2:
        raise UserError("quantile long-short compares assets and there is only one; use `sign`, `tanh` or `vol_target`")
    return _leg(prediction, quantile) - _leg(-prediction, quantile)


def bet_size(probability: Matrix, *, step: float | None = None) -> Matrix:
    r"""Bet size from the probability that the asset goes up.

    $z = (p - 1/2) / \sqrt{p(1-p)}$, $m = 2\Phi(z) - 1$, $w_{t,i} = m_{t,i} / n_t$; with a step $d$ the bet is rounded
    to the nearest multiple of $d$, which saves the turnover of small changes of mind.

    Args:
        probability: Probability of a rise, shape (times, assets), in [0, 1]; nan = none.
        step: Step $d$ of the bet size in (0, 1], or None for none.

    Returns:
        Positions as fractions of capital, same shape, no nan.

    Raises:
        UserError: If a probability is outside [0, 1] or `step` outside (0, 1].

    References:
        Lopez de Prado (2018), "Advances in Financial Machine Learning", ch. 10, sections 10.3 and 10.5 (two classes).

    Example:
        >>> bet_size(np.array([[0.5, 0.9]])).round(4)
        array([[0.    , 0.4088]])
    """
    if step is not None and not 0.0 < step <= 1.0:
        raise UserError(f"`step` must lie in (0, 1], got {step}")
    outside = (probability < 0.0) | (probability > 1.0)
    if outside.any():
        raise UserError(
            f"bet size needs probabilities in [0, 1], got {probability[outside][0]} "
            f"({int(outside.sum())} such values); train on a classification label, or use `sign` or `tanh`"
        )
    with np.errstate(divide="ignore"):  # certainty is an infinite z and a full bet, which is what the formula means
        z = (probability - 0.5) / np.sqrt(probability * (1.0 - probability))
    size = 2.0 * ndtr(z) - 1.0
    if step is not None:
        size = np.clip(np.round(size / step) * step, -1.0, 1.0)
    return _equal_share(size)


def _equal_share(size: np.ndarray) -> np.ndarray:
    """Divide each row of sizes in [-L, L] by the number of its predictions; nan becomes 0."""
    present = np.isfinite(size)
    count = np.maximum(present.sum(axis=1, keepdims=True), 1)
    return np.where(present, size, 0.0) / count


def _leg(score: np.ndarray, quantile: float) -> np.ndarray:
    """Weights of one leg: half of the capital over the k highest scores of each row, ties at the edge shared."""
    present = np.isfinite(score)
    n_present = present.sum(axis=1)
    n_held = np.maximum(1, np.floor(quantile * n_present + 1e-9).astype(int))  # 0.3 * 10 is 2.9999...
    filled = np.where(present, score, -np.inf)
    edge = -np.take_along_axis(np.sort(-filled, axis=1), n_held[:, None] - 1, axis=1)
    above, tied = filled > edge, present & (filled == edge)
    shared = (n_held - above.sum(axis=1)) / np.maximum(tied.sum(axis=1), 1)
    slots = np.where(above, 1.0, np.where(tied, shared[:, None], 0.0))
    return np.where((n_present >= 2)[:, None], slots / (2.0 * n_held[:, None]), 0.0)


def _require_positive(name: str, value: float) -> None:
    if not (np.isfinite(value) and value > 0.0):
        raise UserError(f"`{name}` must be a positive number, got {value}")


@runtime_checkable
class PositionRule(Protocol):
    """Anything that turns predictions into positions.

    `reads` says what it wants to be given. "score": positive means up. "probability": the probability of a rise, so it
    needs a classifier. "volatility": the asset's annualised volatility. "position": the position itself.
    `scale_free` says that multiplying all predictions by a positive number changes nothing.
    """

    kind: ClassVar[str]
    reads: ClassVar[str]
    scale_free: ClassVar[bool]

    def decide(self, prediction: Matrix, returns: Matrix, *, periods_per_year: float) -> Matrix:
        """Positions decided at each row from the predictions up to it and the returns before it."""
        ...


@dataclass(frozen=True)
class Sign:
    """Long or short at full equal weight by the sign of the prediction: see `sign_positions`."""

    kind: ClassVar[str] = "sign"
    reads: ClassVar[str] = "score"
    scale_free: ClassVar[bool] = True

    def decide(self, prediction: Matrix, returns: Matrix, *, periods_per_year: float) -> Matrix:
        """Positions, shape (times, assets)."""
        return sign_positions(prediction)


@dataclass(frozen=True)
class Tanh:
    """Positions that grow with the prediction and saturate: see `tanh_positions`.

    Attributes:
        scale: Prediction at which a position reaches 76 % of its limit, in the unit of the prediction.
    """

    kind: ClassVar[str] = "tanh"
    reads: ClassVar[str] = "score"
    scale_free: ClassVar[bool] = False
    scale: float

    def __post_init__(self) -> None:
        _require_positive("scale", self.scale)

    def decide(self, prediction: Matrix, returns: Matrix, *, periods_per_year: float) -> Matrix:
        """Positions, shape (times, assets)."""
        return tanh_positions(prediction, scale=self.scale)


@dataclass(frozen=True)
class VolTarget:
    """The sign of the prediction at a target volatility, sized by the trailing volatility: see `vol_target`.

    Attributes:
        target: Target volatility of each asset's share, annualised, decimal.
        window: Returns in the trailing volatility; an asset is flat until it has that many.
        max_leverage: Largest multiple of an asset's equal share of capital.
    """

    kind: ClassVar[str] = "vol_target"
    reads: ClassVar[str] = "score"
    scale_free: ClassVar[bool] = True
    target: float = 0.10
    window: int = 63
    max_leverage: float = 2.0

    def __post_init__(self) -> None:
        _require_positive("target", self.target)
        _require_positive("max_leverage", self.max_leverage)
        if self.window < 2:
            raise UserError(f"`window` must be at least 2 returns, got {self.window}")

    def decide(self, prediction: Matrix, returns: Matrix, *, periods_per_year: float) -> Matrix:
        """Positions, shape (times, assets); row t reads `returns[:t]`."""
        return vol_target(
            prediction,
            trailing_volatility(returns, window=self.window),
            target=self.target,
            max_leverage=self.max_leverage,
            periods_per_year=periods_per_year,
        )


@dataclass(frozen=True)
class PredictedVolTarget:
    """Always long at a target volatility, sized by the predicted one: for labels of realised volatility, annualised.

    Attributes:
        target: Target volatility of each asset's share, annualised, decimal.
        max_leverage: Largest multiple of an asset's equal share of capital. Flat where no positive volatility is
            predicted.

    References:
        Moreira and Muir (2017), "Volatility-managed portfolios", section I; here by the volatility, not the variance.
    """

    kind: ClassVar[str] = "predicted_vol_target"
    reads: ClassVar[str] = "volatility"
    scale_free: ClassVar[bool] = False
    target: float = 0.10
    max_leverage: float = 2.0

    def __post_init__(self) -> None:
        _require_positive("target", self.target)
        _require_positive("max_leverage", self.max_leverage)

    def decide(self, prediction: Matrix, returns: Matrix, *, periods_per_year: float) -> Matrix:
        """Positions, shape (times, assets)."""
        return vol_target(
            np.where(np.isfinite(prediction), 1.0, np.nan),
            prediction,
            target=self.target,
            max_leverage=self.max_leverage,
            periods_per_year=1.0,  # the prediction is annualised already
        )


@dataclass(frozen=True)
class QuantileLongShort:
    """Long the top, short the bottom of a panel: see `quantile_long_short`.

    Attributes:
        quantile: Fraction of the assets in each leg, in (0, 0.5].
    """

    kind: ClassVar[str] = "quantile_long_short"
    reads: ClassVar[str] = "score"
    scale_free: ClassVar[bool] = True
    quantile: float = 0.2

    def __post_init__(self) -> None:
        if not 0.0 < self.quantile <= 0.5:
            raise UserError(f"`quantile` must lie in (0, 0.5], got {self.quantile}")

    def decide(self, prediction: Matrix, returns: Matrix, *, periods_per_year: float) -> Matrix:
        """Positions, shape (times, assets)."""
        return quantile_long_short(prediction, quantile=self.quantile)


@dataclass(frozen=True)
class BetSize:
    """Bet size from a classifier's probability: see `bet_size`.

    Attributes:
        step: Step the bet is rounded to, in (0, 1]; None for none.
    """

    kind: ClassVar[str] = "bet_size"
    reads: ClassVar[str] = "probability"
    scale_free: ClassVar[bool] = False
    step: float | None = None

    def __post_init__(self) -> None:
        if self.step is not None and not 0.0 < self.step <= 1.0:
            raise UserError(f"`step` must lie in (0, 1], got {self.step}")

    def decide(self, prediction: Matrix, returns: Matrix, *, periods_per_year: float) -> Matrix:
        """Positions, shape (times, assets)."""
        return bet_size(prediction, step=self.step)


@dataclass(frozen=True)
class Direct:
    """The prediction is the position, in [-1, 1] of an asset's equal share: for networks trained on a Sharpe loss."""

    kind: ClassVar[str] = "direct"
    reads: ClassVar[str] = "position"
    scale_free: ClassVar[bool] = False

    def decide(self, prediction: Matrix, returns: Matrix, *, periods_per_year: float) -> Matrix:
        """Positions, shape (times, assets)."""
        if (np.abs(prediction) > 1.0).any():
            raise UserError(
                f"`direct` takes predictions in [-1, 1] as positions, got {np.nanmax(np.abs(prediction)):.4g} in "
                "absolute value; train on `negative_sharpe`, or use `sign` or `tanh`"
            )
        return _equal_share(prediction)


POSITIONS: dict[str, type] = {
    cls.kind: cls for cls in (Sign, Tanh, VolTarget, PredictedVolTarget, QuantileLongShort, BetSize, Direct)
}
