"""Elementwise formulas over long tensors, a chunk at a time: more at once, and the temporaries leave the cache."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pricers.parameters import broadcast_shape

__all__ = ["in_chunks"]

CHUNK = 16384  # elements; on other devices than the CPU everything is one chunk


def in_chunks(formula: Callable[..., Tensor], **arguments: Tensor) -> Tensor:
    """`formula` of the arguments, in their order, which acts on each element for itself and broadcasts.

    Derivatives go through, and no element's value depends on its chunk.

    Args:
        formula: takes as many tensors as there are arguments, all flat or without axes.
        **arguments: tensors that broadcast; their names are for the error.

    Returns:
        Result of the broadcast shape.

    Raises:
        ValueError: two shapes do not broadcast.

    >>> in_chunks(torch.add, left=torch.ones(3, 1), right=torch.tensor([1.0, 2.0])).shape
    torch.Size([3, 2])
    """
    shape = broadcast_shape(**arguments)
    n_elements = math.prod(shape)
    if n_elements <= CHUNK or any(part.device.type != "cpu" for part in arguments.values()):
        return formula(*arguments.values())
    n_chunks = -(-n_elements // CHUNK)
    # no axes stay none: so neither is a number copied out, nor does its dtype begin to count. Split, not slices: the
    # gradient of a slice is as long as the whole
    columns = [
        [part] * n_chunks if part.ndim == 0 else part.expand(shape).reshape(-1).split(CHUNK)
        for part in arguments.values()
    ]
    return torch.cat([formula(*chunk) for chunk in zip(*columns, strict=True)]).reshape(shape)
