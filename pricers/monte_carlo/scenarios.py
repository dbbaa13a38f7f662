"""Paths for their own sake, to trade on or to train with: prices on dates, and what of the state can be told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pricers.instruments.european import European
from pricers.market import Market
from pricers.models.base import AnyScheme, DirectScheme, Model
from pricers.models.bates import Bates, Merton
from pricers.models.black_scholes import BlackScholes
from pricers.models.heston import Heston
from pricers.models.local_vol import LocalVol
from pricers.models.rough_bergomi import RoughBergomi
from pricers.models.rough_heston import RoughHeston
from pricers.models.sabr import SABR, LognormalGivenVol
from pricers.monte_carlo.simulate import Plan, Recorded, assemble, asset_normals, prepared, record
from pricers.noise import NOISES, Noise, Normals, Stored, address, block_size, uniforms
from pricers.parallel import side_by_side
from pricers.parameters import choice, common_dtype, converted, dates, device_of, flag, tensors, whole
from pricers.paths import SAME_DATE, Paths, time_grid

__all__ = ["Scenarios", "Simulation", "simulate"]

DEFAULT_STEPS = 100
MOST_PATHS, MOST_STEPS = 2**30, 2**24  # Sobol points have 30 bits
State = tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Scenarios:
    """Simulated paths, and the state behind them.

    Args:
        times: recorded times in years, ascending, the first is 0; shape `(n,)`, float64.
        spot: prices, not discounted; shape `paths n`, and a last axis of assets where there are several.
        state: what is known besides, by name, as far as model and scheme tell it:
            "variance", the instantaneous variance of the log price per year, without jumps, shape `paths n`;
            "vol", the volatility of SABR per root of a year in units of the shifted forward today, shape `paths n`;
            "integrated_variance" and "jumps_squared", the variance of the log price and the sum of its squared jumps
            over each interval, shape `paths n-1` (and assets), where every step was asked for.
        bridge_uniforms: uniforms for the extremes between the recorded times, shape `paths n-1`, where asked for.
        n_asset_axes: 1 where there are several assets.
    """

    times: Tensor
    spot: Tensor
    state: dict[str, Tensor]
    bridge_uniforms: Tensor | None = None
    n_asset_axes: int = 0

    @property
    def paths(self) -> Paths:
        """What the payoff of an instrument looks at."""
        variance, jumps = self.state.get("integrated_variance"), self.state.get("jumps_squared")
        return Paths(self.times, self.spot, variance, jumps, self.bridge_uniforms, self.n_asset_axes)

    def on(self, dates: Tensor) -> Scenarios:
        """The same paths on some of their times only; what is of intervals is added up. Uniforms are left out.

        Args:
            dates: recorded times from 0, ascending; shape `(m,)`.

        Raises:
            ValueError: a date was not recorded.
        """
        index = torch.searchsorted(self.times, dates.to(self.times) - SAME_DATE).clamp(max=len(self.times) - 1)
        missing = (self.times[index] - dates.to(self.times)).abs() > 2 * SAME_DATE
        if bool(missing.any()):
            raise ValueError(f"`dates` must be among the recorded times, {dates[missing][0].item():g} is not")
        if len(index) == len(self.times):
            return replace(self, bridge_uniforms=None)
        state: dict[str, Tensor] = {}
        for name, value in self.state.items():
            if name in ("integrated_variance", "jumps_squared"):
                total = torch.cat([torch.zeros_like(value[:, :1]), value.cumsum(1)], dim=1)
                state[name] = total[:, index].diff(dim=1)
            else:
                state[name] = value[:, index]
        return Scenarios(self.times[index], self.spot[:, index], state, None, self.n_asset_axes)


def simulate(
    model: Any,
    market: Any,
    dates: Any,
    n_paths: Any,
    *,
    seed: Any,
    number: Any = 0,
    n_steps: Any = None,
    noise: Any = "pseudo",
    scheme: Any = None,
    every_step: Any = False,
    bridge_uniforms: Any = False,
    dtype: torch.dtype | None = None,
    device: Any = None,
) -> Scenarios:
    """Paths of a model on given dates.

    A path depends on `seed`, `number` and its own place only: not on how many there are, nor on threads or chunks. (The
    scrambled Sobol points of a `number` are good as a set of a power of two.) Where a parameter requires a gradient,
    the paths have one.

    Args:
        model: one of `MODELS`, of one parameter set.
        market: one market, without cash dividends.
        dates: years, ascending; 0 is recorded whether it is given or not.
        n_paths: number of paths; even for antithetic noise.
        seed: any integer.
        number: which of the independent sets of paths of this seed, 0 or more.
        n_steps: number of largest time steps to the last date; None takes the dates alone under models that are
            simulated exactly, else 100.
        noise: "pseudo", "antithetic" (mirrored pairs) or "sobol" (scrambled, Brownian bridge).
        scheme: name of the discretisation, one of the model's `schemes`; None takes the first.
        every_step: every step is recorded, with its integrated variance.
        bridge_uniforms: uniforms for the extremes between the recorded times are drawn too.
        dtype: floating point type of the paths; None takes that of the inputs.
        device: torch device or its name; None takes that of the market.

    Raises:
        ValueError: an argument breaks its rule, or the paths do not exist under the model.

    >>> from pricers.models import Heston
    >>> model = Heston(v0=0.04, kappa=2.0, theta=0.04, sigma=0.5, rho=-0.7)
    >>> made = simulate(model, Market(spot=100.0), [0.25, 0.5], 4, seed=1)
    >>> made.spot.shape, made.state["variance"].shape
    (torch.Size([4, 3]), torch.Size([4, 3]))
    """
    simulation = Simulation(
        model,
        market,
        dates,
        n_steps=n_steps,
        noise=noise,
        scheme=scheme,
        every_step=every_step,
        bridge_uniforms=bridge_uniforms,
        dtype=dtype,
        device=device,
    )
    return simulation.draw(n_paths, seed=seed, number=number)


@dataclass(frozen=True, eq=False, init=False)
class Simulation:
    """All of `simulate` that does not depend on the noise, made once for many draws; the arguments are the same.

    Args:
        plan: what is the same for all paths.
        times: recorded times in years, float64.
        noise: kind of noise.
        bridge_uniforms: whether uniforms are drawn.

    >>> from pricers.models import BlackScholes
    >>> simulation = Simulation(BlackScholes(vol=0.2), Market(spot=1.0), [0.1, 0.2])
    >>> one, other = (simulation.draw(8, seed=3, number=number).spot for number in (0, 1))
    >>> bool((one[:, 1:] != other[:, 1:]).all())
    True
    """

    plan: Plan
    times: Tensor
    noise: str
    bridge_uniforms: bool

    def __init__(
        self,
        model: Any,
        market: Any,
        dates: Any,
        *,
        n_steps: Any = None,
        noise: Any = "pseudo",
        scheme: Any = None,
        every_step: Any = False,
        bridge_uniforms: Any = False,
        dtype: torch.dtype | None = None,
        device: Any = None,
    ) -> None:
        found = _scheme_of(model, market, scheme)
        every_step, bridge_uniforms = flag("every_step", every_step), flag("bridge_uniforms", bridge_uniforms)
        if every_step and isinstance(found, DirectScheme):
            reason = found.between_refusal(European(1.0, 1.0), model)
            if reason is not None:
                raise ValueError(f"`every_step` does not go with {type(model).__name__}: {reason}")
        if n_steps is not None:
            n_steps = whole("n_steps", n_steps, at_least=1, at_most=MOST_STEPS)
        if dtype not in (None, torch.float32, torch.float64):
            raise ValueError(f"`dtype` must be torch.float32 or torch.float64, got {dtype}")
        dtype = dtype or common_dtype(model, market)
        place = market.spot.device if device is None else device_of("device", device)
        recorded, grid = _grids(dates, n_steps if n_steps is not None or found.exact else DEFAULT_STEPS)
        model, market = converted(model, dtype, place), converted(market, dtype, place)
        wanted = grid if every_step else recorded
        plan = Plan(
            model,
            market,
            found,
            grid.to(place, dtype),
            wanted[1:].to(place, dtype),
            every_step,
            grid[-1].to(place, dtype),
            observe=_observer(model, found),
        )
        object.__setattr__(self, "plan", plan if self._recording(plan) else prepared(plan))
        object.__setattr__(self, "times", wanted.to(place))
        object.__setattr__(self, "noise", choice("noise", noise, tuple(NOISES)))
        object.__setattr__(self, "bridge_uniforms", bridge_uniforms)

    def draw(self, n_paths: Any, *, seed: Any, number: Any = 0) -> Scenarios:
        """Fresh paths; see `simulate`.

        Raises:
            ValueError: an argument breaks its rule.
        """
        n_paths = whole("n_paths", n_paths, at_least=1, at_most=MOST_PATHS)
        words = whole("seed", seed), whole("number", number, at_least=0)
        if self.noise == "antithetic" and n_paths % 2:
            raise ValueError(f"`n_paths` must be even for antithetic noise, got {n_paths}")
        noise = NOISES[self.noise](address("scenarios", *words))
        width = block_size(self.plan.grid.device) * (1 if self.noise == "sobol" else 2)
        chunks = [(start, min(width, n_paths - start)) for start in range(0, n_paths, width)]
        recording = torch.is_grad_enabled() and self._recording(self.plan)

        def simulated(chunk: tuple[int, int]) -> Scenarios:
            with torch.enable_grad() if recording else torch.no_grad():
                return self._chunk(noise, *chunk, recording)

        with side_by_side(self.plan.grid.device, 1 if recording else len(chunks)) as run:
            parts = list(run(simulated, chunks))
        return parts[0] if len(parts) == 1 else _joined(parts)

    @staticmethod
    def _recording(plan: Plan) -> bool:
        return any(tensor.requires_grad for tensor in tensors(plan.model, plan.market))

    def _chunk(self, noise: Noise, start: int, width: int, recording: bool) -> Scenarios:
        plan, scheme = self.plan, self.plan.scheme
        n_normals = scheme.n_normals + asset_normals(scheme, plan.model)
        normals: Normals = noise.normals(0, start, width, plan.dt.detach(), n_normals)
        if recording:  # the buffer of the noise is used again, which a graph does not bear
            normals = Stored(normals.whole(plan.dt.shape[0]))
        recorded = record(plan, normals, slice(0, width))
        paths = assemble(plan, recorded)
        drawn = None
        if self.bridge_uniforms:
            drawn = uniforms(noise.seed, 0, start, width, len(self.times) - 1, plan.grid.detach())
        return Scenarios(self.times, paths.spot, self._state(paths, recorded), drawn, paths.n_asset_axes)

    def _state(self, paths: Paths, recorded: Recorded) -> dict[str, Tensor]:
        state: dict[str, Tensor] = {}
        name, told = TOLD[type(self.plan.model)]
        if recorded.observed is not None:
            state[name] = recorded.observed.movedim(0, -1)
        elif told is not None and self.plan.model.n_assets == 1:
            state[name] = told(self.plan, paths)
        if paths.variance is not None:
            state["integrated_variance"] = paths.variance
        if paths.jumps_squared is not None:
            state["jumps_squared"] = paths.jumps_squared
        return state


def _constant_variance(plan: Plan, paths: Paths) -> Tensor:
    return (plan.model.parameters()["vol"] ** 2).expand_as(paths.spot)


def _local_variance(plan: Plan, paths: Paths) -> Tensor:
    assert isinstance(plan.model, LocalVol)
    log_ratio = torch.log(paths.spot / plan.market.forward(paths.times))
    columns = zip(log_ratio.unbind(-1), paths.times, strict=True)
    return torch.stack([plan.model.local_variance(column, time) for column, time in columns], dim=-1)


# What each model tells of its state: the name of it, and how it follows from the prices where the scheme has no state.
TOLD: dict[type[Model], tuple[str, Callable[[Plan, Paths], Tensor] | None]] = {
    BlackScholes: ("variance", _constant_variance),
    Merton: ("variance", _constant_variance),
    LocalVol: ("variance", _local_variance),
    Heston: ("variance", None),
    Bates: ("variance", None),
    RoughBergomi: ("variance", None),
    RoughHeston: ("variance", None),
    SABR: ("vol", None),
}


def _observer(model: Model, scheme: AnyScheme) -> Callable[[State], Tensor] | None:
    """What of the scheme's state is the variance, or SABR's volatility; None where there is no state."""
    if isinstance(model, SABR):
        return _only if isinstance(scheme, LognormalGivenVol) else _second
    if isinstance(model, (Heston, Bates, RoughBergomi)):
        return _positive
    return _second if isinstance(model, RoughHeston) else None


def _only(state: State) -> Tensor:
    return state[0]


def _positive(state: State) -> Tensor:
    return state[0].clamp(min=0.0)  # Euler's variance may be negative, and counts as 0


def _second(state: State) -> Tensor:
    return state[1]


def _scheme_of(model: Any, market: Any, scheme: Any) -> AnyScheme:
    """The scheme by its name, after a look at what cannot be simulated."""
    if not isinstance(model, Model) or type(model) not in TOLD:
        raise ValueError(
            f"`model` must be one of {', '.join(cls.__name__ for cls in TOLD)}, got {type(model).__name__}"
        )
    if not isinstance(market, Market):
        raise ValueError(f"`market` must be a Market, got {type(market).__name__}")
    for name, shape in (("model", model.batch_shape), ("market", market.batch_shape(model.n_assets))):
        if shape.numel() != 1 or len(shape):
            raise ValueError(f"`{name}` must be one parameter set, got a batch of shape {tuple(shape)}; take one of it")
    if market.dividends is not None:
        raise ValueError("`market` must have no cash dividends here; state them as a `dividend_yield`")
    if scheme is None:
        scheme = next(iter(model.schemes))
    found = model.schemes[choice("scheme", scheme, tuple(model.schemes))]
    reason = found.refusal(model)
    if reason is not None:
        raise ValueError(reason)
    return found


def _grids(given: Any, n_steps: int | None) -> tuple[Tensor, Tensor]:
    """Recorded times and all times, both from 0, in float64 on the CPU."""
    wanted = dates("dates", given, at_least=0.0).detach().double().cpu()
    if wanted.ndim != 1 or wanted[-1] <= SAME_DATE:
        raise ValueError(f"`dates` must be times in years along one axis, the last above 0, got {wanted.tolist()}")
    return time_grid(wanted, None), time_grid(wanted, n_steps)


def _joined(parts: list[Scenarios]) -> Scenarios:
    first = parts[0]
    state = {name: torch.cat([part.state[name] for part in parts]) for name in first.state}
    drawn = [part.bridge_uniforms for part in parts if part.bridge_uniforms is not None]
    spot = torch.cat([part.spot for part in parts])
    return replace(first, spot=spot, state=state, bridge_uniforms=torch.cat(drawn) if drawn else None)
