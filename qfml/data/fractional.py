"""Fractional differentiation: a stationary series that keeps more memory than a return."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import polars as pl

from qfml.data.feature_base import Feature, by_group, check_positive, check_rows, name_of, number, weighted_sum
from qfml.errors import ConfigError

__all__ = ["FractionalDifference", "fractional_weights", "fractional_window"]


def fractional_weights(order: float, window: int) -> np.ndarray:
    r"""Weights of the fractional difference $(1 - B)^d$, latest value first.

    $w_0 = 1$ and $w_k = -w_{k-1} (d - k + 1) / k$.

    Args:
        order: d.
        window: how many weights.

    Returns:
        Float64, shape (window,).

    References:
        Hosking (1981), "Fractional differencing", Biometrika 68. Lopez de Prado (2018), "Advances in Financial Machine
        Learning", section 5.4.

    Example:
        >>> fractional_weights(0.5, 4).tolist()
        [1.0, -0.5, -0.125, -0.0625]
    """
    k = np.arange(1, window)
    return np.concatenate(([1.0], np.cumprod((k - 1 - order) / k)))


def fractional_window(order: float, threshold: float) -> int:
    """The window of Lopez de Prado's fixed-width method: the leading weights that are at least `threshold` in size.

    Args:
        order: d, positive.
        threshold: smallest absolute weight kept, in (0, 1); the book uses 1e-5.

    Returns:
        The number of weights, to be passed as `window` to `FractionalDifference`.

    References:
        Lopez de Prado (2018), "Advances in Financial Machine Learning", section 5.5.

    Example:
        >>> fractional_window(0.5, 0.05), fractional_window(1.0, 1e-5)
        (4, 2)
    """
    check_positive("order", order)
    if not 0 < threshold < 1:
        raise ConfigError(f"`threshold` must lie in (0, 1), got {threshold}")
    weight, k = 1.0, 0
    while abs(weight) >= threshold:
        k += 1
        weight *= (k - 1 - order) / k
    return k


@dataclass(frozen=True)
class FractionalDifference(Feature):
    r"""Fractionally differenced log price over a fixed window: $\sum_{k=0}^{n-1} w_k \log P_{t-k}$.

    Stationary for a large enough order d, yet with more memory than a return (d = 1). Every row uses the same n weights
    (`fractional_weights`), so no drift comes from a window that grows.

    Args:
        order: d, positive.
        window: n, weights kept; `fractional_window(order, threshold)` gives the book's choice.
        price: name of the price column.
        log: difference the log price; the price itself if false.

    References:
        Lopez de Prado (2018), "Advances in Financial Machine Learning", section 5.5.

    Example:
        >>> frame = pl.DataFrame({"time": [0, 1, 2], "close": [1.0, 2.0, 4.0]})
        >>> feature = FractionalDifference(0.5, window=3, log=False)
        >>> feature.add_to(frame, time="time", group=None)["fractional_difference_0.5_3_raw"].to_list()
        [None, None, 2.875]
    """

    kind: ClassVar[str] = "fractional_difference"
    order: float
    window: int
    price: str = "close"
    log: bool = True

    def __post_init__(self) -> None:
        check_positive("order", self.order)
        check_rows("window", self.window, least=2)
        if not fractional_weights(self.order, self.window)[-1]:
            n = int(self.order) + 1
            raise ConfigError(f"an `order` of {self.order} has {n} non-zero weights: choose `window` <= {n}")

    @property
    def names(self) -> tuple[str, ...]:
        """`fractional_difference_0.4_100`, with `_raw` if it is not of the logarithm."""
        name = f"fractional_difference_{self.order:g}_{self.window}{'' if self.log else '_raw'}"
        return (name_of(name, self.price, "close"),)

    @property
    def lookback(self) -> int:
        """The rest of the window."""
        return self.window - 1

    @property
    def columns(self) -> tuple[str, ...]:
        """The price."""
        return (self.price,)

    def values(self, frame: pl.DataFrame, *, time: str, group: str | None) -> pl.DataFrame:
        """The weighted sum over the window."""
        price = number(self.price).log() if self.log else number(self.price)
        weights = fractional_weights(self.order, self.window)[::-1]
        return by_group(frame, group, {self.names[0]: weighted_sum(price, weights.tolist())})
