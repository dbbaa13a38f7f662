"""L-BFGS with a line search: quasi-Newton steps of a loss without noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from qfml.engine.optimizers.base import Evaluate, Flat, State, Step, check_rates, row_sums, zeros
from qfml.engine.optimizers.line_search import Point, Search, strong_wolfe
from qfml.errors import UserError

History = Float[Tensor, "member pair parameter"]


def quasi_newton_direction(gradient: Flat, steps: History, changes: History) -> Flat:
    """Minus the inverse Hessian of each member's last pairs times its gradient, by the two loops.

    Args:
        gradient: gradients, (M, P).
        steps: moves of the parameters, oldest first, (M, H, P); a pair of zeros is no pair.
        changes: changes of the gradient over them, (M, H, P).

    Returns:
        Directions (M, P), minus the gradient of a member without pairs.

    References:
        Nocedal, Wright (2006), "Numerical Optimization", algorithm 7.4 and equation 7.20.

    Example:
        >>> pair = torch.tensor([[[1.0, 0.0]]])  # the Hessian is 2 along the first axis
        >>> quasi_newton_direction(torch.tensor([[4.0, 0.0]]), pair, 2 * pair)
        tensor([[-2., -0.]])
    """
    curvature = row_sums(steps * changes)  # (M, H, 1)
    known = curvature > 0
    weight = torch.where(known, 1 / torch.where(known, curvature, 1.0), 0.0)
    direction, shares = -gradient, []
    for i in reversed(range(steps.shape[1])):
        shares.append(weight[:, i] * _dot(steps[:, i], direction))
        direction = direction - shares[-1] * changes[:, i]
    square = _dot(changes[:, -1], changes[:, -1])
    direction = direction * torch.where(known[:, -1], curvature[:, -1] / torch.where(known[:, -1], square, 1.0), 1.0)
    for i, share in enumerate(reversed(shares)):
        direction = direction + steps[:, i] * (share - weight[:, i] * _dot(changes[:, i], direction))
    return direction


def line_searches(searches: dict[int, Search], evaluate: Evaluate, parameters: Flat, direction: Flat) -> Tensor:
    """The step length that each search ends with, (M, 1); 0 for a member without one.

    All searches share an evaluation; one that has ended stays where it is while others go on.
    """
    trial = torch.zeros(len(parameters), 1, dtype=torch.float64)
    searches = dict(searches)
    for member, search in searches.items():
        trial[member] = next(search)
    while searches:
        losses, gradient = evaluate(torch.addcmul(parameters, direction, trial.to(parameters)))
        slopes = _dot(gradient, direction)[:, 0].tolist()
        for member, (loss, slope) in enumerate(zip(losses.tolist(), slopes)):
            if member in searches:
                try:
                    trial[member] = searches[member].send((loss, slope))
                except StopIteration as end:
                    trial[member] = end.value
                    del searches[member]
    return trial


@dataclass(frozen=True)
class LBFGS:
    """Limited-memory BFGS; an update is one quasi-Newton step, its length found by a strong Wolfe line search.

    The loss must be the same function at every evaluation: all rows at once, no dropout. Each member has its own
    history, its own direction and its own step length. A member whose line search finds no lower loss stays where it
    is and starts again from steepest descent.

    Args:
        lr: first step length a line search tries (over the gradient's 1-norm, if that is above 1, where there is no
            history); a member may carry its own.
        weight_decay: half of it times the squared norm of the parameters is added to the loss; a member may carry its
            own.
        history: pairs of steps and gradient changes that are remembered, 2 P numbers each.
        max_evaluations: most evaluations of the loss in one line search.
        c1: sufficient decrease of the loss, of the slope at the start.
        c2: remaining slope, of the slope at the start.
        tolerance_gradient: a member whose gradient has no element above this stays where it is.

    Example:
        >>> LBFGS(history=20).lr
        1.0

    References:
        Liu, Nocedal (1989), "On the limited memory BFGS method for large scale optimization", Mathematical Programming
        45; Nocedal, Wright (2006), "Numerical Optimization", algorithms 7.5, 3.5 and 3.6.
    """

    kind: ClassVar[str] = "lbfgs"
    lr: float = 1.0
    weight_decay: float = 0.0
    history: int = 10
    max_evaluations: int = 25
    c1: float = 1e-4
    c2: float = 0.9
    tolerance_gradient: float = 1e-7

    def __post_init__(self) -> None:
        check_rates(self.lr, self.weight_decay)
        for name, least in (("history", 1), ("max_evaluations", 2)):
            if getattr(self, name) < least:
                raise UserError(f"`{name}` must be a whole number from {least} on, got {getattr(self, name)}")
        if not 0 < self.c1 < self.c2 < 1:
            raise UserError(f"`c1` and `c2` must satisfy 0 < c1 < c2 < 1, got {self.c1} and {self.c2}")
        if not 0 <= self.tolerance_gradient < float("inf"):
            raise UserError(f"`tolerance_gradient` must be >= 0 and finite, got {self.tolerance_gradient}")

    def start(self, parameters: Flat) -> State:
        """No pairs: all zeros."""
        pairs = parameters.new_zeros(len(parameters), self.history, parameters.shape[1])
        return zeros(parameters, "gradient", "move") | {"steps": pairs, "changes": pairs.clone()}

    def update(self, parameters: Flat, gradient: Flat, state: State, step: Step) -> None:
        """One quasi-Newton step of every member that can move.

        Raises:
            UserError: no way to evaluate the loss at other parameters, or parameter groups with own learning rates.
        """
        evaluate = self._evaluate(step)
        losses, gradient = evaluate(parameters)
        gradient = gradient.clone()
        remember(state, gradient)
        direction = quasi_newton_direction(gradient, state["steps"], state["changes"])
        searches = self._searches(losses, gradient, direction, state, step)
        length = line_searches(searches, evaluate, parameters, direction).to(parameters)
        moved = length > 0
        move = torch.where(moved, direction * length, 0.0)
        parameters.copy_(torch.where(moved, parameters + move, parameters))
        state["move"].copy_(move)
        state["gradient"].copy_(gradient)
        for name in ("steps", "changes"):
            state[name].masked_fill_(~moved[:, None], 0)

    def _searches(self, losses: Tensor, gradient: Flat, direction: Flat, state: State, step: Step) -> dict[int, Search]:
        """A line search of each member that may move and has a direction of descent."""
        slopes = _dot(gradient, direction)[:, 0].tolist()
        largest, total = gradient.abs().amax(1).tolist(), row_sums(gradient.abs())[:, 0].tolist()
        longest = direction.abs().amax(1).tolist()
        experienced = state["steps"][:, -1].any(1).tolist()
        moves = np.ones(len(slopes), dtype=bool) if step.moves is None else step.moves[:, 0].cpu().numpy() > 0
        searches = {}
        for member, (loss, slope) in enumerate(zip(losses.tolist(), slopes)):
            if moves[member] and step.lr[member] > 0 and slope < 0 and largest[member] > self.tolerance_gradient:
                first = float(step.lr[member]) * (1.0 if experienced[member] else min(1.0, 1 / total[member]))
                start, shortest = Point(0.0, loss, slope), 1e-9 / longest[member]
                most = self.max_evaluations - 1
                searches[member] = strong_wolfe(start, first, most, self.c1, self.c2, shortest)
        return searches

    def _evaluate(self, step: Step) -> Evaluate:
        """Losses and gradients with the penalty of the weight decay."""
        own = step.evaluate
        if own is None:
            raise UserError("L-BFGS evaluates the loss along its line search, and `Step.evaluate` is not given")
        if step.scale is not None and not bool(((step.scale == 0) | (step.scale == 1)).all()):
            raise UserError(
                "L-BFGS has one step length for all parameters, and a parameter group has an `lr_factor` other than"
                " 0 or 1: leave it out"
            )

        def penalised(parameters: Tensor) -> tuple[Tensor, Tensor]:
            losses, gradient = own(parameters)
            if step.decays:
                decay = step.decay(parameters)
                losses = losses + 0.5 * row_sums(decay * parameters * parameters)[:, 0]
                gradient = gradient + decay * parameters
            return losses, gradient if step.scale is None else gradient * step.scale

        return penalised


def remember(state: State, gradient: Flat) -> None:
    """Append the last move and the change of the gradient over it, for members whose curvature along it is positive."""
    move, change = state["move"], gradient - state["gradient"]
    curvature = _dot(move, change)
    new = curvature > 1e-10 * (_dot(move, move) * _dot(change, change)).sqrt()
    for name, last in (("steps", move), ("changes", change)):
        shifted = torch.cat([state[name][:, 1:], last[:, None]], dim=1)
        state[name].copy_(torch.where(new[:, None], shifted, state[name]))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of rows, (M, 1)."""
    return row_sums(a * b)
