r"""Where a surrogate learns: scrambled Sobol points of the box, each law with strikes of its own.

A point of the sequence is a law (and the terms of a contract). Its strikes share its evaluation, so there are several:
with $v$ the point's own coordinate of the strike, they lie at $(j + v) / K$, $j = 0 \ldots K - 1$, of the range. With
one strike each law is a plain Sobol point; with several each cell of the range has one strike of every law. Expiries of
one law are spread the same way. Any range of laws can be made alone.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pricers.noise import address
from qfml.errors import DataError
from qfml.files import write_whole
from qfml.surrogate.box import Range
from qfml.surrogate.delta_strikes import strikes_at_delta
from qfml.surrogate.problem import Problem

__all__ = ["GivenPoints", "Placed", "Points", "natural", "placed", "sobol_points", "unit", "unit_inputs"]

GOLDEN = 0.5 * (5.0**0.5 - 1.0)  # strikes of a law's next expiry are turned by this share of a cell


@dataclass(frozen=True, eq=False)
class Points:
    """Places in the unit cube of the box.

    Args:
        smiles: all coordinates but the strike's, one row for each law and expiry, in the order of the box.
        strikes: coordinate of the strike, a column for each strike of the row; no column if the box has none.
        law: number of each row's law.
    """

    smiles: Float[Tensor, "smiles coordinates"]
    strikes: Float[Tensor, "smiles strikes"]
    law: Int[Tensor, " smiles"]

    def part(self, start: int, stop: int) -> Points:
        """The rows from `start` to `stop`."""
        return Points(self.smiles[start:stop], self.strikes[start:stop], self.law[start:stop])


@dataclass(frozen=True, eq=False)
class GivenPoints:
    """Points that were chosen, one row for each law.

    Args:
        points: where.
        weight: importance weights, shape `(smiles, strikes)`.
        round: of refinement, 1 or more.
        parent: hash of what the choice rests on: labels and networks of the round before.
    """

    points: Points
    weight: Tensor
    round: int
    parent: str

    @property
    def hash(self) -> str:
        """Of every bit of the points, their weights, the round and what came before it."""
        digest = hashlib.sha256(f"{self.round} {self.parent}".encode())
        for name, tensor in sorted(self._tensors().items()):
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()[:16]

    def save(self, path: Path) -> None:
        """Write the points, whole or not at all."""
        metadata = {"round": str(self.round), "parent": self.parent, "hash": self.hash}
        write_whole(safetensors.torch.save(self._tensors(), metadata), path)

    @classmethod
    def load(cls, path: Path) -> GivenPoints:
        """Read the points back.

        Raises:
            DataError: a file that is damaged or holds something else.
        """
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                about = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in ("smiles", "strikes", "law", "weight")}
            places = Points(tensors["smiles"], tensors["strikes"], tensors["law"])
            found, expected = cls(places, tensors["weight"], int(about["round"]), about["parent"]), about["hash"]
        except (OSError, KeyError, ValueError, safetensors.SafetensorError) as error:
            raise DataError(f"{path} holds no points: {error}; choose the points again") from error
        if found.hash != expected:
            raise DataError(f"{path} is damaged: its hash is {found.hash}, not {expected}; choose the points again")
        return found

    def _tensors(self) -> dict[str, Tensor]:
        points = {"smiles": self.points.smiles, "strikes": self.points.strikes, "law": self.points.law}
        return {name: tensor.contiguous() for name, tensor in {**points, "weight": self.weight}.items()}


@dataclass(frozen=True, eq=False)
class Placed:
    """Points in natural units.

    Args:
        columns: inputs by name; those of the law of shape `(smiles, 1)`, the strike's `(smiles, strikes)`.
        law: number of the law, shape `(smiles,)`.
        missing: which strikes were not found, shape `(smiles, strikes)`; their inputs hold a strike at the forward.
    """

    columns: dict[str, Tensor]
    law: Tensor
    missing: Tensor


def natural(limits: Range, share: Tensor) -> Tensor:
    """The coordinate at a share of its range, on the scale of the range.

    >>> natural(Range(0.01, 1.0, "log"), torch.tensor([0.0, 0.5]))
    tensor([0.0100, 0.1000])
    """
    if limits.scale == "log":
        found = limits.low * torch.exp(
            share * torch.log(torch.tensor(limits.high / limits.low, dtype=share.dtype)).to(share)
        )
    else:
        found = limits.low + (limits.high - limits.low) * share
    return found.clamp(limits.low, limits.high)  # only rounding lies outside


def unit(limits: Range, value: Tensor) -> Tensor:
    """The share of its range at which a coordinate lies: the inverse of `natural`.

    >>> unit(Range(0.01, 1.0, "log"), torch.tensor([0.01, 0.1]))
    tensor([0.0000, 0.5000])
    """
    if limits.scale == "log":
        low, high = (torch.log(torch.tensor(end, dtype=value.dtype)).to(value) for end in (limits.low, limits.high))
        return (torch.log(value) - low) / (high - low)
    return (value - limits.low) / (limits.high - limits.low)


def unit_inputs(
    problem: Problem, inputs: Float[Tensor, "rows inputs"], value: Tensor | None = None
) -> Float[Tensor, "rows inputs"]:
    """Inputs as shares of the ranges of the box, the strike's coordinate as the box has it.

    Args:
        problem: whose box it is.
        inputs: in natural units.
        value: their implied vols, of which deltas are made; None: exact ones are made where deltas are asked for.
    """
    columns = problem.columns(inputs)
    shares: list[Tensor] = []
    for axis, limits in zip(problem.coordinates, problem.box.values(), strict=True):
        column = columns[axis.input]
        if axis.argument == "delta":
            column = problem.delta(columns, problem.exact(inputs) if value is None else value)
        elif axis.argument == "standard_moneyness":
            column = column / (problem.reference(columns) * problem.expiry(columns).sqrt())
        shares.append(unit(limits, column))
    return torch.stack(shares, dim=-1)


def sobol_points(
    problem: Problem, start: int, stop: int, seed: int, *, strikes_per_law: int = 1, expiries_per_law: int = 1
) -> Points:
    """The laws from `start` to `stop` of a scrambled Sobol sequence in the coordinates of the box.

    Args:
        problem: whose box it is.
        start: number of the first law.
        stop: number after the last.
        seed: of the scramble; any range of the same seed is a part of the same sequence.
        strikes_per_law: strikes of each row; more than 1 if the box has a strike coordinate.
        expiries_per_law: rows of each law; more than 1 if the box has `expiry`.

    References:
        Owen (1998), Scrambling Sobol' and Niederreiter-Xing points (the scramble); Joe and Kuo (2008), Constructing
        Sobol sequences with better two-dimensional projections (the directions).
    """
    engine = torch.quasirandom.SobolEngine(
        len(problem.coordinates), scramble=True, seed=address(seed, "surrogate points")
    )
    if start:
        engine.fast_forward(start)
    shares = engine.draw(stop - start, dtype=torch.float64)
    law = torch.arange(start, stop).repeat_interleave(expiries_per_law)
    shares = shares.repeat_interleave(expiries_per_law, dim=0)
    turn = torch.arange(expiries_per_law, dtype=torch.float64).repeat(stop - start)
    for i, axis in enumerate(problem.coordinates):
        if axis.argument == "expiry" and expiries_per_law > 1:
            shares[:, i] = (turn + shares[:, i]) / expiries_per_law
    of_law = [i for i, axis in enumerate(problem.coordinates) if not axis.is_strike]
    own = [i for i, axis in enumerate(problem.coordinates) if axis.is_strike]
    offset = torch.remainder(shares[:, own] + GOLDEN * turn.unsqueeze(-1), 1.0)
    cells = torch.arange(strikes_per_law if own else 1, dtype=torch.float64)
    return Points(shares[:, of_law], (cells + offset) / len(cells) if own else offset, law)


def placed(problem: Problem, points: Points, device: torch.device) -> Placed:
    """The points in natural units; a strike coordinate that depends on the law becomes `log_moneyness`."""
    smiles, shares = points.smiles.to(device), points.strikes.to(device)
    box = dict(zip(problem.coordinates, problem.box.values(), strict=True))
    columns = {axis.input: natural(box[axis], smiles[:, i : i + 1]) for i, axis in enumerate(problem.law_coordinates)}
    axis = problem.strike_coordinate
    missing = torch.zeros(len(smiles), max(1, shares.shape[-1]), dtype=torch.bool, device=device)
    if axis is not None:
        value = natural(box[axis], shares)
        if axis.argument == "delta":
            value = strikes_at_delta(problem, columns, value)
            missing = value.isnan()
            value = value.nan_to_num(nan=0.0)
        elif axis.argument == "standard_moneyness":
            value = value * problem.reference(columns) * problem.expiry(columns).sqrt()
        columns[axis.input] = value
    return Placed({name: columns[name] for name in problem.inputs}, points.law.to(device), missing)
