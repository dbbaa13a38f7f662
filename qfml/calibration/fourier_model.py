"""What models with a characteristic function have in common where they are calibrated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from qfml.calibration.fourier_vols import Characteristic, planned_vols, planned_vols_and_jacobian
from qfml.calibration.model import Parameter, Quotes, draw_starts

__all__ = ["FourierCalibration", "Table", "columns"]


class Table(NamedTuple):
    """What tells one model from another."""

    parameters: tuple[Parameter, ...]  # in the order in which `priced` takes them
    law: Characteristic
    priced: type  # the same model in `pricers`


@dataclass(frozen=True)
class FourierCalibration:
    """A model that is calibrated by its characteristic function: a subclass has a name and a `Table`."""

    kind: ClassVar[str]
    table: ClassVar[Table]

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return self.table.parameters

    @property
    def law(self) -> Characteristic:
        """The characteristic function for the kernel."""
        return self.table.law

    def vols(self, x: Tensor, quotes: Quotes) -> Tensor:
        return planned_vols(self.law, x, quotes)

    def vols_and_jacobian(self, x: Tensor, quotes: Quotes) -> tuple[Tensor, Tensor]:
        return planned_vols_and_jacobian(self.law, x, quotes)

    def starts(self, quotes: Quotes, n: int, generator: torch.Generator) -> Tensor:
        return draw_starts(self.parameters, quotes.n_surfaces, n, generator)

    def pricer(self, x: Tensor) -> Any:
        return self.table.priced(*x.unbind(-1))


def columns(x: Tensor) -> tuple[Tensor, ...]:
    """Parameters (R, P) as P columns (R, 1), which broadcast over nodes."""
    return x.unsqueeze(-2).unbind(-1)
