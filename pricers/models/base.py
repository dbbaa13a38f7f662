"""What every model is: parameters with a batch shape, and named schemes to simulate it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from pricers.instruments.base import Instrument
from pricers.market import Market
from pricers.parameters import broadcast_shape

__all__ = ["Characteristic", "DirectScheme", "Model", "PathScheme", "Scheme", "Step"]

State = tuple[Tensor, ...]


class Step(NamedTuple):
    """What one step adds to the logarithm of $m_t = S_t / F(0, t)$, given the path of everything but the asset's noise.

    $\\log m$ grows by `drift` plus a normal of variance `residual_variance`, independent of `state`.
    """

    state: State
    drift: Tensor
    residual_variance: Tensor
    variance: Tensor  # integrated variance of the log price over the step, whatever drives it; without jumps
    jumps_squared: Tensor | None = None  # sum of the squared log jumps in the step

    @property
    def deviation(self) -> Tensor:
        """Root of the residual variance; where that is 0 its derivative is finite."""
        return torch.sqrt(self.residual_variance + torch.finfo(self.residual_variance.dtype).tiny)


class _Discretisation(ABC):
    """What the three sorts of schemes share."""

    n_normals: ClassVar[int]  # standard normals for each step, besides the asset's own
    exact: ClassVar[bool] = False  # no bias at any length of step
    has_jumps: ClassVar[bool] = False  # `Step.jumps_squared` is given
    local: ClassVar[bool] = False  # a step looks at the asset, which is then not lognormal given the rest of the path

    def refusal(self, model: Any) -> str | None:
        """Why the scheme does not hold for these parameters; None if it does."""
        return None

    def keeps_forward(self, model: Any, dt: Tensor) -> bool:
        """Whether the mean of the asset is the forward at these lengths of step, so that it may be a control."""
        return True


class Scheme(_Discretisation):
    """A discretisation of a model under which, given the state, the asset is lognormal over each step."""

    @abstractmethod
    def start(self, model: Any) -> State:
        """State at time 0; each tensor broadcasts with `*batch paths`."""

    @abstractmethod
    def coefficients(self, model: Any, market: Market, time: Tensor, dt: Tensor) -> State:
        """What a step from `time` over `dt` needs of the parameters; each tensor broadcasts with `*batch 1`."""

    @abstractmethod
    def advance(self, coefficients: State, log_ratio: Tensor, state: State, normals: Tensor) -> Step:
        """One step: pure tensor code, for it is compiled.

        Args:
            coefficients: from `coefficients`.
            log_ratio: $\\log m$ at the start of the step, shape `*batch paths` (and an axis of assets before paths).
            state: from `start` or the step before.
            normals: shape `n_normals paths`.
        """


class PathScheme(_Discretisation):
    """A discretisation that needs the noise of the whole path at once: a model without the Markov property."""

    variance_known: ClassVar[bool] = False  # the variance of a step depends on the noise before it only

    @abstractmethod
    def increments(self, model: Any, grid: Tensor, normals: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`drift`, `residual_variance` and `variance` of each step as in `Step`, shape `n_steps *batch paths`.

        Args:
            model: the model.
            grid: times from 0, years; shape `(n_steps + 1,)`.
            normals: shape `n_steps n_normals paths`.
        """


class DirectScheme(_Discretisation):
    """A discretisation of the asset itself, where it is not lognormal given the rest."""

    @abstractmethod
    def start(self, model: Any, market: Market, horizon: Tensor) -> State:
        """State at time 0; each tensor broadcasts with `*batch paths`."""

    @abstractmethod
    def coefficients(self, model: Any, market: Market, time: Tensor, dt: Tensor) -> State:
        """What a step from `time` over `dt` needs of the parameters; each tensor broadcasts with `*batch 1`."""

    @abstractmethod
    def advance(self, coefficients: State, state: State, normals: Tensor) -> State:
        """One step with `normals` of shape `n_normals paths`; pure tensor code."""

    @abstractmethod
    def ratio(self, state: State) -> Tensor:
        """$m_t = S_t / F(0, t)$, shape `*batch paths`."""

    def between_refusal(self, instrument: Instrument, model: Any) -> str | None:
        """Why a contract that looks at the path between the steps has no price here; None if it has one."""
        return (
            f"this scheme of {type(model).__name__} does not give the variance of each step, which a continuous "
            "contract needs; take another `scheme`, or dates"
        )

    def variance(self, coefficients: State, state: State, later: State) -> Tensor:
        """Integrated variance of the log price over the step from `state` to `later`, for Brownian bridges."""
        raise NotImplementedError

    def factor(self, state: State) -> Tensor | None:
        """What of the state the future depends on beside the asset, for regressions: `*batch paths`; None: nothing."""
        return None


AnyScheme = Scheme | PathScheme | DirectScheme


class Model(ABC):
    """A dynamics: a frozen dataclass of tensors whose batch axes broadcast."""

    kind: ClassVar[str]
    schemes: ClassVar[Mapping[str, AnyScheme]] = {}  # by name, the default first

    @property
    def batch_shape(self) -> torch.Size:
        """Shape of the batch of parameter sets."""
        return broadcast_shape(**self.parameters())

    @property
    def n_assets(self) -> int:
        """Number of assets."""
        return 1

    def parameters(self) -> dict[str, Tensor]:
        """The tensors among the fields, by name."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}  # pyright: ignore[reportArgumentType]
        return {name: value for name, value in named.items() if isinstance(value, Tensor)}


@runtime_checkable
class Characteristic(Protocol):
    r"""A model whose log-ratio $X = \log(S_T / F_T)$ has a known characteristic function."""

    def log_characteristic(self, u: Tensor, expiry: Tensor, shift: float = 0.0) -> tuple[Tensor, Tensor]:
        r"""Real and imaginary part of $\log E\,e^{i (u - i\,\mathrm{shift}) X}$; `u` along the last axis."""
        ...

    def cumulants(self, expiry: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """First, second and fourth cumulant of X."""
        ...
