"""Many tridiagonal systems at once, differentiable: parallel cyclic reduction."""

# torch leaves many of its functions without types
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["multiply", "reduction", "solve"]


def solve(lower: Tensor, diagonal: Tensor, upper: Tensor, rhs: Tensor, factors: Tensor | None = None) -> Tensor:
    r"""Solution of $l_i x_{i-1} + d_i x_i + u_i x_{i+1} = b_i$ for all systems of a batch.

    Cyclic reduction eliminates all unknowns at distances 1, 2, 4, ... in step, so that a system of n unknowns takes
    $\log_2 n$ sweeps over vectors instead of 2n scalar steps. It needs no pivots for diagonally dominant matrices.
    The gradient solves the transposed systems with the same factors: it keeps the bands and the solution, not the
    sweeps. Works in reverse and forward mode, and twice.

    Args:
        lower: $l$, last axis of length n; its first entry is not used. Batch axes broadcast.
        diagonal: $d$.
        upper: $u$; its last entry is not used.
        rhs: $b$; its shape is that of the solution.
        factors: `reduction` of the same bands, when they serve more than once.

    References:
        Hockney (1965), A fast direct solution of Poisson's equation using Fourier analysis, section 4 (cyclic
        reduction); Hockney and Jesshope (1988), Parallel Computers 2, section 5.4.3 (its parallel form).

    >>> ones = torch.ones(4, dtype=torch.float64)
    >>> solve(-ones, 2.0 * ones, -ones, torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=torch.float64))
    tensor([1.0000, 1.0000, 1.0000, 1.0000], dtype=torch.float64)
    """
    return _Solve.apply(lower, diagonal, upper, rhs, factors, False)  # pyright: ignore[reportUnknownMemberType, reportReturnType]


def multiply(lower: Tensor, diagonal: Tensor, upper: Tensor, vector: Tensor) -> Tensor:
    """Product of the tridiagonal matrices with `vector`."""
    below = torch.nn.functional.pad((lower * vector.roll(1, -1))[..., 1:], (1, 0))
    above = torch.nn.functional.pad((upper * vector.roll(-1, -1))[..., :-1], (0, 1))
    return diagonal * vector + below + above


def reduction(lower: Tensor, diagonal: Tensor, upper: Tensor) -> Tensor:
    """Factors of cyclic reduction, stacked along a new first axis; they carry no gradient."""
    with torch.no_grad():
        lower, diagonal, upper = torch.broadcast_tensors(lower.detach(), diagonal.detach(), upper.detach())
        lower = torch.nn.functional.pad(lower[..., 1:], (1, 0))
        upper = torch.nn.functional.pad(upper[..., :-1], (0, 1))
        n, stride = diagonal.shape[-1], 1
        factors: list[Tensor] = []
        while stride < n:
            # Row i takes up rows i - stride and i + stride, which removes its neighbours at that distance.
            before = -lower[..., stride:] / diagonal[..., :-stride]
            after = -upper[..., :-stride] / diagonal[..., stride:]
            before = torch.nn.functional.pad(before, (stride, 0))
            after = torch.nn.functional.pad(after, (0, stride))
            diagonal = diagonal + before * _shifted(upper, stride) + after * _shifted(lower, -stride)
            lower, upper = before * _shifted(lower, stride), after * _shifted(upper, -stride)
            factors += [before, after]
            stride *= 2
        return torch.stack([*factors, 1.0 / diagonal])


def _shifted(vector: Tensor, by: int) -> Tensor:
    """Entries moved `by` places to the right, zeros behind them."""
    if by > 0:
        return torch.nn.functional.pad(vector[..., :-by], (by, 0))
    return torch.nn.functional.pad(vector[..., -by:], (0, -by))


def _apply(factors: Tensor, rhs: Tensor) -> Tensor:
    solution, stride = rhs, 1
    for level in range(0, factors.shape[0] - 1, 2):
        before, after = factors[level], factors[level + 1]
        solution = solution + before * _shifted(solution, stride) + after * _shifted(solution, -stride)
        stride *= 2
    return solution * factors[-1]


def _apply_transposed(factors: Tensor, rhs: Tensor) -> Tensor:
    solution = rhs * factors[-1]
    n_levels = (factors.shape[0] - 1) // 2
    for level in range(n_levels - 1, -1, -1):
        stride = 2**level
        before, after = factors[2 * level], factors[2 * level + 1]
        solution = solution + _shifted(before * solution, -stride) + _shifted(after * solution, stride)
    return solution


class _Solve(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        lower: Tensor, diagonal: Tensor, upper: Tensor, rhs: Tensor, factors: Tensor | None, transposed: bool
    ) -> Tensor:
        if factors is None:
            factors = reduction(lower, diagonal, upper)
        return _apply_transposed(factors, rhs) if transposed else _apply(factors, rhs)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        lower, diagonal, upper, rhs, factors, transposed = inputs
        ctx.save_for_backward(lower, diagonal, upper, factors, output)
        ctx.save_for_forward(lower, diagonal, upper, factors, output)
        ctx.transposed = transposed
        ctx.shapes = tuple(tensor.shape for tensor in (lower, diagonal, upper, rhs))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        lower, diagonal, upper, factors, solution = ctx.saved_tensors
        adjoint = _Solve.apply(lower, diagonal, upper, grad_outputs[0], factors, not ctx.transposed)
        # b = M x: the gradient to M_ij is -adjoint_i x_j, and with M transposed -x_i adjoint_j.
        row, column = (solution, adjoint) if ctx.transposed else (adjoint, solution)
        grads = (
            -row * _shifted(column, 1),
            -row * column,
            -row * _shifted(column, -1),
            adjoint,
        )
        summed = [grad.sum_to_size(shape) for grad, shape in zip(grads, ctx.shapes)]
        return (*summed, None, None)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        lower, diagonal, upper, factors, solution = ctx.saved_tensors
        d_lower, d_diagonal, d_upper, d_rhs, _, _ = tangents
        zero = torch.zeros_like(solution)
        rhs = zero if d_rhs is None else d_rhs
        if ctx.transposed:
            for band, shift in ((d_lower, -1), (d_diagonal, 0), (d_upper, 1)):
                if band is not None:
                    product = band * solution
                    rhs = rhs - (_shifted(product, shift) if shift else product)
        else:
            for band, shift in ((d_lower, 1), (d_diagonal, 0), (d_upper, -1)):
                if band is not None:
                    rhs = rhs - band * (_shifted(solution, shift) if shift else solution)
        return _Solve.apply(lower, diagonal, upper, rhs, factors, ctx.transposed)
