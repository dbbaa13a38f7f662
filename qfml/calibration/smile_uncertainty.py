"""What the quotes of thousands of independent smiles know of their parameters: errors, correlations, what they miss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qfml.calibration.smile_fit import FittedSmiles
from qfml.calibration.smiles import Smiles

__all__ = ["SmileUncertainty", "smile_uncertainty"]

UNSEEN = 1e-5  # vol: a change of the parameters over their range that moves no quote by more is not seen by them
SHARE = 0.3  # of an unseen direction, from which on a parameter is part of it
SINGULAR = 1e-14  # eigenvalue of the normal matrix of unit columns, relative to the largest
TAKES_PART = 0.1  # component of a parameter in a direction that nothing determines
ONLY_HELD = 1e-3  # share of its dependence below which a parameter follows from numbers at their bounds alone


@dataclass(frozen=True, eq=False)
class SmileUncertainty:
    """What the quotes know of the R reported parameters of n fits.

    Args:
        std_error: infinite where the quotes do not determine a parameter, NaN at a bound, where no degree of freedom is
            left and where there is no fit, 0 for a number that was given; shape (n, R).
        correlation: of the estimates, NaN where there is none, shape (n, R, R).
        identified: False where the quotes do not determine a parameter, shape (n, R).
        at_bound: True where a parameter follows from numbers at their bounds alone, shape (n, R).
        few: where there are fewer quotes than numbers to fit, shape (n,).
        n_free: numbers of the fit that are at no bound, shape (n,).
    """

    std_error: Tensor
    correlation: Tensor
    identified: Tensor
    at_bound: Tensor
    few: Tensor
    n_free: Tensor


def smile_uncertainty(
    fit: FittedSmiles,
    to_reported: Tensor,
    smiles: Smiles,
    *,
    ranges: Tensor,
    held: Tensor,
    blurred_from: Tensor,
    n_fitted: Tensor | None = None,
) -> SmileUncertainty:
    r"""Covariance $s^2 A (J^\top J)^{-1} A^\top$ of the reported parameters, with $s^2$ the cost by degree of freedom.

    Numbers at their bounds are held there, and the errors of the others are given with them fixed. A parameter is not
    identified if there are fewer quotes than numbers to fit, if it takes part in a direction in which the vols do not
    move, or if its error is as large as `blurred_from`.

    Args:
        fit: of `smiles`.
        to_reported: derivatives A of the reported parameters in the P numbers of the fit, shape (n, R, P).
        smiles: for their quotes and weights.
        ranges: plausible range of each number of the fit, shape (n, P).
        held: which of them are at a bound or were not fitted, shape (n, P).
        blurred_from: standard error from which on a reported parameter is not known, shape (n, R).
        n_fitted: numbers that were fitted, shape (n,), where they are fewer than P.

    References:
        Seber and Wild (1989), Nonlinear Regression, section 2.1.2.
    """
    n_numbers = fit.x.shape[-1]
    few = smiles.n_quotes < (n_numbers if n_fitted is None else n_fitted)
    free = torch.where(held.unsqueeze(-2), 0.0, to_reported)
    whole, left = ((part * ranges.unsqueeze(-2)).norm(dim=-1) for part in (to_reported, free))
    given, at_bound = whole == 0.0, (whole > 0.0) & (left <= ONLY_HELD * whole)

    inverse, blind, n_blind = _inverse(fit, free, held)
    n_free = n_numbers - held.sum(-1) - n_blind  # a direction that no vol moves along takes none of the freedom
    freedom = (smiles.n_quotes - n_free).to(fit.x)
    blind = (blind | (few.unsqueeze(-1) & ~given)) & fit.found.unsqueeze(-1)
    spread = torch.diagonal(inverse, dim1=-2, dim2=-1).clamp(min=0.0).sqrt()
    variance = torch.where(freedom > 0.0, fit.cost / freedom.clamp(min=1.0), torch.nan)
    error = torch.where(at_bound, torch.nan, variance.sqrt().unsqueeze(-1) * spread)
    error = torch.where(blind, torch.inf, torch.where(given, 0.0, error))
    error = torch.where(fit.found.unsqueeze(-1), error, torch.nan)

    unseen = _unseen(fit, free, smiles, ranges, held, blurred_from) & fit.found.unsqueeze(-1) & ~at_bound
    known = fit.found.unsqueeze(-1) & ~(blind | given | at_bound)
    correlation = inverse / (spread.unsqueeze(-1) * spread.unsqueeze(-2))
    correlation = torch.where(known.unsqueeze(-1) & known.unsqueeze(-2), correlation, torch.nan)
    identified = ~(blind | unseen | (error > blurred_from))
    return SmileUncertainty(error, correlation, identified, at_bound & fit.found.unsqueeze(-1), few, n_free)


def _inverse(fit: FittedSmiles, free: Tensor, held: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A (J'J)^-1 A' over the directions that quotes determine, which rows of A take part in others, their number."""
    jacobian = torch.nan_to_num(torch.where(held.unsqueeze(-2), 0.0, fit.jacobian))
    normal = jacobian.mT @ jacobian
    scale = torch.diagonal(normal, dim1=-2, dim2=-1).sqrt()
    scale = torch.where((scale > 0.0) & scale.isfinite(), scale, 1.0)
    unit = torch.nan_to_num(normal / (scale.unsqueeze(-1) * scale.unsqueeze(-2)))
    # what is held is a direction of its own, that A does not ask for
    values, vectors = torch.linalg.eigh(unit + torch.diag_embed(held.to(unit)))
    singular = values <= SINGULAR * values[..., -1:]
    weight = torch.where(singular, 0.0, 1.0 / torch.where(singular, 1.0, values))
    mapped = torch.nan_to_num(free / scale.unsqueeze(-2))
    along = mapped @ vectors
    blind = ((along.abs() > TAKES_PART * mapped.norm(dim=-1, keepdim=True)) & singular.unsqueeze(-2)).any(-1)
    return (along * weight.unsqueeze(-2)) @ along.mT, blind, singular.sum(-1)


def _unseen(
    fit: FittedSmiles, free: Tensor, smiles: Smiles, ranges: Tensor, held: Tensor, blurred_from: Tensor
) -> Tensor:
    """Which reported parameters are moved by a change of the fit's numbers over their ranges that moves no quote."""
    root = torch.sqrt(smiles.weight).unsqueeze(-1)
    ranges = torch.where(held, 0.0, ranges).unsqueeze(-2)
    moves = torch.where(root > 0.0, fit.jacobian / torch.where(root > 0.0, root, 1.0), 0.0) * ranges
    moves = torch.nan_to_num(moves, posinf=0.0, neginf=0.0)
    values, vectors = torch.linalg.eigh(moves.mT @ moves + torch.diag_embed(held.to(moves)))
    flat = values < UNSEEN**2 + 1e-15 * values[..., -1:]
    reach = torch.nan_to_num(free * ranges)
    along = (reach @ vectors).abs()
    part = (along > SHARE * reach.norm(dim=-1, keepdim=True)) & (along > TAKES_PART * blurred_from.unsqueeze(-1))
    return (part & flat.unsqueeze(-2)).any(-1)
