"""Quotes of surfaces taken apart into smiles: each expiry of each surface is a problem of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qfml.calibration.model import Quotes

__all__ = ["Smiles", "at_the_money_vol", "grouped", "smiles_of"]

SAME_EXPIRY = 1e-9  # years: quotes closer than this are of one expiry


@dataclass(frozen=True, eq=False)
class Smiles:
    """n smiles with up to N quotes each, padded; they come from the expiries of S surfaces.

    Args:
        log_moneyness: log(strike / forward), shape (n, N); 0 where there is no quote.
        vol: annual Black vol, shape (n, N); 0 where there is no quote.
        weight: of the squared errors, 0 where there is no quote, shape (n, N).
        expiry: years, shape (n,).
        forward: shape (n,).
        surface: which surface a smile belongs to, shape (n,).
        slot: which of its expiries it is, ascending, shape (n,).
        place: column of each quote in the quotes of its surface, -1 where there is none, shape (n, N).
        shape: surfaces, and the largest number of expiries of one of them.
    """

    log_moneyness: Tensor
    vol: Tensor
    weight: Tensor
    expiry: Tensor
    forward: Tensor
    surface: Tensor
    slot: Tensor
    place: Tensor
    shape: tuple[int, int]

    def __len__(self) -> int:
        return self.expiry.shape[0]

    def at(self, index: Tensor) -> Smiles:
        """The smiles of these numbers."""
        parts = {name: value[index] for name, value in vars(self).items() if name != "shape"}
        return Smiles(**parts, shape=self.shape)

    @property
    def n_quotes(self) -> Tensor:
        """Quotes of each smile, shape (n,)."""
        return (self.weight > 0.0).sum(-1)

    def table(self, values: Tensor) -> np.ndarray:
        """Numbers of the smiles, shape (n, ...), by surface and expiry, shape (S, E, ...); NaN where there is none."""
        out = torch.full((*self.shape, *values.shape[1:]), torch.nan, dtype=torch.float64)
        out[self.surface, self.slot] = values.to(torch.float64)
        return out.numpy()

    def by_quote(self, values: Tensor, n_columns: int) -> np.ndarray:
        """Numbers of the quotes, shape (n, N), as the surfaces order them, shape (S, n_columns); NaN elsewhere."""
        out = torch.full((self.shape[0], n_columns), torch.nan, dtype=torch.float64)
        quoted = self.place >= 0
        out[self.surface.unsqueeze(-1).expand_as(quoted)[quoted], self.place[quoted]] = values[quoted]
        return out.numpy()


def smiles_of(quotes: Quotes) -> Smiles:
    """The smiles of a batch of surfaces; quotes of weight 0 are left out.

    >>> from qfml.calibration.surface import Surface, as_quotes
    >>> smiles = smiles_of(as_quotes([Surface.dax_2002()]))
    >>> len(smiles), smiles.shape, smiles.n_quotes.tolist()
    (8, (1, 8), [13, 13, 13, 13, 13, 13, 13, 13])
    """
    rows, columns = (part.numpy() for part in torch.nonzero(quotes.weight > 0.0, as_tuple=True))
    names = ("log_moneyness", "expiry", "vol", "weight", "forward")
    numbers = {name: getattr(quotes, name).expand(quotes.weight.shape).numpy()[rows, columns] for name in names}
    return grouped(rows, columns, numbers, quotes.weight.shape[0])


def grouped(rows: np.ndarray, columns: np.ndarray, numbers: dict[str, np.ndarray], n_rows: int) -> Smiles:
    """The smiles of a list of quotes: one for each row and each expiry in it.

    Args:
        rows: number of the surface of each quote.
        columns: its place there.
        numbers: log_moneyness, expiry, vol, weight and forward of each.
        n_rows: number of surfaces.
    """
    order = np.lexsort((numbers["log_moneyness"], numbers["expiry"], rows))
    rows, columns = rows[order], columns[order]
    numbers = {name: value[order] for name, value in numbers.items()}
    new_row = np.diff(rows, prepend=-1) != 0
    new = new_row | (np.diff(numbers["expiry"], prepend=-1.0) > SAME_EXPIRY)
    smile = np.cumsum(new) - 1
    first = np.flatnonzero(new)
    position = np.arange(len(rows)) - first[smile]
    slot = np.arange(len(first)) - np.flatnonzero(new_row[first])[np.cumsum(new_row[first]) - 1]
    n, width = len(first), int(position.max(initial=0)) + 1

    def padded(value: np.ndarray, filler: Any = 0.0) -> Tensor:
        out = np.full((n, width), filler, dtype=value.dtype)
        out[smile, position] = value
        return torch.from_numpy(out)

    return Smiles(
        log_moneyness=padded(numbers["log_moneyness"]),
        vol=padded(numbers["vol"]),
        weight=padded(numbers["weight"]),
        expiry=torch.from_numpy(numbers["expiry"][first]),
        forward=torch.from_numpy(numbers["forward"][first]),
        surface=torch.from_numpy(rows[first]),
        slot=torch.from_numpy(slot),
        place=padded(columns, -1),
        shape=(n_rows, int(slot.max(initial=0)) + 1),
    )


def at_the_money_vol(smiles: Smiles) -> Tensor:
    """Volatility at the forward, linear in log-moneyness between the quotes beside it, shape (n,).

    Where all quotes lie on one side it is that of the nearest one.

    >>> from qfml.calibration.surface import Surface, as_quotes
    >>> at_the_money_vol(smiles_of(as_quotes([Surface.dax_2002()])))[0]
    tensor(0.3596, dtype=torch.float64)
    """
    quoted, k = smiles.weight > 0.0, smiles.log_moneyness
    below = torch.where(quoted & (k <= 0.0), k, -torch.inf)
    above = torch.where(quoted & (k >= 0.0), k, torch.inf)
    low, left = below.max(-1)
    high, right = above.min(-1)
    left, right = torch.where(low.isinf(), right, left), torch.where(high.isinf(), left, right)
    low, high = (k.gather(-1, side.unsqueeze(-1)).squeeze(-1) for side in (left, right))
    share = torch.where(high > low, -low / torch.where(high > low, high - low, 1.0), 0.0)
    vols = [smiles.vol.gather(-1, side.unsqueeze(-1)).squeeze(-1) for side in (left, right)]
    return torch.lerp(vols[0], vols[1], share)
