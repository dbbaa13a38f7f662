"""Geometric Brownian motion of one or several assets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pricers.market import Market
from pricers.models.base import AnyScheme, Model, Scheme, State, Step
from pricers.parameters import real, volatility

__all__ = ["BlackScholes"]


class ExactLognormal(Scheme):
    """The log price is normal over any step."""

    n_normals: ClassVar[int] = 0
    exact: ClassVar[bool] = True

    def start(self, model: BlackScholes) -> State:
        return ()

    def coefficients(self, model: BlackScholes, market: Market, time: Tensor, dt: Tensor) -> State:
        return ((model.vol**2 * dt).unsqueeze(-1),)

    def advance(self, coefficients: State, log_ratio: Tensor, state: State, normals: Tensor) -> Step:
        (variance,) = coefficients
        return Step((), -0.5 * variance, variance, variance)


@dataclass(frozen=True, eq=False, init=False)
class BlackScholes(Model):
    r"""Black and Scholes: $dS_i = (r - q_i) S_i\,dt + \mathrm{vol}_i S_i\,dW_i$, $dW_i\,dW_j = \mathrm{corr}_{ij}\,dt$.

    Args:
        vol: annual volatility, in (0, 10]; shape `*batch`, with `correlation` `*batch n_assets`.
        correlation: None for one asset, else a symmetric positive definite matrix with unit diagonal, shape
            `*batch n_assets n_assets`.

    Raises:
        ValueError: a volatility out of bounds, or a matrix that is no correlation.

    References:
        Black and Scholes (1973), The pricing of options and corporate liabilities.

    >>> BlackScholes(vol=[0.2, 0.3], correlation=[[1.0, 0.5], [0.5, 1.0]]).n_assets
    2
    """

    kind: ClassVar[str] = "black_scholes"
    schemes: ClassVar[Mapping[str, AnyScheme]] = {"exact": ExactLognormal()}
    vol: Tensor
    correlation: Tensor | None

    def __init__(self, vol: Any, correlation: Any = None) -> None:
        vol = volatility("vol", vol)
        if correlation is not None:
            correlation = real("correlation", correlation)
            _check_correlation(vol, correlation)
        object.__setattr__(self, "vol", vol)
        object.__setattr__(self, "correlation", correlation)

    @property
    def batch_shape(self) -> torch.Size:
        if self.correlation is None:
            return self.vol.shape
        return torch.broadcast_shapes(self.vol.shape[:-1], self.correlation.shape[:-2])

    @property
    def n_assets(self) -> int:
        return 1 if self.correlation is None else self.correlation.shape[-1]

    @property
    def correlation_root(self) -> Tensor | None:
        """Lower triangular $L$ with $L L^\\top$ = correlation; None for one asset."""
        return None if self.correlation is None else torch.linalg.cholesky(self.correlation)

    def log_characteristic(self, u: Tensor, expiry: Tensor, shift: float = 0.0) -> tuple[Tensor, Tensor]:
        r"""Real and imaginary part of $\log E\,e^{i (u - i\,\mathrm{shift}) X}$, $X = \log(S_T / F_T)$."""
        variance = (self.vol**2 * expiry).unsqueeze(-1)
        # -w/2 (z^2 + i z) at z = u - i shift
        return -0.5 * variance * (u**2 - shift**2 + shift), -0.5 * variance * u * (1.0 - 2.0 * shift)

    def log_moment(self, order: Tensor, expiry: Tensor) -> Tensor:
        r"""$\log E\,e^{qX}$ at the real orders $q$ along the last axis."""
        return 0.5 * (self.vol**2 * expiry).unsqueeze(-1) * order * (order - 1.0)

    def cumulants(self, expiry: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """First, second and fourth cumulant of the log-ratio at `expiry`."""
        variance = self.vol**2 * expiry
        return -0.5 * variance, variance, torch.zeros_like(variance)


def _check_correlation(vol: Tensor, correlation: Tensor) -> None:
    if correlation.ndim < 2 or correlation.shape[-1] != correlation.shape[-2]:
        raise ValueError(f"`correlation` must be a square matrix, got shape {tuple(correlation.shape)}")
    n_assets = correlation.shape[-1]
    if vol.ndim == 0 or vol.shape[-1] != n_assets:
        raise ValueError(
            f"`vol` must have a last axis of length {n_assets}, one for each row of `correlation` of shape "
            f"{tuple(correlation.shape)}, got shape {tuple(vol.shape)}"
        )
    matrix = correlation.detach()
    if not torch.allclose(matrix, matrix.mT, rtol=0.0, atol=1e-7):
        raise ValueError("`correlation` must be symmetric; use (C + C.T) / 2 if rounding is to blame")
    if not torch.allclose(matrix.diagonal(dim1=-2, dim2=-1), matrix.new_ones(()), rtol=0.0, atol=1e-7):
        raise ValueError("`correlation` must have ones on its diagonal; divide a covariance by the volatilities first")
    _, failed = torch.linalg.cholesky_ex(matrix)
    if bool(failed.any()):
        lowest = torch.linalg.eigvalsh(matrix).min().item()
        raise ValueError(f"`correlation` must be positive definite, its lowest eigenvalue is {lowest:g}")
