"""`PathSet`: what a policy sees and trades on, path by path, and what it owes at the end."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from qfml.errors import DataError
from qfml.hedging.book import Book

__all__ = ["PathSet"]


@dataclass(frozen=True, eq=False)
class PathSet:
    """Paths of a market on the dates of trading, in today's money.

    Prices and the liability are discounted, so that gains are sums of holdings times changes of prices whatever the
    interest.

    Args:
        times: trading dates in years, ascending, the first is 0 and the last the horizon; shape `(L,)`, float64.
        prices: discounted prices of the hedging instruments, shape `(B, L, K)`.
        liability: discounted payoff that the trader owes, shape `(B,)`.
        features: what may be seen at each date, shape `(B, L, F)`; nothing in `features[:, l]` is known later than
            `times[l]`.
        instrument_names: of the K instruments.
        feature_names: of the F features.
        owed: the `Book` behind the liability; None where it is not known.
        known: what textbook hedges know on each date beside the features, by name, each (B, L): "variance" per year,
            whether a barrier is "alive". No policy sees it.

    Raises:
        DataError: shapes that do not fit together, dates that do not ascend, numbers that are not finite.

    Example:
        >>> prices = torch.tensor([[1.0, 1.1, 1.2], [1.0, 0.9, 0.8]])[..., None]
        >>> times = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
        >>> paths = PathSet(times, prices, (prices[:, -1, 0] - 1.0).clamp(min=0.0), prices.log(), ("spot",), ("log",))
        >>> len(paths), paths.n_steps, paths.rows(slice(0, 1)).liability
        (2, 2, tensor([0.2000]))
    """

    times: Tensor
    prices: Tensor
    liability: Tensor
    features: Tensor
    instrument_names: tuple[str, ...]
    feature_names: tuple[str, ...]
    owed: Book | None = None
    known: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.owed is not None and not isinstance(self.owed, Book):
            raise DataError(f"`owed` must be a Book, or None, got {self.owed!r}")
        if self.times.ndim != 1 or len(self.times) < 2 or float(self.times[0]) != 0.0:
            raise DataError(f"`times` must be dates (L,) that begin with 0, at least two, got {self.times.tolist()}")
        if not bool((self.times.diff() > 0).all()):
            raise DataError(f"`times` must ascend, got {self.times.tolist()}")
        n_times = len(self.times)
        expected = {
            "prices": (len(self.liability), n_times, len(self.instrument_names)),
            "features": (len(self.liability), n_times, len(self.feature_names)),
            "liability": (len(self.liability),),
        }
        for name, value in self.known.items():
            if not isinstance(value, Tensor) or tuple(value.shape) != (len(self.liability), n_times):
                raise DataError(f"`known` must have shape {(len(self.liability), n_times)}, {name!r} is {value!r}")
            if not _all_finite(value):
                raise DataError(f"`known` must be finite, {name!r} is not")
        for name, shape in expected.items():
            found: Tensor = getattr(self, name)
            if tuple(found.shape) != shape:
                raise DataError(f"`{name}` must have shape {shape}, got {tuple(found.shape)}")
            if not _all_finite(found):
                path = int((~found.isfinite()).reshape(len(found), -1).any(1).nonzero()[0])
                raise DataError(f"`{name}` must be finite: path {path} is not; leave it out, or mend its gap")

    def __len__(self) -> int:
        return len(self.liability)

    @property
    def n_steps(self) -> int:
        """Periods between trading dates."""
        return len(self.times) - 1

    @property
    def n_instruments(self) -> int:
        """Hedging instruments."""
        return len(self.instrument_names)

    def rows(self, chosen: slice | Tensor) -> PathSet:
        """Some of the paths."""
        return self.each(lambda value: value[chosen])

    def each(self, change: Callable[[Tensor], Tensor]) -> PathSet:
        """The same set with a change of all that has a row for each path."""
        parts = {name: change(getattr(self, name)) for name in ("prices", "liability", "features")}
        return replace(self, **parts, known={name: change(value) for name, value in self.known.items()})

    def to(self, device: torch.device | str, dtype: torch.dtype) -> PathSet:
        """The same paths elsewhere, in another precision; the dates stay in double precision."""
        if self.prices.device == torch.device(device) and {self.prices.dtype, self.features.dtype} == {dtype}:
            return self
        return self.each(lambda value: value.to(device, dtype))


def _all_finite(values: Tensor) -> bool:
    """Whether none is infinite or no number: by the least and the largest, twenty times as fast as one by one."""
    return values.numel() == 0 or all(map(math.isfinite, map(float, values.aminmax())))
