"""How labels are made: how many, by which engine, in which shards."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Protocol, runtime_checkable

import torch

import pricers as pr
from pricers.pricing import Engine, default_engine
from qfml.config import OneOf, config_hash, to_dict
from qfml.errors import ConfigError
from qfml.surrogate.box import STRIKE_COORDINATES
from qfml.surrogate.problem import Problem

__all__ = [
    "LABEL_ENGINES",
    "AnalyticLabels",
    "ExactLabels",
    "FiniteDifferenceLabels",
    "FourierLabels",
    "LabelEngine",
    "LabelSettings",
    "MonteCarloLabels",
]

FORMAT = 3  # raised when the same settings give other labels than before
MOST_POINTS = 2**30  # of a Sobol sequence as torch makes it


@runtime_checkable
class LabelEngine(Protocol):
    """A way to label points."""

    kind: ClassVar[str]
    simulated: ClassVar[bool]  # whether labels have noise

    def engine(self) -> Engine | None:
        """The engine of `pricers`; None for the best that draws nothing."""
        ...


@dataclass(frozen=True)
class ExactLabels:
    """The best engine that draws nothing: a closed form, Fourier inversion or finite differences."""

    kind: ClassVar[str] = "exact"
    simulated: ClassVar[bool] = False

    def engine(self) -> Engine | None:
        return None


@dataclass(frozen=True)
class AnalyticLabels:
    """Closed forms."""

    kind: ClassVar[str] = "analytic"
    simulated: ClassVar[bool] = False

    def engine(self) -> Engine | None:
        return pr.Analytic()


@dataclass(frozen=True)
class FourierLabels:
    """COS series.

    Args:
        n_terms: terms of the series; None: as many as the accuracy needs.
    """

    kind: ClassVar[str] = "fourier"
    simulated: ClassVar[bool] = False
    n_terms: int | None = None

    def __post_init__(self) -> None:
        self.engine()

    def engine(self) -> Engine | None:
        return pr.Fourier(n_terms=self.n_terms)


@dataclass(frozen=True)
class FiniteDifferenceLabels:
    """Finite differences on a grid, extrapolated from two.

    Args:
        n_space: intervals in the spot; even.
        n_time: time steps; even.
        n_variance: intervals in the variance, under Heston; even.
    """

    kind: ClassVar[str] = "finite_difference"
    simulated: ClassVar[bool] = False
    n_space: int = 240
    n_time: int = 80
    n_variance: int = 80

    def __post_init__(self) -> None:
        self.engine()

    def engine(self) -> Engine | None:
        return pr.FiniteDifference(self.n_space, self.n_time, self.n_variance)


@dataclass(frozen=True)
class MonteCarloLabels:
    """Simulation, with noise of its own for each row.

    Prices of European, Asian (fixed strike, all fixings to come) and Asian barrier options under Heston or
    Black-Scholes on one asset without cash dividends; implied vols of European options under rough Bergomi, without
    gradients.

    Args:
        n_paths: paths of each label, a power of two, 16 or more.
        n_steps: time steps to the last date; of implied vols an even number.
    """

    kind: ClassVar[str] = "monte_carlo"
    simulated: ClassVar[bool] = True
    n_paths: int
    n_steps: int

    def __post_init__(self) -> None:
        for name, value in (("n_paths", self.n_paths), ("n_steps", self.n_steps)):
            if value < 1:
                raise ConfigError(f"`{name}` must be 1 or more, got {value}")
        if self.n_paths & (self.n_paths - 1):
            raise ConfigError(
                f"`n_paths` must be a power of two, got {self.n_paths}: take {1 << self.n_paths.bit_length()}"
            )

    def engine(self) -> Engine | None:
        return pr.MonteCarlo(self.n_paths, n_steps=self.n_steps, seed=0)  # names the engine; the labels draw their own


LABEL_ENGINES: dict[str, type] = {
    cls.kind: cls for cls in (ExactLabels, AnalyticLabels, FourierLabels, FiniteDifferenceLabels, MonteCarloLabels)
}


@dataclass(frozen=True)
class LabelSettings:
    """How labels are made.

    Args:
        n_points: number of laws: points of the box in everything but the strike (and the expiry, see below).
        seed: of the points and the noise.
        engine: one of `LABEL_ENGINES`.
        strikes_per_law: strikes of each law and expiry, which share its evaluation; None takes 8 where the box has a
            strike coordinate and labels have no noise, else 1.
        expiries_per_law: expiries of each law.
        gradients: whether derivatives of the target in all inputs are made too.
        shard_size: laws of each file.
        device: where they are made, "cpu" or "cuda".
        folder: where the files go; not part of the hash.

    Raises:
        ConfigError: a count below 1, an unknown device.
    """

    n_points: int
    seed: int
    engine: Annotated[LabelEngine, OneOf(LABEL_ENGINES)] = field(default_factory=ExactLabels)
    strikes_per_law: int | None = None
    expiries_per_law: int = 1
    gradients: bool = False
    shard_size: int = 1024
    device: str = "cpu"
    folder: Path = Path("labels")

    def __post_init__(self) -> None:
        for name in ("n_points", "strikes_per_law", "expiries_per_law", "shard_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"`{name}` must be 1 or more, got {value}")
        if self.n_points > MOST_POINTS:
            raise ConfigError(
                f"`n_points` must be {MOST_POINTS} or less, the length of a Sobol sequence, got {self.n_points}"
            )
        if self.device.split(":")[0] not in ("cpu", "cuda"):
            raise ConfigError(f"`device` must be cpu or cuda, got {self.device!r}")
        object.__setattr__(self, "folder", Path(self.folder))

    @property
    def n_shards(self) -> int:
        """Number of files."""
        return -(-self.n_points // self.shard_size)

    def laws(self, shard: int) -> tuple[int, int]:
        """First law of a shard and the one after its last."""
        start = shard * self.shard_size
        return start, min(start + self.shard_size, self.n_points)

    def strikes(self, problem: Problem) -> int:
        """Number of strikes of each law and expiry."""
        if self.strikes_per_law is not None:
            return self.strikes_per_law
        return 8 if problem.strike_coordinate is not None and not self.engine.simulated else 1

    def checked(self, problem: Problem) -> LabelSettings:
        """The settings, if the problem can be labelled so.

        Raises:
            ConfigError: it cannot; the message says why.
        """
        if self.strikes(problem) > 1 and problem.strike_coordinate is None:
            names = ", ".join(("strike", *STRIKE_COORDINATES))
            raise ConfigError(f"`strikes_per_law` = {self.strikes_per_law} needs one of {names} in the box: take 1")
        if self.expiries_per_law > 1 and not any(axis.argument == "expiry" for axis in problem.coordinates):
            raise ConfigError(f"`expiries_per_law` = {self.expiries_per_law} needs `expiry` in the box: take 1")
        by_delta = problem.strike_coordinate is not None and problem.strike_coordinate.argument == "delta"
        if self.engine.simulated and by_delta:
            raise ConfigError("box.delta needs exact vols, and labels are simulated: use standard_moneyness")
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise ConfigError("`device: cuda` needs a GPU, and torch sees none: use cpu")
        engine = self.engine.engine()
        triple = problem.triple(problem.corners())
        if isinstance(self.engine, MonteCarloLabels):
            from qfml.surrogate.simulated_labels import not_simulated  # loaded where labels are simulated

            drawn = self.engine
            reason = not_simulated(problem.target, triple, drawn.n_paths, drawn.n_steps, self.gradients)
            if reason is not None:
                raise ConfigError(f"`engine: {drawn.kind}` does not label this problem: {reason}")
        if engine is None:
            try:
                default_engine(*triple)
            except ValueError as error:
                raise ConfigError(f"`engine: exact` does not label this problem: {error}") from error
        else:
            reason = engine.refusal(*triple)
            if reason is not None:
                raise ConfigError(f"`engine: {self.engine.kind}` does not label this problem: {reason}")
        return self

    def hash(self, problem: Problem, points: str = "") -> str:
        """Hash of all that determines the labels: not of the folder, nor of how many processes make them.

        Args:
            problem: what is labelled.
            points: hash of where, if not at the points of a Sobol sequence.
        """
        settings: dict[str, Any] = to_dict(self) | {"strikes_per_law": self.strikes(problem)}
        settings.pop("folder")
        found = {"format": FORMAT, "problem": to_dict(problem), "labels": settings, "points": points}
        return config_hash(found | {"inputs": list(problem.inputs)})  # a hash of a mapping does not see its order
