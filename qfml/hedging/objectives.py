"""What a hedge is trained on and judged by: risk measures of its P&L, as a positive loss in discounted cash.

Most are an optimized certainty equivalent: the least, over a level w, of a mean over paths,

    risk(X) = min over w of w + E[loss(-X - w)]

with a convex loss whose slope passes 1 at 0 (Ben-Tal and Teboulle, 2007, "An Old-New Concept of Convex Risk Measures:
the Optimized Certainty Equivalent"). What stands in the mean is `rows`: a level that is learned beside a policy makes
the risk an additive loss, path by path. `risk` is the exact form of the sample, and the price of a book that has been
sold is the risk of its hedged P&L less the risk of trading without it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pricers import Estimate
from qfml.errors import ConfigError, DataError
from qfml.hedging.kinds import check_numbers
from qfml.hedging.objective_base import (
    CertaintyEquivalent,
    Dial,
    Objective,
    PerMember,
    Pnl,
    bisect,
    check_positive,
    check_tail,
    checked_pnl,
    priced,
    same_paths,
)
from qfml.losses.sample import entropic_risk, expected_shortfall

__all__ = [
    "OBJECTIVES",
    "OCE_LOSSES",
    "Entropic",
    "ExpectedShortfall",
    "ExponentialUtility",
    "Isoelastic",
    "MeanVariance",
    "Objective",
    "OptimizedCertaintyEquivalent",
    "Quadratic",
    "QuadraticShortfall",
    "Spectral",
]


FLAT = 30.0  # exponent of an entropic loss from which on it is continued along its tangent


def _exponential(y: Tensor, dial: Dial) -> Tensor:
    """The loss (e^(aversion y) - 1) / aversion, from an exponent of FLAT on along its tangent.

    Else the first steps of a training overflow. No sample of fewer than e^30 paths has a mean slope of 1 with such a
    path in it, so that the least mean over the level is not moved.
    """
    exponent = dial * y
    beyond = (exponent - FLAT).clamp_min(0.0)
    return (torch.expm1(exponent.clamp_max(FLAT)) + math.exp(FLAT) * beyond) / dial


@dataclass(frozen=True)
class Entropic(CertaintyEquivalent):
    r"""Entropic risk :math:`\frac1\lambda \log E[e^{-\lambda X}]`, with the loss :math:`(e^{\lambda y} - 1) / \lambda`.

    Args:
        risk_aversion: :math:`\lambda`, per unit of cash, above 0.

    References:
        Föllmer and Schied (2002), "Convex Measures of Risk and Trading Constraints".

    Example:
        >>> Entropic(risk_aversion=1.0).risk(torch.tensor([[0.0, -1.0, -2.0, -3.0]]))
        tensor([2.0539], dtype=torch.float64)
    """

    kind: ClassVar[str] = "entropic"
    dial: ClassVar[str | None] = "risk_aversion"
    risk_aversion: float

    def __post_init__(self) -> None:
        self.check_dial(self.risk_aversion)

    def _rows(self, pnl: Pnl, level: Tensor, dial: Dial) -> Pnl:
        return level + _exponential(-pnl - level, dial)

    def value(self, pnl: Pnl, dial: Dial) -> PerMember:
        # the risk of aversion 1 of the P&L times the aversion, which may so differ between members
        pnl = pnl.double()
        return entropic_risk(dial * pnl, torch.ones_like(pnl), risk_aversion=1.0) / dial[:, 0]

    def _best_level(self, pnl: Pnl, dial: Dial) -> Tensor:
        return self.value(pnl, dial)[:, None]


@dataclass(frozen=True)
class ExponentialUtility(Entropic):
    r"""Minus the certainty equivalent of the utility :math:`-e^{-\lambda x}`: the entropic risk by its other name.

    Args:
        risk_aversion: :math:`\lambda`, Arrow and Pratt's absolute risk aversion, per unit of cash, above 0.

    References:
        Hodges and Neuberger (1989), "Optimal Replication of Contingent Claims under Transactions Costs".
    """

    kind: ClassVar[str] = "exponential_utility"


@dataclass(frozen=True)
class ExpectedShortfall(CertaintyEquivalent):
    r"""Expected shortfall: mean loss of the worst share of the paths, with the loss :math:`y^+ / \alpha`.

    The best level is the value at risk; learned beside a policy it is a quantile.

    Args:
        tail: :math:`\alpha`, probability of the tail in (0, 1], not the confidence level; 1 is minus the mean P&L.

    References:
        Rockafellar and Uryasev (2000), "Optimization of Conditional Value-at-Risk", theorem 1.

    Example:
        >>> ExpectedShortfall(tail=0.5).risk(torch.tensor([[0.0, -1.0, -2.0, -3.0]]))
        tensor([2.5000], dtype=torch.float64)
    """

    kind: ClassVar[str] = "expected_shortfall"
    dial: ClassVar[str | None] = "tail"
    axioms: ClassVar[frozenset[str]] = CertaintyEquivalent.axioms | {"homogeneous"}
    tail: float

    def __post_init__(self) -> None:
        self.check_dial(self.tail)

    def check_dial(self, dial: float) -> None:
        check_tail("tail", dial)

    def tails_at(self, dial: float | None = None) -> tuple[float, ...]:
        return (self.tail if dial is None else dial,)

    def _rows(self, pnl: Pnl, level: Tensor, dial: Dial) -> Pnl:
        return level + (-pnl - level).clamp_min(0.0) / dial

    def value(self, pnl: Pnl, dial: Dial) -> PerMember:
        return _shortfalls(pnl.double(), dial)

    def _best_level(self, pnl: Pnl, dial: Dial) -> Tensor:
        return _value_at_risk(pnl, dial)


@dataclass(frozen=True)
class Spectral(CertaintyEquivalent):
    r"""A weighted mean of expected shortfalls :math:`\sum_j w_j\,ES_{\alpha_j}`: spectral, with steps.

    It has a level for each tail; `rows` takes them as (M, J).

    Args:
        tails: :math:`\alpha_j`, probabilities in (0, 1]; a tail of 1 weighs minus the mean P&L.
        weights: :math:`w_j`, positive, with sum 1.

    References:
        Acerbi (2002), "Spectral Measures of Risk: a Coherent Representation of Subjective Risk Aversion".

    Example:
        >>> Spectral(tails=(0.25, 1.0), weights=(0.5, 0.5)).risk(torch.tensor([[0.0, -1.0, -2.0, -3.0]]))
        tensor([2.2500], dtype=torch.float64)
    """

    kind: ClassVar[str] = "spectral"
    axioms: ClassVar[frozenset[str]] = CertaintyEquivalent.axioms | {"homogeneous"}
    tails: tuple[float, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        check_numbers("tails", self.tails)
        check_numbers("weights", self.weights)
        for tail in self.tails:
            check_tail("tails", tail)
        if len(self.tails) == 0 or len(self.weights) != len(self.tails):
            raise ConfigError(f"`weights` must be one for each of the tails {self.tails}, got {self.weights}")
        if not all(0 < weight <= 1 for weight in self.weights) or abs(sum(self.weights) - 1) > 1e-9:
            raise ConfigError(f"`weights` must be positive with sum 1, got {self.weights} with {sum(self.weights):g}")

    def tails_at(self, dial: float | None = None) -> tuple[float, ...]:
        return self.tails

    @property
    def n_levels(self) -> int:
        """One level a tail."""
        return len(self.tails)

    def value(self, pnl: Pnl, dial: Dial) -> PerMember:
        pnl = pnl.double()
        return sum((w * _shortfalls(pnl, tail * dial) for w, tail in self._steps()), torch.zeros_like(pnl[:, 0]))

    def _best_level(self, pnl: Pnl, dial: Dial) -> Tensor:
        return torch.cat([_value_at_risk(pnl, tail * dial) for tail in self.tails], dim=1)

    def _rows(self, pnl: Pnl, level: Tensor, dial: Tensor) -> Pnl:
        total = torch.zeros_like(pnl)
        for (weight, tail), at in zip(self._steps(), level.split(1, dim=1), strict=True):
            total = total + weight * (at + (-pnl - at).clamp_min(0.0) / tail)
        return total

    def _steps(self) -> list[tuple[float, float]]:
        return list(zip(self.weights, self.tails, strict=True))


@dataclass(frozen=True)
class MeanVariance(CertaintyEquivalent):
    r"""Minus the mean plus half the risk aversion times the variance, with the loss :math:`y + \frac\lambda2 y^2`.

    The variance is that of the sample (ddof 0). A gain that is large enough raises the risk: it is not monotone.

    Args:
        risk_aversion: :math:`\lambda`, per unit of cash, above 0.

    References:
        Markowitz (1952), "Portfolio Selection".

    Example:
        >>> MeanVariance(risk_aversion=2.0).risk(torch.tensor([[1.0, -1.0]]))
        tensor([1.], dtype=torch.float64)
    """

    kind: ClassVar[str] = "mean_variance"
    dial: ClassVar[str | None] = "risk_aversion"
    axioms: ClassVar[frozenset[str]] = frozenset({"convex", "cash_invariant"})
    risk_aversion: float

    def __post_init__(self) -> None:
        self.check_dial(self.risk_aversion)

    def _rows(self, pnl: Pnl, level: Tensor, dial: Dial) -> Pnl:
        return -pnl + 0.5 * dial * (pnl + level).square()

    def _best_level(self, pnl: Pnl, dial: Dial) -> Tensor:
        return -pnl.mean(1, keepdim=True)


@dataclass(frozen=True)
class Quadratic(CertaintyEquivalent):
    r"""Quadratic hedging: :math:`\min_w E[(X + w)^2]`, the variance of the P&L (ddof 0), in cash squared.

    The best level w is the premium that leaves the least squared error, minus the mean P&L: it is the price, while the
    risk, in another unit, is none.

    References:
        Schweizer (1995), "Variance-Optimal Hedging in Discrete Time".

    Example:
        >>> objective, pnl = Quadratic(), torch.tensor([[-1.0, -3.0]])
        >>> objective.risk(pnl), objective.best_level(pnl)
        (tensor([1.], dtype=torch.float64), tensor([2.], dtype=torch.float64))
    """

    kind: ClassVar[str] = "quadratic"
    axioms: ClassVar[frozenset[str]] = frozenset({"convex"})

    def _best_level(self, pnl: Pnl, dial: Dial) -> Tensor:
        return -pnl.mean(1, keepdim=True)

    def _rows(self, pnl: Pnl, level: Tensor, dial: Tensor) -> Pnl:
        return (pnl + level).square()

    def price(self, pnl: Pnl, without: Pnl | None = None, aversion: Any = None) -> Estimate:
        """The premium that leaves the least squared error, less that of trading without the book."""
        pnl = checked_pnl(pnl)
        shortfall = (0.0 if without is None else checked_pnl(without)) - pnl
        return priced(shortfall.mean(1), shortfall, self.kind)


@dataclass(frozen=True)
class OptimizedCertaintyEquivalent(CertaintyEquivalent):
    r"""The least over w of :math:`w + E[\ell(-X - w)]`, for a loss :math:`\ell` that is chosen by its name.

    - "quadratic": :math:`((1 + \lambda y)^{+2} - 1) / 2\lambda`, mean and variance made monotone;
    - "cubic": :math:`((1 + \lambda y)^{+3} - 1) / 3\lambda`, heavier on large losses;
    - "exponential": :math:`(e^{\lambda y} - 1) / \lambda`, the entropic risk.

    The level is found by bisection: the slope of the loss has a mean of 1 there. `OCE_LOSSES` takes others.

    Args:
        loss_name: one of the names above.
        risk_aversion: :math:`\lambda`, per unit of cash, above 0.

    References:
        Ben-Tal and Teboulle (2007), "An Old-New Concept of Convex Risk Measures: the Optimized Certainty Equivalent".

    Example:
        >>> pnl = torch.tensor([[0.0, -1.0, -2.0, -3.0]])
        >>> OptimizedCertaintyEquivalent("exponential", risk_aversion=1.0).risk(pnl)
        tensor([2.0539], dtype=torch.float64)
    """

    kind: ClassVar[str] = "oce"
    dial: ClassVar[str | None] = "risk_aversion"
    loss_name: str
    risk_aversion: float

    def __post_init__(self) -> None:
        if not isinstance(self.loss_name, str) or self.loss_name not in OCE_LOSSES:
            raise ConfigError(f"`loss_name` must be one of {', '.join(OCE_LOSSES)}, got {self.loss_name!r}")
        self.check_dial(self.risk_aversion)

    def _rows(self, pnl: Pnl, level: Tensor, dial: Dial) -> Pnl:
        return level + OCE_LOSSES[self.loss_name][0](-pnl - level, dial)

    def _best_level(self, pnl: Pnl, dial: Dial) -> Tensor:
        slope = OCE_LOSSES[self.loss_name][1]
        low, high = -pnl.amax(1, keepdim=True), -pnl.amin(1, keepdim=True)
        return bisect(lambda level: slope(-pnl - level, dial).mean(1, keepdim=True) > 1, low, high)


OCE_LOSSES: dict[str, tuple[Any, Any]] = {  # convex losses of (y, aversion), and their slopes in y, which pass 1 at 0
    "quadratic": (
        lambda y, dial: ((1 + dial * y).clamp_min(0.0).square() - 1) / (2 * dial),
        lambda y, dial: (1 + dial * y).clamp_min(0.0),
    ),
    "cubic": (
        lambda y, dial: ((1 + dial * y).clamp_min(0.0) ** 3 - 1) / (3 * dial),
        lambda y, dial: (1 + dial * y).clamp_min(0.0).square(),
    ),
    "exponential": (_exponential, lambda y, dial: (dial * y).clamp_max(FLAT).exp()),
}


@dataclass(frozen=True)
class QuadraticShortfall(CertaintyEquivalent):
    r"""Quadratic shortfall :math:`\min_w\; w + c\,E[((-X - w)^+)^2]`: a shortfall that is smooth in every path.

    Nothing at all has the risk :math:`-1 / 4c`, which a price takes off.

    Args:
        scale: c, per unit of cash, above 0; the larger, the further into the tail.

    References:
        Ben-Tal and Teboulle (2007), section 2, for risks of this form; pfhedge calls it quadratic CVaR.

    Example:
        >>> QuadraticShortfall(scale=2.0).risk(-torch.arange(10.0)[None])
        tensor([7.9750], dtype=torch.float64)
    """

    kind: ClassVar[str] = "quadratic_shortfall"
    dial: ClassVar[str | None] = "scale"
    scale: float

    def __post_init__(self) -> None:
        self.check_dial(self.scale)

    def _rows(self, pnl: Pnl, level: Tensor, dial: Dial) -> Pnl:
        return level + dial * (-pnl - level).clamp_min(0.0).square()

    def _best_level(self, pnl: Pnl, dial: Dial) -> Tensor:
        """Where the mean excess is 1 / 2c: at most the worst loss, at least the mean loss less that."""
        low, high = -pnl.mean(1, keepdim=True) - 0.5 / dial, -pnl.amin(1, keepdim=True)
        return bisect(lambda level: 2 * dial * (-pnl - level).clamp_min(0.0).mean(1, keepdim=True) > 1, low, high)


@dataclass(frozen=True)
class Isoelastic(Objective):
    r"""Minus the certainty equivalent of isoelastic utility: :math:`W - u^{-1}(E[u(W + X)])`.

    With :math:`u(x) = x^{1 - \gamma} / (1 - \gamma)`, and :math:`\log x` at :math:`\gamma = 1`. Sure cash is worth more
    to the poor: the risk is not cash-invariant.

    Args:
        wealth: W, cash that the trader starts with (the premium included); every loss must stay below it.
        risk_aversion: :math:`\gamma`, relative risk aversion, above 0, a plain number.

    References:
        Pratt (1964), "Risk Aversion in the Small and in the Large".

    Example:
        >>> Isoelastic(wealth=3.0, risk_aversion=1.0).risk(torch.tensor([[1.0, -2.0]]))  # 3 - sqrt(4 * 1)
        tensor([1.], dtype=torch.float64)
    """

    kind: ClassVar[str] = "isoelastic"
    when_lost: ClassVar[str] = "a loss may have reached `wealth`, where isoelastic utility is infinite: raise it"
    dial: ClassVar[str | None] = "risk_aversion"
    axioms: ClassVar[frozenset[str]] = frozenset({"monotone", "convex"})
    wealth: float
    risk_aversion: float

    def __post_init__(self) -> None:
        check_positive("wealth", self.wealth)
        self.check_dial(self.risk_aversion)

    def risk(self, pnl: Pnl, aversion: Any = None) -> PerMember:
        self._check_wealth(checked_pnl(pnl))
        return super().risk(pnl, aversion)

    def influence(self, pnl: Pnl, aversion: Any = None) -> Pnl:
        self._check_wealth(checked_pnl(pnl))
        return super().influence(pnl, aversion)

    def price(self, pnl: Pnl, without: Pnl | None = None, aversion: Any = None) -> Estimate:
        """The premium, invested beside the wealth, that gives the certainty equivalent of trading without the book."""
        pnl, dial = checked_pnl(pnl), self.dials(pnl, aversion)
        without = None if without is None else same_paths(without, pnl)
        target = self.wealth - self.risk(torch.zeros_like(pnl) if without is None else without, aversion)[:, None]
        low, high = (target - self.wealth - end for end in (pnl.amax(1, keepdim=True), pnl.amin(1, keepdim=True)))

        def too_low(premium: Tensor) -> Tensor:
            ruined = self.wealth + pnl.amin(1, keepdim=True) + premium <= 0
            return ruined | (self._certain((pnl + premium).where(~ruined, 0.0), dial)[:, None] < target)

        premium = bisect(too_low, low, high)
        certain = self._certain(pnl + premium, dial)[:, None]
        # more premium raises the certain wealth by E[u'(wealth)] / u'(certain)
        slope = ((self.wealth + pnl + premium) / certain).pow(-dial).mean(1, keepdim=True)
        influence = self.influence(pnl + premium, aversion) / slope
        if without is not None:
            influence = influence - self.influence(without, aversion) / slope
        return priced(premium[:, 0], influence, self.kind)

    def value(self, pnl: Pnl, dial: Dial) -> PerMember:
        return self.wealth - self._certain(pnl.double(), dial)

    def _certain(self, pnl: Pnl, dial: Dial) -> PerMember:
        """The sure wealth of the same utility: in logarithms an entropic risk, of aversion gamma - 1."""
        logarithm = (self.wealth + pnl).log()
        power = torch.where(dial == 1, 1.0, dial - 1)
        mean = entropic_risk(power * logarithm, torch.ones_like(pnl), risk_aversion=1.0) / power[:, 0]
        return torch.where(dial[:, 0] == 1, logarithm.mean(1), -mean).exp()

    def _influence(self, pnl: Pnl, dial: Dial) -> Pnl:
        # u(W + x) / u'(certain), up to a constant: relative to the certain wealth its powers cannot overflow early
        certain = self._certain(pnl, dial)[:, None]
        ratio = ((self.wealth + pnl) / certain).log()
        power = 1 - dial
        scaled = torch.where(power == 0, ratio, torch.expm1(power * ratio) / torch.where(power == 0, 1.0, power))
        return -certain * scaled

    def _check_wealth(self, pnl: Pnl) -> None:
        worst = float(pnl.min())
        if self.wealth + worst <= 0:
            raise DataError(
                f"every loss must stay below `wealth`, {self.wealth:g}, where isoelastic utility is infinite, got a "
                f"loss of {-worst:g}: raise `wealth`, or take another objective"
            )


OBJECTIVES: dict[str, type[Objective]] = {
    cls.kind: cls
    for cls in (
        Entropic,
        ExponentialUtility,
        ExpectedShortfall,
        Spectral,
        MeanVariance,
        Quadratic,
        QuadraticShortfall,
        OptimizedCertaintyEquivalent,
        Isoelastic,
    )
}


def _shortfalls(pnl: Pnl, tail: Dial) -> PerMember:
    """Expected shortfalls, each member's of its own tail."""
    used = torch.ones_like(pnl)
    tails = tail[:, 0].tolist()
    if len(set(tails)) == 1:
        return expected_shortfall(pnl, used, tails[0])
    return torch.cat([expected_shortfall(pnl[m : m + 1], used[m : m + 1], tails[m]) for m in range(len(pnl))])


def _value_at_risk(pnl: Pnl, tail: Dial) -> Tensor:
    """The loss at which the tail begins, (M, 1): the ceil(tail B)-th worst."""
    n_paths = pnl.shape[1]
    place = ((tail * n_paths * (1 - 1e-12)).ceil().long() - 1).clamp(0, n_paths - 1)  # a rounded-up rank is not meant
    return -pnl.sort(dim=1).values.gather(1, place)
