"""Hamiltonian Monte Carlo for many small densities at once, each with several chains."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Chains", "LogDensity", "hamiltonian"]

LogDensity = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Points (B, P) and the density (B,) that each belongs to -> log densities (B,) and their gradients (B, P)."""

NOISE_BLOCK = 64  # iterations whose random numbers are drawn at once; part of the address of a draw
DIVERGENT = 1000.0  # loss of energy over a trajectory, Betancourt (2017), section 6.2
_GAMMA, _T0, _KAPPA = 0.05, 10.0, 0.75  # Hoffman and Gelman (2014), section 3.2


@dataclass(frozen=True, eq=False)
class Chains:
    """What the sampler drew.

    Attributes:
        draws: shape `densities chains draws P`.
        accept: mean acceptance probability after the warm-up, shape `densities`.
        divergences: trajectories after the warm-up whose energy was lost, shape `densities`, int64.
        step_size: of each chain, in units of the standard deviations, shape `densities chains`.
        n_gradients: gradients of each density that were taken, warm-up included, shape `densities`, int64.
    """

    draws: Tensor
    accept: Tensor
    divergences: Tensor
    step_size: Tensor
    n_gradients: Tensor


def hamiltonian(
    log_density: LogDensity,
    start: Tensor,
    covariance: Tensor,
    generators: Sequence[torch.Generator],
    *,
    n_draws: int,
    n_warmup: int,
    target_accept: float = 0.8,
    trajectory: float = 0.5 * math.pi,
    max_leapfrog: int = 64,
) -> Chains:
    r"""Draw from unnormalised densities by Hamiltonian Monte Carlo with a mass matrix of each density's own.

    The kinetic energy is $\tfrac12 p^\top \Sigma p$. $\Sigma$ is `covariance` in the first half of the warm-up; then
    it is the covariance of the draws of that half, shrunk towards the first one. Trajectories have a length between
    half and one and a half times `trajectory` (a quarter of the period of a normal density), which keeps no chain in
    resonance. Each chain finds its step size by dual averaging.

    Args:
        log_density: finite where the density is positive; anywhere else it may be -inf or NaN.
        start: first points, shape `densities chains P`.
        covariance: rough covariance of each density, positive definite, shape `densities P P`.
        generators: one a density; what a density draws depends on its own only.
        n_draws: draws kept of each chain.
        n_warmup: iterations before them, which find the step size and are not kept.
        target_accept: mean acceptance probability that the step size aims at.
        trajectory: mean length of a trajectory in units of the standard deviations.
        max_leapfrog: most steps of one trajectory.

    References:
        Neal (2011), "MCMC using Hamiltonian dynamics", sections 3 and 4.1. Hoffman and Gelman (2014), "The No-U-Turn
        sampler", algorithm 5: dual averaging.

    Example:
        >>> normal = lambda x, index: (-0.5 * x.square().sum(-1), -x)
        >>> start, unit = torch.zeros(1, 32, 2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)[None]
        >>> generators = [torch.Generator().manual_seed(0)]
        >>> chains = hamiltonian(normal, start, unit, generators, n_draws=60, n_warmup=20)
        >>> bool((chains.draws.var(dim=(1, 2)) - 1).abs().max() < 0.2)
        True
    """
    sampler = _Sampler(log_density, start, covariance, target_accept, trajectory, max_leapfrog)
    noise = _Noise(generators, start.shape[1], start.shape[2], start)
    early: list[Tensor] = []
    for iteration in range(n_warmup):
        if iteration == n_warmup // 2 and len(early) >= 20:
            sampler.adapt_covariance(torch.stack(early[len(early) // 4 :], dim=2))
        sampler.move(*noise.of(iteration), warmup=True)
        if iteration < n_warmup // 2:
            early.append(sampler.points().clone())
    sampler.end_warmup()
    draws = start.new_empty(*start.shape[:2], n_draws, start.shape[2])
    for draw in range(n_draws):
        sampler.move(*noise.of(n_warmup + draw), warmup=False)
        draws[:, :, draw] = sampler.points()
    return sampler.chains(draws, n_draws)


class _Noise:
    """Random numbers of an iteration: momenta (R, P), and two uniforms (R,), for R = densities x chains rows."""

    def __init__(self, generators: Sequence[torch.Generator], n_chains: int, size: int, like: Tensor) -> None:
        self._generators, self._shape, self._dtype = generators, (n_chains, size), like.dtype
        self._block: tuple[Tensor, Tensor] | None = None

    def of(self, iteration: int) -> tuple[Tensor, Tensor, Tensor]:
        """Those of the next iteration; they must be asked for in order."""
        n_chains, size = self._shape
        inside = iteration % NOISE_BLOCK
        if inside == 0:
            normals, uniforms = [], []
            for generator in self._generators:
                shape = (NOISE_BLOCK, n_chains)
                normals.append(torch.randn(*shape, size, generator=generator, dtype=self._dtype))
                uniforms.append(torch.rand(*shape, 2, generator=generator, dtype=self._dtype))
            self._block = torch.cat(normals, dim=1), torch.cat(uniforms, dim=1)
        assert self._block is not None
        normal, uniform = (part[inside] for part in self._block)
        return normal, uniform[:, 0], uniform[:, 1]


class _Sampler:
    """State of all chains; rows are densities x chains, and points are x = factor w with a unit mass matrix for w."""

    def __init__(
        self,
        log_density: LogDensity,
        start: Tensor,
        covariance: Tensor,
        target_accept: float,
        trajectory: float,
        max_leapfrog: int,
    ) -> None:
        self.n_densities, self.n_chains, self.size = start.shape
        self.density = torch.arange(self.n_densities).repeat_interleave(self.n_chains)
        self._log_density, self._target = log_density, target_accept
        self._trajectory, self._most = trajectory, max_leapfrog
        self._set_factor(torch.linalg.cholesky(covariance))
        self.x = start.reshape(-1, self.size).clone()
        self.value, self.gradient = log_density(self.x, self.density)
        rows = self.x.new_zeros(len(self.x))
        self.accept_sum, self.divergent, self.n_gradients = rows.clone(), rows.clone(), rows + 1
        self._restart_averaging(torch.full_like(rows, 0.5))

    def _set_factor(self, factor: Tensor) -> None:
        """Cholesky factors (densities, P, P) of the inverse mass matrices."""
        self._factors = factor
        self._factor = factor.repeat_interleave(self.n_chains, dim=0)

    def _restart_averaging(self, step: Tensor) -> None:
        self.step, self._mean_log_step = step, torch.zeros_like(step)
        self._centre, self._error, self._count = (10 * step).log(), torch.zeros_like(step), 0

    def points(self) -> Tensor:
        """The present points, shape `densities chains P`."""
        return self.x.view(self.n_densities, self.n_chains, self.size)

    def adapt_covariance(self, draws: Tensor) -> None:
        """Take the covariance of draws (densities, chains, n, P), in units of the first one and shrunk towards it."""
        pooled = draws.flatten(1, 2)
        n = pooled.shape[1]
        white = torch.linalg.solve_triangular(
            self._factors, (pooled - pooled.mean(1, keepdim=True)).mT, upper=False
        )  # (densities, P, n)
        own = white @ white.mT / (n - 1)
        unit = torch.eye(self.size, dtype=own.dtype)
        weight = n / (n + 10.0 * self.size)
        factor, info = torch.linalg.cholesky_ex(weight * own + (1 - weight) * unit)
        factor = torch.where((info == 0)[:, None, None], factor, unit)  # stuck chains: keep what there was
        self._set_factor(self._factors @ factor)
        self._restart_averaging(self.step)

    def end_warmup(self) -> None:
        """Fix the averaged step sizes."""
        if self._count:
            self.step = self._mean_log_step.exp()

    def move(self, momentum: Tensor, jitter: Tensor, uniform: Tensor, warmup: bool) -> None:
        """One trajectory of each chain, accepted or not."""
        length = self._trajectory * (0.5 + jitter)
        n_steps = (length / self.step).ceil().clamp(1, self._most).long()
        x, value, gradient, end = self._leapfrog(momentum, n_steps)
        lost = (self.value - 0.5 * momentum.square().sum(-1)) - (value - 0.5 * end.square().sum(-1))
        bad = ~(lost < DIVERGENT)  # NaN counts
        accept = torch.where(bad, 0.0, torch.exp(-lost.clamp_min(0.0)))
        taken = uniform < accept
        self.x = torch.where(taken[:, None], x, self.x)
        self.value = torch.where(taken, value, self.value)
        self.gradient = torch.where(taken[:, None], gradient, self.gradient)
        self.n_gradients += n_steps
        if warmup:
            self._average(accept)
        else:
            self.accept_sum += accept
            self.divergent += bad

    def _leapfrog(self, momentum: Tensor, n_steps: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Follow the trajectories, Neal (2011), eqs. 2.28-2.30; those that have ended cost nothing more."""
        x, value, gradient, p = self.x.clone(), self.value.clone(), self.gradient.clone(), momentum.clone()
        for done in range(int(n_steps.max())):
            live = ((n_steps > done) & value.isfinite()).nonzero().squeeze(-1)
            if len(live) == 0:
                break
            step, factor = self.step[live, None], self._factor[live]
            half = p[live] + 0.5 * step * _product(factor.mT, gradient[live])
            moved = x[live] + step * _product(factor, half)
            own, slope = self._log_density(moved, self.density[live])
            ended = half + 0.5 * step * _product(factor.mT, slope)
            x[live], value[live], gradient[live], p[live] = moved, own, slope, ended
        return x, value, gradient, p

    def _average(self, accept: Tensor) -> None:
        """Hoffman and Gelman (2014), algorithm 5."""
        self._count += 1
        count = self._count
        share = 1 / (count + _T0)
        self._error = (1 - share) * self._error + share * (self._target - accept)
        log_step = self._centre - math.sqrt(count) / _GAMMA * self._error
        share = count**-_KAPPA
        self._mean_log_step = share * log_step + (1 - share) * self._mean_log_step
        self.step = log_step.exp()

    def chains(self, draws: Tensor, n_draws: int) -> Chains:
        """The result."""
        by_density = (self.n_densities, self.n_chains)
        return Chains(
            draws=draws,
            accept=self.accept_sum.view(by_density).mean(1) / n_draws,
            divergences=self.divergent.view(by_density).sum(1).long(),
            step_size=self.step.view(by_density),
            n_gradients=self.n_gradients.view(by_density).sum(1).long(),
        )


def _product(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector[..., None])[..., 0]
