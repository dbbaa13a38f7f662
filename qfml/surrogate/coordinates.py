"""From inputs in natural units to the features that a network sees, and back for gradients.

A parameter is mapped to [-1, 1] by its range, along its own scale (linear or log). Where the target is an implied vol,
the strike enters as the standardised log-moneyness

    z = log_moneyness / (reference_vol * sqrt(expiry)),

so that a week and three years show the network the same smile in units of their own standard deviation. Everything is
plain torch: differentiable, and exported as it stands.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qfml.errors import ConfigError
from qfml.surrogate.box import Range
from qfml.surrogate.problem import Problem

STANDARD_DEVIATIONS = 2.0  # a standardised log-moneyness of this size becomes the feature 1


@dataclass(frozen=True)
class Coordinates:
    """The map from a problem's inputs (N, d) to features (N, d), one a column of the inputs, in their order.

    It is one-to-one, so that the derivatives of a label in the inputs determine those in the features
    (`feature_gradient`).

    Args:
        problem: names, ranges and the reference vol.

    Example:
        >>> from qfml.surrogate.box import Range
        >>> problem = Problem(
        ...     model={"kind": "black_scholes"},
        ...     instrument={"kind": "european"},
        ...     box={"vol": Range(0.1, 0.4, "log"), "expiry": Range(0.1, 2.0), "delta": Range(0.05, 0.95)},
        ...     target="implied_vol",
        ... )
        >>> coordinates = Coordinates(problem)
        >>> coordinates(torch.tensor([[0.2, 1.0, 0.2]]).double()).round(decimals=4)
        tensor([[ 0.0000, -0.0526,  0.5000]], dtype=torch.float64)
    """

    problem: Problem

    @property
    def standardised(self) -> int | None:
        """The column of inputs that is divided by the reference standard deviation, if there is one."""
        vol = self.problem.target == "implied_vol"
        by_reference = ("delta", "standard_moneyness", *(["log_moneyness"] if vol else []))
        places = [i for i, axis in enumerate(self.problem.coordinates) if axis.argument in by_reference]
        return places[0] if places else None

    def __call__(self, inputs: Tensor, reference: Tensor | None = None) -> Tensor:
        """Features (N, d) of inputs (N, d) in natural units, in their dtype; `reference` vols (N,) if known already."""
        columns, ranges, own = [], list(self.problem.box.values()), self.standardised
        if own is not None:
            ranges[own] = self.standard_range
        for place, limits in enumerate(ranges):
            column = inputs[:, place]
            if place == own:
                column = column / reference_deviation(self.problem, inputs, reference)
            columns.append(torch.log(column) if limits.scale == "log" else column)
        middle, half = (inputs.new_tensor(numbers) for numbers in zip(*map(middle_and_half, ranges), strict=True))
        return (torch.stack(columns, 1) - middle) / half

    @property
    def standard_range(self) -> Range:
        """The range of the standardised log-moneyness that becomes [-1, 1]; a range of deltas sets no sharp one."""
        own = None if self.standardised is None else self.problem.coordinates[self.standardised]
        if own is not None and own.argument == "standard_moneyness":
            return self.problem.box[own.name]
        return Range(-STANDARD_DEVIATIONS, STANDARD_DEVIATIONS)

    def feature_gradient(self, inputs: Tensor, gradient: Tensor) -> Tensor:
        """Derivatives in the features (N, d) from those in the inputs (N, d): the transposed Jacobian, solved."""
        jacobian = row_jacobian(self, inputs)
        return torch.linalg.solve(jacobian.transpose(1, 2), gradient[..., None])[..., 0]

    def is_affine_in(self, name: str) -> bool:
        """Whether the features are affine in an input, so that convexity in the one is convexity in the other."""
        (place,) = columns_of(self.problem, [name])
        limits = tuple(self.problem.box.values())[place]
        return self.standardised is None and limits.scale == "linear"


def middle_and_half(limits: Range) -> tuple[float, float]:
    """Middle and half width of a range along its scale: what maps it to [-1, 1].

    >>> middle_and_half(Range(0.1, 0.4))
    (0.25, 0.15000000000000002)
    """
    if limits.scale == "log":
        return 0.5 * math.log(limits.low * limits.high), 0.5 * math.log(limits.high / limits.low)
    return 0.5 * (limits.low + limits.high), 0.5 * (limits.high - limits.low)


def reference_deviation(problem: Problem, inputs: Tensor, reference: Tensor | None = None) -> Tensor:
    """Reference vol times the root of the expiry of each row, (N,)."""
    columns = problem.columns(inputs)
    return (problem.reference(columns) if reference is None else reference) * problem.expiry(columns).sqrt()


def moneyness_range(problem: Problem, inputs: Tensor) -> tuple[float, float] | None:
    """The least and greatest standardised log-moneyness of inputs (N, d) of a box with deltas; None of any other box.

    Far out in the wings a network's own vol may give a strike a delta of the box that it does not have: where the
    labels end says so.
    """
    own = Coordinates(problem).standardised
    if own is None or problem.coordinates[own].argument != "delta":
        return None
    z = inputs[:, own] / reference_deviation(problem, inputs)
    return float(z.min()), float(z.max())


def row_jacobian(function: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """Jacobian (N, F, d) of a map (N, d) -> (N, F) that treats each row alone.

    >>> row_jacobian(lambda x: x * x, torch.tensor([[1.0, 2.0]]))
    tensor([[[2., 0.],
             [0., 4.]]])
    """
    rows = rows.detach().requires_grad_()
    with torch.enable_grad():
        images = function(rows)
        if not images.requires_grad:  # a constant
            return rows.new_zeros(*images.shape, rows.shape[1])
        slopes = [
            torch.autograd.grad(column.sum(), rows, retain_graph=True, materialize_grads=True)[0]
            for column in images.unbind(1)
        ]
    return torch.stack(slopes, 1)


def columns_of(problem: Problem, names: Sequence[str]) -> tuple[int, ...]:
    """Columns of the features by the names of the inputs."""
    unknown = [name for name in names if name not in problem.inputs]
    if unknown:
        raise ConfigError(f"`{unknown[0]}` is no input of the problem, whose inputs are {', '.join(problem.inputs)}")
    return tuple(problem.inputs.index(name) for name in names)
