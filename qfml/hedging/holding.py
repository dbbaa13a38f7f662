"""From a network's raw outputs to holdings: directly, as a correction of a known hedge, or as a no-transaction band.

Each rule has its slopes written out beside it, so that a policy's gradient needs no graph.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from qfml.errors import ConfigError

__all__ = ["HOLDINGS", "Band", "Correction", "Direct", "Holding", "InUnits"]


@runtime_checkable
class Holding(Protocol):
    """A rule that makes holdings (..., K) of raw outputs (..., R), the holdings before (..., K) and a known hedge."""

    kind: ClassVar[str]

    @property
    def hedge(self) -> tuple[str, ...]:
        """The features that are the known hedge, one for each instrument; none if the rule needs none."""
        ...

    def n_outputs(self, n_instruments: int) -> int:
        """Raw outputs R for K instruments."""
        ...

    def of(self, raw: Tensor, before: Tensor, hedge: Tensor | None) -> Tensor:
        """The holdings, shape (..., K)."""
        ...

    def slopes(
        self, slope: Tensor, raw: Tensor, before: Tensor, hedge: Tensor | None, now: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Slopes of the raw outputs, and of the holdings before (None: 0), from those of the holdings `now`."""
        ...


def limited(x: Tensor, limits: tuple[float, float] | None) -> Tensor:
    """`x` itself, or squeezed between two limits: low + (high - low) (1 + tanh x) / 2."""
    if limits is None:
        return x
    low, high = limits
    return 0.5 * (low + high) + 0.5 * (high - low) * torch.tanh(x)


def limited_slope(slope: Tensor, now: Tensor, limits: tuple[float, float] | None) -> Tensor:
    """Slope of `limited` from its value `now`."""
    if limits is None:
        return slope
    low, high = limits
    return slope * (now - low) * (high - now) * (2.0 / (high - low))


def check_limits(limits: tuple[float, float] | None) -> None:
    """Refuse limits that leave no room."""
    if limits is not None and not (len(limits) == 2 and -math.inf < limits[0] < limits[1] < math.inf):
        raise ConfigError(f"`limits` of a holding must be two finite numbers, low < high, got {limits}")


@dataclass(frozen=True)
class Direct:
    """The network's output is the holding.

    Args:
        limits: least and greatest holding, kept by squeezing; None: none.

    >>> Direct(limits=(0.0, 1.0)).of(torch.zeros(1, 1), torch.zeros(1, 1), None)
    tensor([[0.5000]])
    """

    kind: ClassVar[str] = "direct"
    limits: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        check_limits(self.limits)

    @property
    def hedge(self) -> tuple[str, ...]:
        """None."""
        return ()

    def n_outputs(self, n_instruments: int) -> int:
        """One for each instrument."""
        return n_instruments

    def of(self, raw: Tensor, before: Tensor, hedge: Tensor | None) -> Tensor:
        """The raw outputs, between the limits."""
        return limited(raw, self.limits)

    def slopes(
        self, slope: Tensor, raw: Tensor, before: Tensor, hedge: Tensor | None, now: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """See `Holding.slopes`."""
        return limited_slope(slope, now, self.limits), None


@dataclass(frozen=True)
class InUnits:
    """A holding rule in units of `unit`: those of a network are of order one, whatever is owed.

    Limits of a `Direct` rule stay numbers of the instrument.

    >>> InUnits(Direct(limits=(0.0, 200.0)), 100.0).of(torch.zeros(1, 1), torch.zeros(1, 1), None)
    tensor([[100.]])
    """

    kind: ClassVar[str] = "in_units"
    holding: Holding
    unit: float

    @property
    def hedge(self) -> tuple[str, ...]:
        """See `Holding.hedge`; the features are in the unit."""
        return self.holding.hedge

    @property
    def inner(self) -> Holding:
        """The rule whose holdings are numbers of the unit."""
        limits = getattr(self.holding, "limits", None)
        if limits is None:
            return self.holding
        return Direct(limits=(limits[0] / self.unit, limits[1] / self.unit))

    def n_outputs(self, n_instruments: int) -> int:
        """See `Holding.n_outputs`."""
        return self.holding.n_outputs(n_instruments)

    def of(self, raw: Tensor, before: Tensor, hedge: Tensor | None) -> Tensor:
        """See `Holding.of`."""
        return self.unit * self.inner.of(raw, before / self.unit, hedge)

    def slopes(
        self, slope: Tensor, raw: Tensor, before: Tensor, hedge: Tensor | None, now: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """See `Holding.slopes`."""
        found, carried = self.inner.slopes(self.unit * slope, raw, before / self.unit, hedge, now / self.unit)
        return found, None if carried is None else carried / self.unit


@dataclass(frozen=True)
class Correction:
    """A known hedge, a feature for each instrument, plus what the network puts out.

    Args:
        hedge: names of the features, such as ("book_delta",), the hedge of any book of European options; "call_delta"
            is the delta of one call at the first strike that is owed, and hedges no other book. "none" stands for an
            instrument without a known hedge, and is 0.

    >>> Correction(("delta",)).of(torch.tensor([[0.1]]), torch.zeros(1, 1), torch.tensor([[0.5]]))
    tensor([[0.6000]])
    """

    kind: ClassVar[str] = "correction"
    hedge: tuple[str, ...]

    def __post_init__(self) -> None:
        check_hedge(self.hedge)

    def n_outputs(self, n_instruments: int) -> int:
        """One for each instrument."""
        return n_instruments

    def of(self, raw: Tensor, before: Tensor, hedge: Tensor | None) -> Tensor:
        """Hedge and correction."""
        assert hedge is not None
        return hedge + raw

    def slopes(
        self, slope: Tensor, raw: Tensor, before: Tensor, hedge: Tensor | None, now: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """See `Holding.slopes`."""
        return slope, None


@dataclass(frozen=True)
class Band:
    r"""No-transaction band: the holding before, moved as little as brings it into a band around a known hedge.

    .. math:: \delta_t = \min(\max(\delta_{t-1}, b_t - w^-_t), b_t + w^+_t), \quad w^\pm_t = \mathrm{leaky}(x^\pm_t)

    for the hedge :math:`b_t` and the network's outputs :math:`x^\pm_t`; leaky is the identity above 0 and 1 % of it
    below, so that a band that has closed may open again; where the ends cross, their mean is held.

    Args:
        hedge: names of the features that are the hedge, one for each instrument, such as ("book_delta",), that of any
            book of European options; "call_delta" is the delta of one call at the first strike that is owed, and hedges
            no other book. "none" stands for an instrument without a known hedge, and is 0.

    References:
        Imaki, Imajo, Ito, Minami and Nakagawa (2021), "No-Transaction Band Network", section 4. Davis, Panas and
        Zariphopoulou (1993), for the form of the optimum under proportional costs.

    >>> band = Band(("delta",))
    >>> raw, before = torch.tensor([[0.1, 0.2]]), torch.tensor([[0.0]])
    >>> band.of(raw, before, torch.tensor([[0.5]]))
    tensor([[0.4000]])
    """

    kind: ClassVar[str] = "band"
    hedge: tuple[str, ...]

    def __post_init__(self) -> None:
        check_hedge(self.hedge)

    def n_outputs(self, n_instruments: int) -> int:
        """Two for each instrument: the widths below, then those above."""
        return 2 * n_instruments

    def of(self, raw: Tensor, before: Tensor, hedge: Tensor | None) -> Tensor:
        """The holding before, brought into the band."""
        low, high = self._ends(raw, hedge)
        return torch.where(low > high, 0.5 * (low + high), torch.minimum(torch.maximum(before, low), high))

    def slopes(
        self, slope: Tensor, raw: Tensor, before: Tensor, hedge: Tensor | None, now: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """See `Holding.slopes`."""
        low, high = self._ends(raw, hedge)
        crossed = low > high
        at_low = torch.where(crossed, 0.5, (before < low).to(slope.dtype))
        at_high = torch.where(crossed, 0.5, (before > high).to(slope.dtype))
        to_low, to_high = -slope * at_low, slope * at_high
        by_widths = torch.cat([to_low, to_high], -1)
        by_widths = torch.where(raw > 0, by_widths, LEAK * by_widths)
        return by_widths, slope * (1.0 - at_low - at_high)

    def _ends(self, raw: Tensor, hedge: Tensor | None) -> tuple[Tensor, Tensor]:
        assert hedge is not None
        below, above = torch.nn.functional.leaky_relu(raw, LEAK).chunk(2, -1)
        return hedge - below, hedge + above


LEAK = 0.01
NOTHING = "none"  # in place of a feature, where nothing is the known hedge of an instrument


def check_hedge(names: Sequence[str]) -> None:
    """Refuse a rule without the features that it is built on."""
    if not names or isinstance(names, str):
        raise ConfigError(f"`hedge` must name a feature for each instrument, such as ('delta',), got {names!r}")


HOLDINGS: dict[str, type] = {cls.kind: cls for cls in (Direct, Correction, Band)}
