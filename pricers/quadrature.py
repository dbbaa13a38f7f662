"""Nodes and weights of Gauss and Legendre."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

__all__ = ["gauss_legendre"]

_eigh = cast(Callable[[Tensor], tuple[Tensor, Tensor]], torch.linalg.eigh)  # torch states no type


def gauss_legendre(n: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes and weights of Gauss-Legendre on [-1, 1], in the dtype and on the device of `like`.

    They come from the eigenvalues and eigenvectors of the Jacobi matrix.

    Args:
        n: number of nodes; a polynomial of degree 2 n - 1 is integrated exactly.
        like: gives dtype and device.

    Returns:
        The nodes, ascending, and the weights, each of shape `(n,)`.

    References:
        Golub and Welsch (1969), Calculation of Gauss quadrature rules.

    >>> nodes, weights = gauss_legendre(2, torch.zeros((), dtype=torch.float64))
    >>> nodes
    tensor([-0.5774,  0.5774], dtype=torch.float64)
    """
    k = torch.arange(1, n, dtype=torch.float64)
    off_diagonal = k / (4.0 * k**2 - 1.0).sqrt()
    nodes, vectors = _eigh(torch.diag(off_diagonal, 1) + torch.diag(off_diagonal, -1))
    return nodes.to(like), (2.0 * vectors[0] ** 2).to(like)
