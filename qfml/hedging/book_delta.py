"""Black and Scholes's delta of a whole book of European options, from what is seen of the spot on each date."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

import pricers as pr
from pricers.paths import SAME_DATE
from qfml.errors import ConfigError
from qfml.hedging.book import Book

__all__ = ["BOOK_DELTA", "Options", "options_of"]

BOOK_DELTA = "book_delta"  # the feature
TERMS = ("strike", "expiry")


@dataclass(frozen=True, eq=False)
class Options:
    """The European options of a book, each tensor (n,), float64.

    Args:
        strikes: of each.
        expiries: years.
        growth: forward to the expiry over the forward to the horizon.
        sides: 1 of a call, -1 of a put.
        units: quantity over the book's size, times the spot with its income reinvested that grows to a share at expiry.
    """

    strikes: Tensor
    expiries: Tensor
    growth: Tensor
    sides: Tensor
    units: Tensor

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All numbers, by name."""
        return {part.name: getattr(self, part.name) for part in fields(self)}

    def to(self, device: torch.device | str) -> Options:
        """The same options on a device."""
        return self.of({name: value.to(device) for name, value in self.tensors.items()})

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Options:
        """Options of tensors that are named as `tensors`."""
        return cls(**{part.name: tensors[part.name] for part in fields(cls)})

    def delta(self, forward: Tensor, now: Tensor, vol: float | Tensor) -> Tensor:
        """Delta of all of them in units of the book's size, (B, L).

        Args:
            forward: of the spot to the horizon, (B, L).
            now: years of each date, (L,) or (B, L).
            vol: annualised, decimal.
        """
        total = torch.zeros_like(forward, dtype=torch.float32)
        for place in range(len(self.strikes)):  # one after the other: a book may be large, and paths are many
            left = self.expiries[place] - now
            alive = left > SAME_DATE
            deviation = vol * torch.where(alive, left, 1.0).sqrt()
            d1 = torch.log(forward * self.growth[place] / self.strikes[place]) / deviation + 0.5 * deviation
            side = self.sides[place]
            share = torch.special.ndtr((side * d1).to(torch.float32))  # ONNX runtimes have none of float64
            total = total + (side * self.units[place] * alive).to(torch.float32) * share
        return total


def options_of(
    book: Book,
    information: tuple[str, ...],
    growth: Callable[[Tensor], Tensor],
    discount: Callable[[Tensor], Tensor],
) -> Options | None:
    """The options of which `book_delta` is made; None where no policy is to see it.

    Args:
        book: what is owed.
        information: names of what a policy sees.
        growth: forward to a time over today's spot.
        discount: today's value of one unit of cash at a time.

    Raises:
        ConfigError: `book_delta` of a book with a contract that is no European option.
    """
    if BOOK_DELTA not in information:
        return None
    contracts = _europeans(book)
    strikes, expiries = (torch.stack([getattr(each, name).double() for each in contracts]) for name in TERMS)
    sides = torch.tensor([1.0 if each.option == "call" else -1.0 for each in contracts], dtype=torch.float64)
    owed = torch.tensor(book.quantities, dtype=torch.float64) / book.size
    ahead = growth(expiries).double()
    last = torch.tensor(book.horizon, dtype=torch.float64)
    return Options(strikes, expiries, ahead / growth(last).double(), sides, owed * ahead * discount(expiries).double())


def _europeans(book: Book) -> list[pr.European]:
    for name, contract in zip(book.names, book.contracts, strict=True):
        if not isinstance(contract, pr.European):
            raise ConfigError(
                f"`information` names '{BOOK_DELTA}', which is that of European calls and puts, and the book has "
                f"{name}; leave it out, and let the policy hold what its network puts out, holding `direct`"
            )
    return [contract for contract in book.contracts if isinstance(contract, pr.European)]
