"""Surfaces of one underlying through time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from qfml.calibration.quote_columns import frame_of
from qfml.calibration.reading import Reading
from qfml.calibration.surface import Surface
from qfml.calibration.surface_reading import QuotesRead, read_quotes
from qfml.calibration.surface_writing import table_of, write_table
from qfml.data.validation import to_polars
from qfml.errors import DataError

__all__ = ["SurfaceHistory"]

SHOWN = 3  # dates whose notes are printed


class SurfaceHistory(Sequence[Surface]):
    """Surfaces by ascending date; a slice is a history, an index a surface.

    Args:
        surfaces: with dates that ascend.
        remarks: dates that reading left out, and why.

    Raises:
        DataError: no surface, one without a date, dates out of order, or several underlyings.

    >>> day = Surface.dax_2002()
    >>> history = SurfaceHistory([day])
    >>> len(history), history[0] is day, history.dates.astype("datetime64[D]").tolist()
    (1, True, [datetime.date(2002, 7, 5)])
    """

    def __init__(self, surfaces: Any, remarks: Iterable[str] = ()) -> None:
        if isinstance(surfaces, Surface):
            raise DataError("a history holds a list of surfaces, got one surface; write SurfaceHistory([surface])")
        self._surfaces: tuple[Surface, ...] = tuple(surfaces)
        self.remarks = tuple(remarks)
        if not self._surfaces:
            raise DataError("a history needs one surface or more, got none")
        for number, surface in enumerate(self._surfaces):
            if not isinstance(surface, Surface):
                raise DataError(f"a history holds surfaces, got {type(surface).__name__} at place {number}")
            if surface.date is None:
                raise DataError(f"every surface of a history needs a `date`; the one at place {number} has none")
        names = sorted({surface.name for surface in self._surfaces if surface.name})
        if len(names) > 1:
            raise DataError(f"a history is of one underlying, got {', '.join(names)}; make one of each")
        late = np.flatnonzero(np.diff(self.dates) <= np.timedelta64(0))
        if late.size:
            first, second = self.dates[late[0]], self.dates[late[0] + 1]
            raise DataError(
                f"the dates of a history must ascend, but {second} follows {first} at place {late[0] + 1}; sort the "
                "surfaces, and keep one for each date"
            )

    @classmethod
    def read(cls, path: Any, how: Reading | None = None, **settings: Any) -> SurfaceHistory:
        """Read a long table with a column `date`, in any order: see `Surface.read`.

        Raises:
            DataError: a rule is broken; the message names the row.
        """
        how = Reading.of(how, settings)
        return cls._of(read_quotes(frame_of(path, how.separator), how), how)

    @classmethod
    def from_frame(cls, frame: Any, how: Reading | None = None, **settings: Any) -> SurfaceHistory:
        """The history in a pandas or polars frame: see `read`."""
        how = Reading.of(how, settings)
        return cls._of(read_quotes(to_polars(frame), how), how)

    @classmethod
    def _of(cls, found: QuotesRead, how: Reading) -> SurfaceHistory:
        if found.dates[0] is None:
            raise DataError("a history needs a column `date`; a table of one day is read by Surface.read")
        counts = np.bincount(found.table.surface, minlength=len(found.dates)).tolist()
        empty = [number for number, count in enumerate(counts) if not count and how.errors == "drop"]
        labels = {number: str(found.dates[number]).removesuffix("T00:00:00.000000") for number in empty}
        remarks = [f"{label} is left out: {'; '.join(found.notes.get(number, ()))}" for number, label in labels.items()]
        kept = [number for number in range(len(counts)) if number not in empty]
        if not kept:
            raise DataError(f"no date is left: {'; '.join(remarks[:SHOWN])}")
        return cls([Surface.of_quotes(found, number) for number in kept], remarks)

    def write(self, path: Any) -> Path:
        """Write all quotes as one long table, CSV or Parquet, that `read` turns into the same numbers."""
        return write_table(path, table_of(self))

    @property
    def dates(self) -> np.ndarray:
        """Dates of the surfaces, datetime64 to the microsecond."""
        return np.array([surface.date for surface in self._surfaces], "datetime64[us]")

    def __len__(self) -> int:
        return len(self._surfaces)

    def __iter__(self) -> Iterator[Surface]:
        return iter(self._surfaces)

    @overload
    def __getitem__(self, index: int) -> Surface: ...
    @overload
    def __getitem__(self, index: slice) -> SurfaceHistory: ...
    def __getitem__(self, index: int | slice) -> Surface | SurfaceHistory:
        return SurfaceHistory(self._surfaces[index]) if isinstance(index, slice) else self._surfaces[index]

    def __str__(self) -> str:
        days = self.dates.astype("datetime64[D]")
        counts = [len(surface) for surface in self._surfaces]
        lines = [
            f"{self._surfaces[0].name or 'Surfaces'}: {len(self)} dates from {days[0]} to {days[-1]}, "
            f"{min(counts)} to {max(counts)} quotes each"
        ]
        lines += self.remarks
        noted = [surface for surface in self._surfaces if surface.remarks]
        lines += [f"{surface.date_text}: {note}" for surface in noted[:SHOWN] for note in surface.remarks]
        if len(noted) > SHOWN:
            lines.append(f"... and notes on {len(noted) - SHOWN} more dates")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<{str(self).partition(chr(10))[0]}>"
