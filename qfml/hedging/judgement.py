"""How good hedges are, on fresh paths: price, distribution of the P&L, costs, against textbook hedges, under stress.

`judge` returns `metrics` (plain JSON) and `arrays`. All cash is in today's money, per book, and no premium is in a P&L.
Hedges of one market are judged on the same paths, so that their differences have little noise.

metrics:
    objective, dial         by which the price is, and what `aversion` sets of it (None: nothing)
    paths                   market, measure (None where the drift is as given; else what is told of it), martingale
                            (whether trading is known to earn nothing on average; else what it earns is in the price),
                            n_paths, seed, n_steps, horizon, spot, instruments, features
    cases                   one for each aversion and cost level: aversion, cost_level, policies, baselines, best (place
                            of the policy whose risk on the validation paths was least), mean_price: value, std_error
                            of the mean over the seeds, and spread, the standard deviation between them (None of one)
    left_out                why a textbook hedge is not among the baselines, by its kind
    stress                  name, cases and left_out as above
    surface                 dates in years, instruments, delta: the baseline beside the policy (None: there is none)

each policy and baseline:
    name, seed (None of a baseline), price, risk, cost: value, std_error; mean, std, quantiles ("0.01", "0.05", "0.5",
    "0.95", "0.99"), expected_shortfall: tail, value, low, high; turnover
    effective_paths         of a price and of a difference: how many carry its standard error; see
                            `objective_base.effective_paths`
    against                 of a policy, by baseline: difference of the risks (below 0: the policy is better),
                            std_error, low, high, of paired paths; of the best policy also bootstrap: low, high, of
                            paths that are resampled for both

arrays:
    pnl (H, B), float32, of the first case's policies, then its baselines; surface_spot (D, bins), surface_policy,
    surface_low, surface_high and surface_delta (D, bins, K): mean holding of the best policy by spot, the 10 and 90 %
    quantiles, mean of the delta; map_times (D,), map_spot (bins + 1,), map_policy and map_delta (V, D, bins, K): the
    means by date and spot, for thirds of the vol where a feature tells it, else V is 1.

Intervals are of 95 %. Standard errors are those of the influence of each path on the risk, which is what resampling the
paths tends to when they are many.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import safetensors.numpy
import torch
from torch import Tensor

from pricers.noise import address
from pricers.parameters import whole
from qfml.config import OneOf, build_kind
from qfml.errors import ConfigError, DataError, UserError
from qfml.files import write_whole
from qfml.hedging.asked import check_sample
from qfml.hedging.baselines import Baseline
from qfml.hedging.book import Book
from qfml.hedging.gains import Gains, gains
from qfml.hedging.given_markets import independent
from qfml.hedging.hedger import PATHS_AT_A_TIME, Hedger
from qfml.hedging.markets import GIVEN_MARKETS, MARKETS, DriftRemoved, HedgingMarket, RecordedPaths, as_given
from qfml.hedging.objective_base import effective_paths
from qfml.hedging.objectives import ExpectedShortfall
from qfml.hedging.paths import PathSet
from qfml.hedging.resampling import check_resampling, interval, paired_bootstrap
from qfml.hedging.surface import held_by_spot, held_by_spot_and_date
from qfml.hedging.textbook import Case, named, problem_of, textbook_hedges

__all__ = ["Judgement", "JudgementSettings", "judge", "stressed_markets"]

NORMAL_975 = 1.959963984540054
QUANTILES = (0.01, 0.05, 0.5, 0.95, 0.99)
TAIL = 0.05  # of the expected shortfall that is told beside any objective
PILOT_PATHS = 16
DELTAS = ("model_delta", "black_scholes_delta")  # what a policy's holdings are shown beside, the first that is there

Baselines = Sequence[Baseline] | None


@dataclass(frozen=True)
class JudgementSettings:
    """How hedges are judged: the YAML section `judgement:`.

    Args:
        n_paths: fresh paths; of a record that is named here, None takes all.
        seed: of the paths; whatever it is, no training has seen them.
        n_resamples: of the paired bootstrap of the best policy against each textbook hedge, not under stress; 0: none.
        block_length: paths in succession that its resamples keep together, where those of a record overlap; then
            `n_paths` is null, for the order of the record.
        market: where they come from; None takes the market of the training.
        stress: other markets by name, as the settings that differ from those of the training; dates, instruments and
            features must be the same, and features keep the unit of volatility of the training. A drift that was
            removed for the training is in them.
    """

    n_paths: int | None = 100_000
    seed: int = 1
    n_resamples: int = 200
    block_length: int = 1
    market: Annotated[Any, OneOf(MARKETS)] | None = None
    stress: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.market is not None and not isinstance(self.market, HedgingMarket):
            raise ConfigError(f"`market` must be one of `MARKETS`, such as ModelMarket(...), got {self.market!r}")
        if self.n_paths is None and not (self.market and isinstance(as_given(self.market), RecordedPaths)):
            raise ConfigError("`n_paths` may be null for recorded paths only; give a number of paths")
        try:
            for name, given in (("n_paths", self.n_paths), ("seed", self.seed)):
                if given is not None:
                    whole(name, given)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        if not isinstance(self.stress, Mapping):
            raise ConfigError(f"`stress` must be a mapping of other markets by name, got {self.stress!r}")
        check_resampling(self.n_resamples, self.block_length)
        if self.block_length > 1 and self.n_paths is not None:
            raise ConfigError("`block_length` above 1 is for the order of a record: set `n_paths` to null")
        if self.n_paths is not None and self.n_paths < 100:
            raise ConfigError(f"`n_paths` must be 100 or more: 1 % of them is a quantile, got {self.n_paths}")

    def fresh(self, market: HedgingMarket) -> HedgingMarket:
        """The market of the fresh paths, with features in the unit of volatility of the training.

        Raises:
            ConfigError: recorded paths that were trained on.
        """
        if self.market is None and isinstance(as_given(market), RecordedPaths):
            raise ConfigError(
                "recorded paths that were trained on are not fresh: name others in `judgement.market`, such as other "
                "`rows` of the same file"
            )
        if self.market is None:
            return independent(market)
        given: Any = independent(as_given(self.market))
        # its features have the unit of the policies, unless it says so
        if given.reference_vol is None:
            given = replace(given, reference_vol=market.vol)
        trained = as_given(market)
        check_unseen(trained, given)
        if isinstance(trained, RecordedPaths) and getattr(given, "reference_spot", 0.0) is None:
            given = replace(given, reference_spot=trained.typical_spot)
        return replace(self.market, market=given) if isinstance(self.market, DriftRemoved) else given


@dataclass(frozen=True, eq=False)
class Judgement:
    """What was found; see the module for the keys.

    Attributes:
        metrics: plain JSON.
        arrays: numpy arrays by name.
    """

    metrics: dict[str, Any]
    arrays: dict[str, np.ndarray]

    def save(self, folder: str | Path) -> None:
        """Write `judgement.json` and `judgement.safetensors`, each whole or not at all, into `folder`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {name: np.ascontiguousarray(array) for name, array in self.arrays.items()}
        write_whole(safetensors.numpy.save(arrays), folder / "judgement.safetensors")
        write_whole(json.dumps(self.metrics, indent=1).encode(), folder / "judgement.json")


def stressed_markets(
    market: HedgingMarket, stress: Mapping[str, Any], book: Book, n_paths: int | None
) -> dict[str, HedgingMarket]:
    """The markets of `stress`: settings that are not named are those of the training.

    Args:
        market: of the training.
        stress: settings by name.
        book: what is owed.
        n_paths: that are asked of each; None: all of a record.

    Raises:
        ConfigError: settings that break a rule; other dates, instruments or features than those of the training.
    """
    market = independent(as_given(market))  # a stress has the drift that training is without
    own = {each.name: getattr(market, each.name) for each in fields(market)}  # pyright: ignore[reportArgumentType]
    found: dict[str, HedgingMarket] = {}
    for name, changes in stress.items():
        if not isinstance(changes, Mapping) or not changes:
            raise ConfigError(f"`stress.{name}` must be a mapping of settings of the market that differ, got {changes}")
        same = changes.get("kind", market.kind) == market.kind
        settings = {"kind": market.kind, **(own if same else {}), **changes}
        if "reference_vol" not in changes:
            settings["reference_vol"] = market.vol  # a policy sees its features in the unit it has learned
        try:
            found[name] = build_kind(GIVEN_MARKETS, settings)
            check_unseen(market, found[name])
            check_same(market, found[name], book)
            check_enough(found[name], n_paths)
        except UserError as error:
            raise ConfigError(f"`stress.{name}`: {error}") from None
    return found


def check_unseen(trained: HedgingMarket, given: Any) -> None:
    """Raise ConfigError if both are recorded and share a path."""
    if isinstance(trained, RecordedPaths) and trained.shares_paths(given):
        raise ConfigError(
            f"`market` has paths of {given.path or 'an array'} that were trained on: name other `rows`, of the "
            f"training they are {trained.rows or 'all'}, here {given.rows or 'all'}"
        )


def check_same(market: HedgingMarket, other: HedgingMarket, book: Book) -> None:
    """Raise ConfigError unless the other market has the dates, instruments and features of the first."""
    one, two = (as_given(each).paths(PILOT_PATHS, book, 0) for each in (market, other))
    same_dates = len(one.times) == len(two.times) and bool((one.times - two.times).abs().max() < 1e-9)
    for what, is_same, first, second in (
        ("trading dates", same_dates, f"{one.n_steps} periods", f"{two.n_steps} periods"),
        ("instruments", one.instrument_names == two.instrument_names, one.instrument_names, two.instrument_names),
        ("features", one.feature_names == two.feature_names, one.feature_names, two.feature_names),
    ):
        if not is_same:
            raise ConfigError(f"{what} must be those of the training, {first}, got {second}")


def judge(hedger: Hedger, settings: JudgementSettings | None = None, baselines: Baselines = None) -> Judgement:
    """Judge policies beside textbook hedges, all on the same fresh paths.

    Args:
        hedger: trained policies.
        settings: how many paths, and of which markets.
        baselines: textbook hedges; None takes all that have a formula for the book.

    Raises:
        ConfigError: a market that does not go with the policies, a baseline without a formula for the book.
        DataError: P&L that is not finite.

    Example:
        >>> import pricers as pr, qfml
        >>> from qfml.hedging import Entropic, ModelMarket, deep_hedge
        >>> market = ModelMarket(pr.BlackScholes(0.2), pr.Market(1.0), n_steps=4, horizon=4 / 365)
        >>> trainer = qfml.Trainer(optimizer=qfml.AdamW(lr=3e-3), max_epochs=1, batch_size=256, seed=1)
        >>> book = Book(((1.0, pr.European(1.0, 4 / 365)),))
        >>> hedger = deep_hedge(market, book, Entropic(10.0), trainer=trainer, n_validation=256, steps_per_epoch=9)
        >>> case = judge(hedger, JudgementSettings(n_paths=1000)).metrics["cases"][0]
        >>> [hedge["name"] for hedge in case["baselines"]]
        ['none', 'black_scholes_delta']
    """
    settings = JudgementSettings() if settings is None else settings
    _check_asked(hedger, settings)
    market = settings.fresh(hedger.market)
    if market is not hedger.market:
        check_same(hedger.market, market, hedger.book)
    check_enough(market, settings.n_paths)
    stressed = stressed_markets(hedger.market, settings.stress, hedger.book, settings.n_paths)
    cases, left_out = _hedges(hedger, baselines)
    paths = _fresh(market, hedger.book, settings)
    check_sample("n_paths", len(paths), hedger.loss.objective, [case.aversion for case in cases])
    needed = baselines is not None
    all_gains = [_gains(hedger, paths, case, hedges, left_out, needed) for case, hedges in cases.items()]
    first = next(iter(cases))
    surface, arrays = _surface(hedger, paths, first, {name: cases[first][name] for name in list(all_gains[0])[1:]})
    metrics = {
        "objective": hedger.loss.objective.kind,
        "dial": hedger.loss.objective.dial,
        "paths": {
            "market": as_given(market).kind,
            "measure": market.measure(hedger.book).told if isinstance(market, DriftRemoved) else None,
            "martingale": market.martingale,
            "n_paths": len(paths),
            "seed": settings.seed,
            "n_steps": paths.n_steps,
            "horizon": float(paths.times[-1]),
            "spot": float(paths.prices[:, 0, 0].double().mean()),
            "instruments": list(paths.instrument_names),
            "features": list(paths.feature_names),
        },
        "cases": [_judged(hedger, case, made, settings) for case, made in zip(cases, all_gains, strict=True)],
        "left_out": left_out,
        "stress": [
            {"name": name, **_under(hedger, other, settings, cases, needed)} for name, other in stressed.items()
        ],
        "surface": surface,
    }
    pnl = torch.cat([each.pnl for each in all_gains[0].values()])
    return Judgement(metrics, arrays | {"pnl": pnl.float().numpy()})


def _check_asked(hedger: Any, settings: Any) -> None:
    if not isinstance(hedger, Hedger):
        raise ConfigError(f"`hedger` must be a Hedger, such as deep_hedge(...) returns, got {hedger!r}")
    if not isinstance(settings, JudgementSettings):
        raise ConfigError(f"`settings` must be JudgementSettings, such as JudgementSettings(seed=2), got {settings!r}")


def _hedges(hedger: Hedger, baselines: Baselines) -> tuple[dict[Case, dict[str, Baseline]], dict[str, str]]:
    """The baselines of each case, and why others are left out."""
    cases = dict.fromkeys(_case(hedger, place) for place in range(len(hedger.members)))
    if baselines is not None:
        check_baselines(baselines)
        return dict.fromkeys(cases, named(baselines)), {}
    few = hedger.market.paths(PILOT_PATHS, hedger.book, 0)
    found: dict[Case, dict[str, Baseline]] = {}
    left_out: dict[str, str] = {}
    for case in cases:
        loss = hedger.loss
        found[case], reasons = textbook_hedges(hedger.market, hedger.book, loss.objective, loss.costs, case, few)
        left_out |= reasons
    return found, left_out


def check_baselines(baselines: Any) -> None:
    """Raise ConfigError unless all are textbook hedges."""
    given = [baselines] if isinstance(baselines, str) or not isinstance(baselines, Sequence) else baselines
    for hedge in given:
        if not isinstance(hedge, Baseline):
            raise ConfigError(f"`baselines` must be textbook hedges, such as [BlackScholesDelta(0.2)], got {hedge!r}")


def _case(hedger: Hedger, place: int) -> Case:
    member = hedger.members[place]
    return Case(None if hedger.loss.objective.dial is None else member.aversion, member.cost_level)


def _places(hedger: Hedger, case: Case) -> list[int]:
    """The policies of a case; those that were lost in training hedge nothing, and are judged by nothing."""
    lost = hedger.lost
    return [place for place in range(len(hedger.members)) if _case(hedger, place) == case and not lost[place]]


def _best(hedger: Hedger, places: Sequence[int]) -> int:
    """The policy whose risk on the validation paths was least; fresh paths have no say in it."""
    losses = [hedger.fits[place].best_val_loss for place in places]
    ranked = sorted(zip((math.inf if loss is None else loss for loss in losses), places, strict=True))
    return ranked[0][1]


def check_enough(market: HedgingMarket, n_paths: int | None) -> None:
    """Raise ConfigError unless the market has so many paths; None are all that a record has, and no number of others.

    Args:
        market: of fresh paths.
        n_paths: asked for.
    """
    record = as_given(market)
    if not isinstance(record, RecordedPaths):
        if n_paths is None:
            raise ConfigError(f"`n_paths` may be null for recorded paths only, the market is of kind {record.kind!r}")
        return
    recorded = len(record.recorded[1])
    if n_paths is not None and n_paths > recorded:
        raise ConfigError(
            f"`n_paths` must be {recorded} or less, as many as are recorded, or null for all, got {n_paths}"
        )


def _fresh(market: HedgingMarket, book: Book, settings: JudgementSettings) -> PathSet:
    return market.paths(settings.n_paths, book, address(settings.seed, "judgement"))


def _gains(
    hedger: Hedger,
    paths: PathSet,
    case: Case,
    hedges: Mapping[str, Baseline],
    left_out: dict[str, str],
    needed: bool,
) -> dict[str, Gains]:
    """P&L of the policies of a case (M, B), and of each baseline (1, B), in blocks that lie in memory.

    A baseline that lacks something on these paths, of another market than that of the training, or whose P&L has no
    risk, is `left_out` and told there, unless it is `needed`.
    """
    problem = problem_of(hedger.market, hedger.book)
    policies = _places(hedger, case)
    found: dict[str, list[Gains]] = {name: [] for name in ("policies", *hedges)}
    for start in range(0, len(paths), PATHS_AT_A_TIME):
        part = paths.rows(slice(start, start + PATHS_AT_A_TIME))
        holdings = {"policies": hedger.holdings(part)[policies]}
        for name in list(found)[1:]:
            try:
                holdings[name] = hedger.rules.of(hedges[name].holdings(part, problem))[None]
            except UserError as error:
                if needed:
                    raise
                left_out[name] = str(error)
                del found[name]
        for name, held in holdings.items():
            found[name].append(gains(held, part, hedger.loss.costs, case.cost_level, hedger.loss.unwind))
    joined = {name: _joined(parts) for name, parts in found.items()}
    for name in list(joined)[1:]:
        try:
            hedger.loss.objective.risk(joined[name].pnl, _dials(case, joined[name].pnl))
        except DataError as error:  # a loss beyond the wealth
            if needed:
                raise
            left_out[name] = str(error)
            del joined[name]
    return joined


def _joined(parts: Sequence[Gains]) -> Gains:
    names = [each.name for each in fields(Gains)]
    return Gains(*(torch.cat([getattr(part, name) for part in parts], 1) for name in names))


def _judged(hedger: Hedger, case: Case, made: Mapping[str, Gains], settings: JudgementSettings) -> dict[str, Any]:
    """All hedges of a case."""
    objective = hedger.loss.objective
    places = _places(hedger, case)
    described = {name: _described(hedger, case, own) for name, own in made.items()}
    influence = {name: objective.influence(own.pnl, _dials(case, own.pnl)) for name, own in made.items()}
    for row, hedge in enumerate(described["policies"]):
        hedge |= {"name": "policy", "seed": hedger.members[places[row]].seed}
        hedge["against"] = {
            name: _difference(hedge, described[name][0], influence["policies"][row] - influence[name][0])
            for name in list(made)[1:]
        }
    best = places.index(_best(hedger, places))
    against = described["policies"][best]["against"]
    if settings.n_resamples and against:
        pnl = torch.cat([made["policies"].pnl[best : best + 1], *(made[name].pnl for name in against)])
        options = {"n_resamples": settings.n_resamples, "seed": settings.seed, "block_length": settings.block_length}
        resampled = paired_bootstrap(objective, pnl, case.aversion, **options)
        for column, own in enumerate(against.values(), start=1):
            own["bootstrap"] = interval(resampled[:, column])
    baselines = [described[name][0] | {"name": name, "seed": None} for name in list(made)[1:]]
    prices = torch.tensor([hedge["price"]["value"] for hedge in described["policies"]], dtype=torch.float64)
    return {
        "aversion": case.aversion,
        "cost_level": case.cost_level,
        "policies": described["policies"],
        "baselines": baselines,
        "best": best,
        "mean_price": {
            "value": float(prices.mean()),
            "std_error": _std_error(influence["policies"].mean(0)),
            "effective_paths": float(effective_paths(influence["policies"].mean(0, keepdim=True))),
            "spread": float(prices.std()) if len(prices) > 1 else None,
        },
    }


def _described(hedger: Hedger, case: Case, made: Gains) -> list[dict[str, Any]]:
    """Price and distribution of each member's P&L."""
    objective, dials, pnl = hedger.loss.objective, _dials(case, made.pnl), made.pnl.double()
    price = objective.price(pnl, aversion=dials)
    risk, risk_error = objective.risk(pnl, dials), objective.std_error(pnl, dials)
    effective = effective_paths(objective.influence(pnl, dials))
    shortfall = ExpectedShortfall(TAIL)
    tail, tail_error = shortfall.risk(pnl), shortfall.std_error(pnl)
    quantiles = [np.quantile(row.numpy(), QUANTILES) for row in pnl]
    return [
        {
            "price": {
                "value": float(price.value[row]),
                "std_error": float(price.std_error[row]),
                "effective_paths": float(effective[row]),
            },
            "risk": {"value": float(risk[row]), "std_error": float(risk_error[row])},
            "mean": float(pnl[row].mean()),
            "std": float(pnl[row].std()),
            "quantiles": {str(level): float(value) for level, value in zip(QUANTILES, quantiles[row], strict=True)},
            "expected_shortfall": {"tail": TAIL, "value": float(tail[row]), **_interval(tail[row], tail_error[row])},
            "cost": {"value": float(made.cost[row].double().mean()), "std_error": _std_error(made.cost[row].double())},
            "turnover": float(made.turnover[row].double().mean()),
        }
        for row in range(len(pnl))
    ]


def _difference(one: Mapping[str, Any], other: Mapping[str, Any], influence: Tensor) -> dict[str, float]:
    """Risk of one hedge less that of another, on the same paths."""
    value, error = one["risk"]["value"] - other["risk"]["value"], _std_error(influence)
    effective = float(effective_paths(influence[None]))
    return {"difference": value, "std_error": error, "effective_paths": effective, **_interval(value, error)}


def _dials(case: Case, pnl: Tensor) -> Tensor | None:
    return None if case.aversion is None else torch.full((len(pnl),), case.aversion, dtype=torch.float64)


def _std_error(influence: Tensor) -> float:
    return float(influence.std() / len(influence) ** 0.5)


def _interval(value: Any, error: Any) -> dict[str, float]:
    return {"low": float(value - NORMAL_975 * error), "high": float(value + NORMAL_975 * error)}


def _under(
    hedger: Hedger,
    market: HedgingMarket,
    settings: JudgementSettings,
    cases: Mapping[Case, Mapping[str, Baseline]],
    needed: bool,
) -> dict[str, Any]:
    """The same hedges on another market; textbook hedges still believe in that of the training."""
    paths = _fresh(market, hedger.book, settings)
    once = replace(settings, n_resamples=0)  # the bootstrap is for the market of the judgement
    left_out: dict[str, str] = {}
    made = [
        _judged(hedger, case, _gains(hedger, paths, case, hedges, left_out, needed), once)
        for case, hedges in cases.items()
    ]
    return {"cases": made, "left_out": left_out}


def _surface(
    hedger: Hedger, paths: PathSet, case: Case, hedges: Mapping[str, Baseline]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What the best policy of the first case holds at some dates, by spot, beside a delta."""
    name = next((name for name in DELTAS if name in hedges), None)
    few = paths.rows(slice(0, 4 * PATHS_AT_A_TIME))
    held = hedger.holdings(few)[_best(hedger, _places(hedger, case))]
    delta = (
        None if name is None else hedger.rules.of(hedges[name].holdings(few, problem_of(hedger.market, hedger.book)))
    )
    dates, arrays = held_by_spot(few, held, delta)
    maps = held_by_spot_and_date(few, held, delta)
    told = {"dates": few.times[dates].tolist(), "instruments": list(few.instrument_names), "delta": name}
    return told, arrays | maps
