r"""A market whose drift is taken away: the same paths under the measure in which trading alone earns nothing.

A policy that is trained where prices have a drift earns it and calls that hedging. Let G be the gains, after costs, of
the best pure trading by the entropic criterion,

    max over policies of  -log E[exp(-G)],

a policy of the same information that owes nothing. Its first-order conditions are those of a change of measure,

    dQ/dP = exp(-G) / E[exp(-G)]:

under Q no policy of that information earns anything on average; with proportional costs, none earns more than it pays.
Without costs Q is the martingale measure that is nearest to P in relative entropy, and the maximum is that entropy.
No risk aversion comes into it, as it would only change the unit of G, with proportional costs too.

The paths of Q are those of P, of which each is kept with the chance min(dQ/dP / c, 1). What is left are independent
paths of one weight, so that training, objectives, textbook hedges and judgement need not know of any measure. It costs
c times as many paths. The bound c is the least for which the density above it, E[(dQ/dP - c)+], is no more than `cut`:
no event has a probability that is further off than that.

References:
    Buehler, Murray, Pakkanen and Wood (2022), "Deep Hedging: Learning to Remove the Drift under Trading Frictions with
    Minimal Equivalent Near-Martingale Measures".
    Frittelli (2000), "The Minimal Entropy Martingale Measure and the Valuation Problem in Incomplete Markets".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch

from pricers.noise import address
from pricers.parameters import number as one_number
from pricers.parameters import whole
from qfml import config
from qfml.config import OneOf, Section
from qfml.engine import Callback, Trainer
from qfml.errors import ConfigError, DataError
from qfml.hedging.book import Book
from qfml.hedging.costs import COSTS, Proportional
from qfml.hedging.deep_hedging import deep_hedge
from qfml.hedging.given_markets import GIVEN_MARKETS, HedgingMarket, RecordedPaths, identity, parted
from qfml.hedging.measure import FEWEST_EFFECTIVE, Measure, bounded, nothing_owed, read_measure, write_measure
from qfml.hedging.objectives import Entropic
from qfml.hedging.paths import PathSet
from qfml.hedging.policies import POLICIES, FeedForward
from qfml.hedging.sight import Sight, sight_of

__all__ = ["DriftRemoved"]

PILOT_PATHS = 4096  # that tell how far each instrument moves
DRAWS = 256  # of candidates for one set of paths, at most
FEWEST_CANDIDATES = 256


@dataclass(frozen=True)
class DriftRemoved:
    r"""Another market under the measure in which trading alone earns nothing; see the module for what that is.

    The measure is learned when its first paths are asked for, of each book anew, since a policy sees other things with
    another book; it depends on the settings alone.

    Args:
        market: where prices have a drift: a model with one, recorded paths, bootstrapped returns.
        trainer: of the policy of pure trading; `batch_size` is the number of paths of a step, a multiple of 16.
        costs: proportional ones that pure trading pays. None make Q a martingale measure; with costs it is nearer to
            the given one, and prices keep as much drift as costs hide.
        unwind: whether pure trading sells its last holding at a cost.
        policy: of pure trading: one of `POLICIES`; None takes a small network, which sees its holdings where they
            matter, that is with costs.
        steps_per_epoch: of that training.
        n_validation: paths on which its best epoch is chosen; of recorded paths the last ones.
        n_measured: paths by which mean and bound of the density are found; of recorded paths all, if they are fewer.
        cut: largest probability by which the measure may be wrong for the bound on its density.

    Raises:
        ConfigError: settings that break a rule.

    Example:
        >>> import pricers as pr, qfml
        >>> from qfml.hedging import ModelMarket
        >>> given = ModelMarket(pr.BlackScholes(0.2), pr.Market(1.0), n_steps=2, horizon=0.5, drift=0.2)
        >>> trainer = qfml.Trainer(optimizer=qfml.AdamW(lr=1e-2), max_epochs=1, batch_size=1024)
        >>> market = DriftRemoved(given, trainer, n_measured=2**14)
        >>> book = Book(((1.0, pr.European(1.0, 0.5)),))
        >>> [round(float(each.paths(2**14, book, seed=1).prices[:, -1].mean()), 2) for each in (given, market)]
        [1.11, 1.0]
    """

    market: Annotated[Any, OneOf(GIVEN_MARKETS)]
    trainer: Annotated[Trainer, Section(Trainer)]
    costs: tuple[Annotated[Any, OneOf(COSTS)], ...] = ()
    unwind: bool = False
    policy: Annotated[Any, OneOf(POLICIES)] | None = None
    steps_per_epoch: int = 100
    n_validation: int = 2**14
    n_measured: int = 2**16
    cut: float = 1e-4
    kind: ClassVar[str] = "drift_removed"

    def __post_init__(self) -> None:
        try:
            whole("n_measured", self.n_measured, at_least=FEWEST_EFFECTIVE[0])
            whole("n_validation", self.n_validation, at_least=2)
            whole("steps_per_epoch", self.steps_per_epoch, at_least=1)
            one_number("cut", self.cut)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        if not 0.0 <= self.cut < 0.1:
            raise ConfigError(f"`cut` is a probability that is given up, at least 0 and below 0.1, got {self.cut}")
        size = self.trainer.batch_size
        if size is None or size % 16:
            raise ConfigError(f"`trainer.batch_size` is the number of paths of a step, a multiple of 16, got {size}")
        if getattr(self.market, "noise", "pseudo") != "pseudo":
            raise ConfigError(
                f"`noise` of a market whose drift is removed must be 'pseudo', got {self.market.noise!r}: none can be "
                "left out of paths that depend on one another"
            )
        for cost in self.costs:
            if not isinstance(cost, Proportional):
                raise ConfigError(
                    f"`costs` of a measure must be proportional, got `{cost.kind}`, with which it would depend on a "
                    "risk aversion; leave it out: what earns nothing without costs earns nothing with them"
                )

    @property
    def information(self) -> tuple[str, ...]:
        """What a policy sees, by name."""
        return self.market.information

    @property
    def vol(self) -> float:
        """The unit of volatility of its features, per year."""
        return self.market.vol

    @property
    def martingale(self) -> bool:
        """Nearly, and not to the last bit: the measure is learned."""
        return False

    def sight(self, book: Book) -> Sight:
        """How the features follow from what is observed: no measure changes that."""
        return sight_of(self.market, book)

    def paths(
        self,
        n_paths: Any,
        book: Book,
        seed: Any,
        number: Any = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> PathSet:
        """The set `number` of paths of `seed` under the measure, which is learned if it is not yet known.

        Args:
            n_paths: how many; None, of recorded paths: all that are kept.
            book: what is owed.
            seed: any integer.
            number: which of the independent sets of paths of this seed.
            dtype: of prices and liability; features are float32.
            device: where they are made.

        Raises:
            DataError: a drift that is too large to be removed; as of the market itself.
        """
        return self._kept(self.market, n_paths, book, seed, number, dtype, device)

    def parted(self, n_last: int, n_step: int = 1) -> tuple[HedgingMarket, HedgingMarket]:
        """Where to train and where to validate under the one measure."""
        first, last = parted(self.market, n_last, n_step)
        return _Kept(first, owner=self), _Kept(last, owner=self)

    def _kept(
        self,
        market: HedgingMarket,
        n_paths: Any,
        book: Book,
        seed: Any,
        number: Any,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> PathSet:
        """Paths of `market`, this one's or a part of it, that the measure keeps."""
        measure = self.measure(book)
        if n_paths is None:
            return measure.thinned(market.paths(None, book, seed, 0, dtype, device), seed, 0)
        try:
            n_paths, number = whole("n_paths", n_paths, at_least=1), whole("number", number, at_least=0)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        candidates = _at_most(market, max(n_paths, FEWEST_CANDIDATES))
        parts: list[PathSet] = []
        for draw in range(DRAWS):
            place = number * DRAWS + draw
            made = market.paths(candidates, book, seed, place, dtype, device)
            parts.append(measure.thinned(made, seed, place))
            if sum(map(len, parts)) >= n_paths:
                return _joined(parts).rows(slice(0, n_paths))
        raise DataError(f"{DRAWS} draws of {candidates} paths have not left {n_paths}; ask for fewer, or record more")

    def measure(self, book: Book, folder: Path | None = None, callbacks: Sequence[Callback] = ()) -> Measure:
        """The measure for a book; it is learned once, and kept.

        Args:
            book: what the policy of pure trading sees the state of; it owes nothing.
            folder: where it is kept, and the checkpoints of its training; None: in memory alone.
            callbacks: told of the training.

        Raises:
            DataError: a drift that is too large to be removed, a training that has failed.
        """
        known: list[tuple[Book, Measure]] = self.__dict__.setdefault("_measures", [])
        for other, measure in known:
            if other == book:
                return measure
        place = None if folder is None else folder / config.config_hash([identity(self), book])
        saved = None if place is None else place / "measure"
        if saved is not None and saved.exists():
            measure = read_measure(saved)
        else:
            measure = self._learned(book, place, callbacks)
            if saved is not None:
                write_measure(measure, saved)
        self.keep(book, measure)
        return measure

    def keep(self, book: Book, measure: Measure) -> None:
        """Know the measure for a book, such as one that was saved."""
        self.__dict__.setdefault("_measures", []).append((book, measure))

    def __getstate__(self) -> dict[str, Any]:
        """The settings alone: the measure is learned again elsewhere."""
        return {part.name: getattr(self, part.name) for part in fields(self)}

    def _learned(self, book: Book, folder: Path | None, callbacks: Sequence[Callback]) -> Measure:
        seed = address("drift", self.trainer.seed)  # paths that no hedge is trained on or judged by
        pilot = self.market.paths(_at_most(self.market, PILOT_PATHS), book, address(seed, "pilot"))
        moved = (pilot.prices[:, -1] - pilot.prices[:, 0]).double().std(0)
        sizes = tuple(float(size) if float(size) > 0 else 1.0 for size in moved)
        policy = self.policy or FeedForward(hidden=(16, 16), sees_holdings=bool(self.costs))
        checkpoints = None if folder is None else folder / "checkpoints"
        hedger = deep_hedge(
            _NothingOwed(self.market, sizes),
            book,
            Entropic(1.0),
            costs=self.costs,
            unwind=self.unwind,
            policy=policy,
            trainer=replace(self.trainer, seed=seed),
            steps_per_epoch=self.steps_per_epoch,
            n_validation=self.n_validation,
            callbacks=callbacks,
            checkpoint_dir=checkpoints,
            resume=checkpoints is not None and any(checkpoints.glob("checkpoint-*")),
        )
        fit = hedger.fits[0]
        if fit.status == "nan":
            raise DataError(f"the measure could not be learned: {fit.failure}; lower the learning rate of its trainer")
        parameters = {name: value.detach().cpu() for name, value in fit.named_parameters().items()}
        raw = Measure(hedger.policy, parameters, sizes, self.costs, self.unwind)
        n_measured = _at_most(self.market, self.n_measured)
        return bounded(raw, self.market.paths(n_measured, book, address(seed, "measured")), self.cut)


@dataclass(frozen=True)
class _Within:
    """A market that is made of another."""

    kind: ClassVar[str]
    market: Any

    @property
    def information(self) -> tuple[str, ...]:
        return self.market.information

    @property
    def vol(self) -> float:
        return self.market.vol

    @property
    def martingale(self) -> bool:
        return False


@dataclass(frozen=True)
class _Kept(_Within):
    """A part of the market of `owner`, under its measure."""

    kind: ClassVar[str] = "kept"
    owner: DriftRemoved = field(kw_only=True)

    def paths(
        self,
        n_paths: Any,
        book: Book,
        seed: Any,
        number: Any = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> PathSet:
        return self.owner._kept(self.market, n_paths, book, seed, number, dtype, device)


@dataclass(frozen=True)
class _NothingOwed(_Within):
    """A market in units of its instruments' moves, on which nothing is owed."""

    kind: ClassVar[str] = "nothing_owed"
    sizes: tuple[float, ...]

    def parted(self, n_last: int, n_step: int = 1) -> tuple[HedgingMarket, HedgingMarket]:
        first, last = parted(self.market, n_last, n_step)
        return replace(self, market=first), replace(self, market=last)

    def paths(
        self,
        n_paths: Any,
        book: Book,
        seed: Any,
        number: Any = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> PathSet:
        return nothing_owed(self.market.paths(n_paths, book, seed, number, dtype, device), self.sizes)


def _joined(parts: Sequence[PathSet]) -> PathSet:
    joined = {name: torch.cat([getattr(part, name) for part in parts]) for name in ("prices", "liability", "features")}
    known = {name: torch.cat([part.known[name] for part in parts]) for name in parts[0].known}
    return replace(parts[0], **joined, known=known)


def _at_most(market: HedgingMarket, n_paths: int) -> int:
    """As many paths, or all of a record."""
    return min(n_paths, len(market.recorded[1])) if isinstance(market, RecordedPaths) else n_paths
