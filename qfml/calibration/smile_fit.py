"""The fit of thousands of independent smiles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from qfml.calibration.fit_options import FitOptions
from qfml.calibration.least_squares import COST, STATUS, Solution, least_squares
from qfml.calibration.smiles import Smiles

__all__ = ["BLOCK", "FittedSmiles", "SmileModel", "chosen", "fit_smiles"]

BLOCK = 1024  # smiles worked at together: what they need stays in the cache
EXACT = 1e-8  # vol: a fit whose errors are all below it has converged, whatever its last steps did


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

    def blurred_from(self, reported: Tensor, smiles: Smiles) -> Tensor:
        """Standard error from which on a reported parameter is not identified, shape (n, R)."""
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
