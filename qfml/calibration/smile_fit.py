"""The fit of thousands of independent smiles, and what can be said about each of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from qfml.calibration.fit_options import FitOptions
from qfml.calibration.least_squares import COST, STATUS, Solution, least_squares
from qfml.calibration.smiles import Smiles

__all__ = ["BLOCK", "FittedSmiles", "SmileModel", "chosen", "covariance", "fit_smiles", "unidentified"]

BLOCK = 1024  # smiles worked at together: what they need stays in the cache
EXACT = 1e-8  # vol: a fit whose errors are all below it has converged, whatever its last steps did
UNSEEN = 1e-5  # vol: a change of the parameters over their range that moves no quote by more is not seen by them
SHARE = 0.3  # of an unseen direction, from which on a parameter is named as part of it


@runtime_checkable
class SmileModel(Protocol):
    """A smile in P numbers of the fit, x, from which its reported parameters follow."""

    @property
    def names(self) -> tuple[str, ...]:
        """The reported parameters."""
        ...

    def bounds(self, smiles: Smiles) -> tuple[Tensor, Tensor]:
        """Strict lower and upper bounds of x, shape (n, P) each."""
        ...

    def ranges(self, smiles: Smiles) -> Tensor:
        """A plausible range of each element of x, shape (n, P): what is not seen over it is not identified."""
        ...

    def starts(self, smiles: Smiles, n_starts: int) -> Tensor:
        """Points to start from, inside the bounds, shape (n, n_starts, P)."""
        ...

    def vols_and_jacobian(self, x: Tensor, smiles: Smiles) -> tuple[Tensor, Tensor]:
        """Vols (n, N) at the quotes, and their derivatives (n, N, P)."""
        ...

    def reported(self, x: Tensor, smiles: Smiles) -> tuple[Tensor, Tensor]:
        """Parameters in the order of `names`, (n, R), and their derivatives in x, (n, R, P)."""
        ...


@dataclass(frozen=True, eq=False)
class FittedSmiles:
    """What a fit of n smiles found.

    Args:
        x: numbers of the fit, shape (n, P).
        cost: weighted sum of squared errors of the vols, shape (n,).
        errors: vol of the model less quoted vol, 0 where there is no quote, shape (n, N).
        jacobian: of the vols in x, times the root of the weight, shape (n, N, P).
        status: a key of `least_squares.STATUS`, shape (n,).
        n_steps: steps of the start that won, shape (n,).
    """

    x: Tensor
    cost: Tensor
    errors: Tensor
    jacobian: Tensor
    status: Tensor
    n_steps: Tensor

    @property
    def found(self) -> Tensor:
        """Where there are numbers at all, shape (n,)."""
        return self.cost.isfinite()

    @property
    def sentences(self) -> list[str]:
        """How each fit ended."""
        return [STATUS[int(code)] for code in self.status.tolist()]


def fit_smiles(model: SmileModel, smiles: Smiles, options: FitOptions) -> FittedSmiles:
    """Fit each smile from several starts and keep the best.

    Args:
        model: what to fit.
        smiles: each a problem of its own; one that fails leaves the others alone.
        options: starts and steps of each.

    Returns:
        The fits, in the order of the smiles.
    """
    blocks = [_fit_block(model, smiles.at(index), options) for index in torch.arange(len(smiles)).split(BLOCK)]
    return FittedSmiles(**{name: torch.cat([getattr(b, name) for b in blocks]) for name in vars(blocks[0])})


def _fit_block(model: SmileModel, smiles: Smiles, options: FitOptions) -> FittedSmiles:
    starts = model.starts(smiles, options.n_starts)
    n, n_starts, _ = starts.shape
    lower, upper = (bound.repeat_interleave(n_starts, 0) for bound in model.bounds(smiles))

    def function(x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        part = smiles.at(index // n_starts)
        root = torch.sqrt(part.weight)
        vols, jacobian = model.vols_and_jacobian(x, part)
        # by a choice, not a product: at the padding the model may have no number
        quoted = root > 0.0
        residuals = torch.where(quoted, root * (vols - part.vol), 0.0)
        return residuals, torch.where(quoted.unsqueeze(-1), root.unsqueeze(-1) * jacobian, 0.0)

    how = {"max_steps": options.max_steps, "tolerance": options.tolerance}
    solution = least_squares(function, starts.flatten(0, 1), lower=lower, upper=upper, **how)
    best = solution.cost.reshape(n, n_starts).argmin(-1) + n_starts * torch.arange(n)
    return chosen(solution, best, smiles)


def chosen(solution: Solution, rows: Tensor, smiles: Smiles) -> FittedSmiles:
    """The fits in these rows of a solution whose first residuals are those of the quotes of `smiles`."""
    n_quotes = smiles.vol.shape[-1]
    root = torch.sqrt(smiles.weight)
    residuals = solution.residuals[rows, :n_quotes]
    errors = torch.where(root > 0.0, residuals / torch.where(root > 0.0, root, 1.0), 0.0)
    jacobian = solution.jacobian[rows, :n_quotes]
    return FittedSmiles(
        x=solution.x[rows],
        cost=residuals.square().sum(-1),
        errors=errors,
        jacobian=jacobian,
        status=torch.where(errors.abs().amax(-1) < EXACT, COST, solution.status[rows]),
        n_steps=solution.n_steps[rows],
    )


def covariance(fit: FittedSmiles, to_reported: Tensor, smiles: Smiles, n_fitted: Tensor | None = None) -> Tensor:
    r"""Of the reported parameters: $s^2 A (J^\top J)^{-1} A^\top$ with $s^2$ the cost by degree of freedom.

    Infinite where there are no more quotes than numbers of the fit, or where the quotes do not determine them; NaN
    where there is no fit.

    Args:
        fit: of `smiles`.
        to_reported: derivatives A of the reported parameters in x, shape (n, R, P).
        smiles: for their numbers of quotes.
        n_fitted: numbers that were fitted, shape (n,), where they are fewer than P.

    Returns:
        Shape (n, R, R).
    """
    freedom = smiles.n_quotes - (fit.x.shape[-1] if n_fitted is None else n_fitted)
    normal = fit.jacobian.mT @ fit.jacobian
    scale = torch.sqrt(torch.diagonal(normal, dim1=-2, dim2=-1))
    scale = torch.where((scale > 0.0) & scale.isfinite(), scale, 1.0)
    unit = torch.nan_to_num(normal / (scale.unsqueeze(-1) * scale.unsqueeze(-2)))
    values, vectors = torch.linalg.eigh(unit)
    regular = (values[..., 0] > 1e-14 * values[..., -1]) & (freedom > 0)
    inverse = (vectors / values.clamp(min=1e-300).unsqueeze(-2)) @ vectors.mT
    mapped = to_reported / scale.unsqueeze(-2)
    variance = fit.cost / freedom.clamp(min=1)
    found = variance[:, None, None] * (mapped @ inverse @ mapped.mT)
    found = torch.where(regular[:, None, None], found, torch.inf)
    return torch.where(fit.found[:, None, None], found, torch.nan)


def unidentified(fit: FittedSmiles, ranges: Tensor, smiles: Smiles) -> Tensor:
    """Which numbers of the fit the quotes do not determine, shape (n, P): those of a direction that moves no quote.

    Args:
        fit: of `smiles`.
        ranges: plausible range of each number, 0 for one that is not asked about, shape (n, P).
        smiles: for their weights.
    """
    root = torch.sqrt(smiles.weight).unsqueeze(-1)
    moves = torch.where(root > 0.0, fit.jacobian / torch.where(root > 0.0, root, 1.0), 0.0) * ranges.unsqueeze(-2)
    moves = torch.nan_to_num(moves, posinf=0.0, neginf=0.0)
    values, vectors = torch.linalg.eigh(moves.mT @ moves)
    flat = values < UNSEEN**2 + 1e-15 * values[..., -1:]
    return ((vectors.abs() > SHARE) & flat.unsqueeze(-2)).any(-1) & (ranges > 0.0)
