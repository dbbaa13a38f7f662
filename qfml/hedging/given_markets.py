"""What a market is to hedging, and the markets whose law is given: a model, a record, the returns of a price series."""

from __future__ import annotations

import hashlib
from dataclasses import fields, is_dataclass, replace
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import torch

from qfml.config import to_dict
from qfml.data.sources import Source
from qfml.hedging.book import Book
from qfml.hedging.bootstrapped_returns import BootstrappedReturns
from qfml.hedging.model_market import ModelMarket
from qfml.hedging.paths import PathSet
from qfml.hedging.recorded_paths import RecordedPaths

__all__ = ["GIVEN_MARKETS", "HedgingMarket", "identity", "independent", "parted", "record_of"]


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


@runtime_checkable
class _Finite(Protocol):
    """A market whose paths run out."""

    def parted(self, n_last: int, n_step: int = 1) -> tuple[HedgingMarket, HedgingMarket]:
        """Its paths but the last, and the last ones; a step of the training takes `n_step` of the first."""
        ...


def parted(market: HedgingMarket, n_last: int, n_step: int = 1) -> tuple[HedgingMarket, HedgingMarket]:
    """Where to train and where to validate: the market itself, of a record its paths but the last, and those."""
    return market.parted(n_last, n_step) if isinstance(market, _Finite) else (market, market)


def record_of(market: HedgingMarket) -> RecordedPaths | None:
    """The recorded paths that a market consists of, its drift removed or not; None of one that makes its own."""
    given = [each for each in (market, getattr(market, "market", None)) if isinstance(each, RecordedPaths)]
    return given[0] if given else None


def independent(market: HedgingMarket) -> HedgingMarket:
    """The same market with paths that know nothing of one another, as standard errors and intervals take them to be."""
    if not isinstance(market, ModelMarket) or market.noise == "pseudo":
        return market
    return replace(market, noise="pseudo")


def identity(part: Any) -> Any:
    """What decides the paths of a market, as plain JSON: its settings; an array or a script's frame by its hash."""
    if isinstance(part, HedgingMarket) and is_dataclass(part):
        return {"kind": part.kind} | {each.name: identity(getattr(part, each.name)) for each in fields(part)}
    if isinstance(part, np.ndarray | torch.Tensor):
        return hashlib.sha256(np.array(part, dtype=np.float64, order="C").tobytes()).hexdigest()
    try:
        return to_dict(part)
    except TypeError:
        if not isinstance(part, Source):
            raise
        content = part.read().write_ipc(None).getvalue()
        return {"kind": part.kind, "hash": hashlib.sha256(content).hexdigest()}


GIVEN_MARKETS: dict[str, type] = {cls.kind: cls for cls in (ModelMarket, RecordedPaths, BootstrappedReturns)}
