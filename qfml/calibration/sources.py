"""Where the quotes of a run come from: a file, the DAX of July 2002, a market that is made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from qfml.calibration.history import SurfaceHistory
from qfml.calibration.quote_columns import columns_of, frame_of
from qfml.calibration.reading import Reading
from qfml.calibration.surface import Surface
from qfml.calibration.surface_checks import moment
from qfml.calibration.swaption_cube import QUOTES, SwaptionCube
from qfml.calibration.synthetic import SyntheticHeston
from qfml.config import Section
from qfml.errors import ConfigError, DataError

__all__ = [
    "CUBE_SOURCES",
    "SURFACE_SOURCES",
    "Dax2002",
    "NamedSurfaces",
    "SurfaceFile",
    "SurfaceSource",
    "SwaptionCubeFile",
    "SyntheticSurfaces",
]


class NamedSurfaces(dict[str, Surface]):
    """Surfaces by name, in order.

    Args:
        surfaces: names are unique and short: a date, a convention.
        remarks: what was left out of them, and why.
    """

    def __init__(self, surfaces: Mapping[str, Surface], remarks: Iterable[str] = ()) -> None:
        super().__init__(surfaces)
        self.remarks = tuple(remarks)


@runtime_checkable
class SurfaceSource(Protocol):
    """Where surfaces come from."""

    kind: ClassVar[str]

    def read(self) -> NamedSurfaces:
        """The surfaces."""
        ...

    def describe(self) -> str:
        """What this is, for a report."""
        ...


@dataclass(frozen=True)
class Dax2002:
    """The DAX on 5 July 2002, the classic data of Heston calibration, built in.

    Args:
        maturities: "exact_days"; "week_rounded", to whole weeks, as in the published fits; or "both", which calibrates
            the same quotes under each convention.
    """

    kind: ClassVar[str] = "dax_2002"
    maturities: str = "both"

    def __post_init__(self) -> None:
        if self.maturities not in ("exact_days", "week_rounded", "both"):
            raise ConfigError(f"`maturities` must be exact_days, week_rounded or both, got {self.maturities!r}")

    def read(self) -> NamedSurfaces:
        names = ("week_rounded", "exact_days") if self.maturities == "both" else (self.maturities,)
        return NamedSurfaces({name: Surface.dax_2002(name) for name in names})

    def describe(self) -> str:
        return "Implied vols of the DAX on 5 July 2002, 13 strikes at 8 maturities"


@dataclass(frozen=True)
class SurfaceFile:
    """Quotes of one day, or of many with a column `date`, in a CSV or Parquet file (see `Surface.read`).

    Args:
        path: of the file.
        reading: what the columns do not say: spot, rates, units.
        start: the first date that is taken, ISO 8601; None takes all.
        end: the last one; a date without a time takes the whole day.
    """

    kind: ClassVar[str] = "file"
    path: str
    reading: Annotated[Reading, Section(Reading)] = field(default_factory=Reading)
    start: str | None = None
    end: str | None = None

    def read(self) -> NamedSurfaces:
        frame = frame_of(self.path, self.reading.separator)
        if "date" not in columns_of(frame, self.reading.rename, self.reading.ignore):
            if self.start or self.end:
                raise DataError(f"{self.path} has no column `date`: leave out `start` and `end`")
            surface = Surface.from_frame(frame, self.reading)
            return NamedSurfaces({surface.name or surface.date_text or "surface": surface})
        history = SurfaceHistory.from_frame(frame, self.reading)
        kept = {s.date_text: s for s in history if self._takes(s)}
        if not kept:
            raise DataError(f"{self.path} has no quotes from {self.start or 'its start'} to {self.end or 'its end'}")
        return NamedSurfaces(kept, history.remarks)

    def __post_init__(self) -> None:
        start, end = (self._limit(name) for name in ("start", "end"))
        if start is not None and end is not None and start > end:
            raise ConfigError(f"`start` must not lie after `end`, got {self.start!r} and {self.end!r}")

    def _limit(self, name: str) -> np.datetime64 | None:
        try:
            return moment(getattr(self, name))
        except DataError:
            raise ConfigError(
                f"`{name}` must be ISO 8601 text such as 2002-07-05, got {getattr(self, name)!r}"
            ) from None

    def _takes(self, surface: Surface) -> bool:
        start, end = self._limit("start"), self._limit("end")
        if surface.date is None:
            return start is None and end is None
        whole_day = self.end is not None and len(self.end) <= len("2002-07-05")  # no time is given
        last = surface.date.astype("datetime64[D]") if whole_day else surface.date
        return bool((start is None or surface.date >= start) and (end is None or last <= end))

    def describe(self) -> str:
        return f"Quotes of {self.path}"


@dataclass(frozen=True)
class SyntheticSurfaces:
    """Daily surfaces that Heston's model makes, its parameters moving: the truth of each day is known.

    Args:
        n_days: calendar days, one surface each.
        seed: of all that is drawn.
        vol_noise_bps: standard deviation of the error of the mid vols, basis points of vol.
        half_spread_bps: half of ask less bid, basis points of vol.
        expiries: years, the same every day.
        deltas: call deltas on the forward of the strikes.
        ranges: of the parameters, by name; those left out keep the usual ones.
    """

    kind: ClassVar[str] = "synthetic_heston"
    n_days: int
    seed: int
    vol_noise_bps: float = 10.0
    half_spread_bps: float = 25.0
    expiries: tuple[float, ...] = SyntheticHeston.expiries
    deltas: tuple[float, ...] = SyntheticHeston.deltas
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._market()

    def _market(self) -> SyntheticHeston:
        return SyntheticHeston(**{setting.name: getattr(self, setting.name) for setting in fields(self)})

    def read(self) -> NamedSurfaces:
        return NamedSurfaces({surface.date_text: surface for surface in self._market().history()})

    def describe(self) -> str:
        return f"{self.n_days} made-up days under Heston, vols with an error of {self.vol_noise_bps:g} bps"


@dataclass(frozen=True)
class SwaptionCubeFile:
    """Swaption vols by expiry, tenor and strike in a CSV or Parquet file (see `SwaptionCube.read`), for `sabr`.

    Args:
        path: of the file.
        shift: of shifted-lognormal vols and of SABR, decimal; negative rates need one. None: that of the column
            `shift`, or 0.
        quote: what the vols are: "lognormal" (of the shifted rate) or "normal".
    """

    kind: ClassVar[str] = "swaption_cube"
    path: str
    shift: float | None = None
    quote: str = "lognormal"

    def __post_init__(self) -> None:
        if self.quote not in QUOTES:
            raise ConfigError(f"`quote` of a cube must be one of {', '.join(QUOTES)}, got {self.quote!r}")
        if self.shift is not None and not 0.0 <= self.shift < np.inf:
            raise ConfigError(f"`shift` of a cube must be a decimal rate of 0 or more, got {self.shift!r}")

    def read(self) -> SwaptionCube:
        """The quotes."""
        return SwaptionCube.read(self.path, shift=self.shift, quote=self.quote)

    def describe(self) -> str:
        """What this is, for a report."""
        shift = f", shifted by {self.shift:g}" if self.shift else ""
        return f"Swaption vols of {self.path}, {self.quote}{shift}"


SURFACE_SOURCES: dict[str, type[Any]] = {cls.kind: cls for cls in (Dax2002, SurfaceFile, SyntheticSurfaces)}
CUBE_SOURCES: dict[str, type[Any]] = {SwaptionCubeFile.kind: SwaptionCubeFile}
