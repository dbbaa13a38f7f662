"""Matrix products along paths that are the same, bit by bit, however many paths are simulated at once."""

from __future__ import annotations

import torch
from torch import Tensor

from pricers.noise import TILE

__all__ = ["tiled_product"]


def tiled_product(matrix: Tensor, columns: Tensor) -> Tensor:
    """`matrix @ columns`, computed in blocks of `TILE` columns.

    Libraries choose the order of the sums in a product by its size, so a column's last digits depend on how many there
    are beside it. Here all blocks have one size; the last is filled up with zeros.

    Args:
        matrix: shape `*batch rows terms`.
        columns: one for each path, shape `*batch terms paths`.

    Returns:
        Shape `*batch rows paths`.

    >>> matrix, columns = torch.ones(2, 3), torch.arange(6.0).reshape(3, 2)
    >>> tiled_product(matrix, columns)
    tensor([[6., 9.],
            [6., 9.]])
    """
    width = columns.shape[-1]
    padded = torch.nn.functional.pad(columns, (0, -width % TILE))
    tiles = padded.unflatten(-1, (-1, TILE)).movedim(-2, -3)
    return (matrix.unsqueeze(-3) @ tiles).movedim(-3, -2).flatten(-2)[..., :width]
