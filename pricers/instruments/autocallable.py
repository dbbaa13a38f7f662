"""Notes that are called back once the asset stands high enough."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pricers.instruments.base import Discount, Instrument
from pricers.parameters import broadcast_shape, dates, flag, plausible, within
from pricers.paths import Paths

__all__ = ["Autocallable"]

MOST_COUPON = 1.0  # of the notional on one date: more was meant in percent
MOST_FRACTION = 10.0  # of the reference: a higher barrier was meant as a price or in percent


@dataclass(frozen=True, eq=False, init=False)
class Autocallable(Instrument):
    r"""Note of notional 1 that pays coupons, is called back on a high fixing, and else may bear the asset's loss.

    With the performance $p_i = S_{t_i} / S_{ref}$ at the observation dates, as long as the note is alive:

    - $p_i \ge$ `coupon_barrier`: the coupon $c_i$ is paid at $t_i$, with `memory` together with all that were missed;
    - $p_i \ge$ `autocall_barrier`: the notional is paid back at $t_i$ and the note ends;
    - at the last date a note that was not called pays 1 if $p_n \ge$ `protection_barrier`, else $p_n$: the short put is
      knocked in by the last fixing only.

    Args:
        times: observation and payment dates in years, above 0; shape `*batch n_dates`.
        reference: $S_{ref}$, the spot that performance is measured from, above 0; shape `*batch`.
        autocall_barrier: as a fraction of the reference, in (0, 10]; a number for all dates, or shape `*batch n_dates`.
        coupon: fraction of the notional for each date, in [0, 1]; a number for all dates, or shape `*batch n_dates`.
        protection_barrier: as a fraction of the reference, in (0, 10]; shape `*batch`.
        coupon_barrier: as a fraction of the reference, in (0, 10], like `autocall_barrier`; None: the autocall barrier,
            so that coupons come only with the call.
        memory: whether a coupon that was missed is paid with the next one.

    Raises:
        ValueError: dates out of order, a number out of bounds, or a barrier or coupon whose last axis matches neither 1
            nor the number of dates.

    References:
        Bouzoubaa and Osseiran (2010), Exotic options and hybrids, chapter 12.

    >>> note = Autocallable([0.5, 1.0], 100.0, autocall_barrier=[1.0, 0.95], coupon=0.04, protection_barrier=0.7)
    >>> note.dates
    tensor([0.5000, 1.0000], dtype=torch.float64)
    """

    kind: ClassVar[str] = "autocallable"
    date_fields: ClassVar[tuple[str, ...]] = ("times",)
    times: Tensor
    reference: Tensor
    autocall_barrier: Tensor
    coupon: Tensor
    protection_barrier: Tensor
    coupon_barrier: Tensor | None
    memory: bool

    def __init__(
        self,
        times: Any,
        reference: Any,
        autocall_barrier: Any,
        coupon: Any,
        protection_barrier: Any,
        coupon_barrier: Any = None,
        memory: Any = False,
    ) -> None:
        object.__setattr__(self, "times", dates("times", times))
        object.__setattr__(self, "reference", within("reference", reference, above=0.0))
        object.__setattr__(self, "autocall_barrier", _fraction("autocall_barrier", autocall_barrier))
        coupon = plausible("coupon", within("coupon", coupon, at_least=0.0), MOST_COUPON, "5 % of the notional is 0.05")
        object.__setattr__(self, "coupon", coupon)
        object.__setattr__(self, "protection_barrier", _fraction("protection_barrier", protection_barrier))
        if coupon_barrier is not None:
            coupon_barrier = _fraction("coupon_barrier", coupon_barrier)
        object.__setattr__(self, "coupon_barrier", coupon_barrier)
        object.__setattr__(self, "memory", flag("memory", memory))
        for name, level in self._levels().items():
            if level.ndim and level.shape[-1] not in (1, self.times.shape[-1]):
                raise ValueError(
                    f"`{name}` must be one number or have one for each date along its last axis, got shape "
                    f"{tuple(level.shape)} beside `times` of shape {tuple(self.times.shape)}"
                )
        _ = self.batch_shape

    def _levels(self) -> dict[str, Tensor]:
        """What may differ from date to date."""
        levels = {"autocall_barrier": self.autocall_barrier, "coupon": self.coupon}
        return levels if self.coupon_barrier is None else {**levels, "coupon_barrier": self.coupon_barrier}

    @property
    def batch_shape(self) -> torch.Size:
        levels = {name: level.shape[:-1] for name, level in self._levels().items()}
        return broadcast_shape(
            times=self.times.shape[:-1],
            reference=self.reference,
            protection_barrier=self.protection_barrier,
            **levels,
        )

    @property
    def dates(self) -> Tensor:
        return self.times

    @property
    def discontinuous(self) -> bool:
        return True

    def payoff(self, paths: Paths, discount: Discount) -> Tensor:
        performance = paths.at(self.times) / self.reference[..., None, None]  # *batch paths n_dates
        coupon_barrier = self.autocall_barrier if self.coupon_barrier is None else self.coupon_barrier
        called = performance >= _beside_paths(self.autocall_barrier)
        earned = performance >= _beside_paths(coupon_barrier)
        coupon = _beside_paths(self.coupon)
        coupon = coupon.expand(*coupon.shape[:-1], self.times.shape[-1])
        alive = torch.ones_like(performance[..., 0])
        missed = torch.zeros_like(alive)
        value = torch.zeros_like(alive)
        for i, date in enumerate(self.times.unbind(-1)):
            due = coupon[..., i] + missed if self.memory else coupon[..., i]
            cash = torch.where(earned[..., i], due, 0.0) + called[..., i].to(alive.dtype)
            value = value + alive * cash * discount(date).unsqueeze(-1)
            missed = torch.where(earned[..., i], 0.0, due)
            alive = torch.where(called[..., i], 0.0, alive)
        last = performance[..., -1]
        redemption = torch.where(last >= self.protection_barrier.unsqueeze(-1), torch.ones_like(last), last)
        return value + alive * redemption * discount(self.horizon).unsqueeze(-1)


def _fraction(name: str, level: Any) -> Tensor:
    hint = "is it a price? divide by the reference; 70 % of it is 0.7"
    return plausible(name, within(name, level, above=0.0), MOST_FRACTION, hint)


def _beside_paths(level: Tensor) -> Tensor:
    """A level of the dates, `*batch n_dates` or a number, with an axis for the paths."""
    return level.unsqueeze(-2) if level.ndim else level.reshape(1, 1)
