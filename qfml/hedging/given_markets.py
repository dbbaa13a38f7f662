"""What a market is to hedging, and the markets whose law is given: a model, a record, the returns of a price series."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol, runtime_checkable

import torch

from qfml.hedging.book import Book
from qfml.hedging.bootstrapped_returns import BootstrappedReturns
from qfml.hedging.model_market import ModelMarket
from qfml.hedging.paths import PathSet
from qfml.hedging.recorded_paths import RecordedPaths

__all__ = ["GIVEN_MARKETS", "HedgingMarket"]


@runtime_checkable
class HedgingMarket(Protocol):
    """A source of paths to trade on: a frozen dataclass with a `kind`."""

    kind: ClassVar[str]

    @property
    def information(self) -> tuple[str, ...]:
        """What a policy sees, by name."""
        ...

    @property
    def vol(self) -> float:
        """The unit of volatility of its features, per year."""
        ...

    @property
    def martingale(self) -> bool:
        """Whether discounted prices of all instruments are martingales, so that no trading earns on average."""
        ...

    def paths(
        self,
        n_paths: Any,
        book: Book,
        seed: Any,
        number: Any = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> PathSet:
        """The set `number` of paths of `seed`, with what the book owes along each.

        Raises:
            DataError: the horizon of the book is not on the grid, or data break a rule.
            ConfigError: what a policy is to see is not known, or cannot be seen here.
        """
        ...


GIVEN_MARKETS: dict[str, type] = {cls.kind: cls for cls in (ModelMarket, RecordedPaths, BootstrappedReturns)}
