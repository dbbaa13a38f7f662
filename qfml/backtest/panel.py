"""Long rows <-> (times, assets) matrices: the shape in which positions are decided and P&L is booked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int64

from qfml.errors import DataError

__all__ = ["Panel"]


@dataclass(frozen=True, eq=False)
class Panel:
    """Where each row of a data set stands in the matrix of its distinct times and assets.

    Attributes:
        times: The distinct times, ascending, shape (times,).
        names: One name per asset; a single empty name where the data have no groups.
        row_time: Index into `times` of each row, shape (rows,).
        row_asset: Index into `names` of each row, shape (rows,).

    Example:
        >>> panel = Panel.from_rows(np.array([1, 1, 2]), np.array([0, 1, 0]), ("A", "B"))
        >>> panel.matrix(np.array([0.1, 0.2, 0.3]))
        array([[0.1, 0.2],
               [0.3, nan]])
    """

    times: np.ndarray
    names: tuple[str, ...]
    row_time: np.ndarray
    row_asset: np.ndarray

    @classmethod
    def from_rows(cls, time: np.ndarray, group: np.ndarray | None = None, names: tuple[str, ...] = ()) -> Panel:
        """Index rows by their time and group.

        Args:
            time: Time of each row, any order.
            group: Asset code of each row, 0 to len(names) - 1; None for a single asset.
            names: Names of the assets.

        Raises:
            DataError: If two rows share a (time, group).
        """
        times, row_time = np.unique(time, return_inverse=True)
        row_asset = np.zeros(len(time), dtype=np.int64) if group is None else np.asarray(group, dtype=np.int64)
        panel = cls(times, ("",) if group is None else names, row_time, row_asset)
        cells = row_time * len(panel.names) + row_asset
        if len(np.unique(cells)) != len(cells):
            raise DataError("two rows share the same (time, group): a position needs one price per asset and time")
        return panel

    @property
    def shape(self) -> tuple[int, int]:
        """(times, assets)."""
        return len(self.times), len(self.names)

    def matrix(self, values: Any, rows: Int64[np.ndarray, " some"] | None = None) -> Float[np.ndarray, "times assets"]:
        """Spread `values` of `rows` (all rows if None) over (times, assets); nan where there is no row."""
        matrix = np.full(self.shape, np.nan)
        where = slice(None) if rows is None else rows
        matrix[self.row_time[where], self.row_asset[where]] = values
        return matrix

    def rows(self, matrix: np.ndarray) -> np.ndarray:
        """The matrix entry of every row, shape (rows,)."""
        return matrix[self.row_time, self.row_asset]
