"""Rows of inputs from what a caller of a surrogate gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qfml.errors import DataError
from qfml.surrogate.problem import Problem


def input_rows(problem: Problem, inputs: Any) -> Tensor:
    """Rows (N, d) in float64 of a table of numbers, or of a mapping from names to numbers that broadcast.

    Raises:
        DataError: an input that lacks or is unknown, what is no number, another number of columns.
    """
    if isinstance(inputs, Mapping):
        names = problem.inputs
        if missing := [name for name in names if name not in inputs]:
            raise DataError(f"inputs lack `{missing[0]}`; the surrogate takes {', '.join(names)}")
        if unknown := [name for name in inputs if name not in names]:
            raise DataError(f"`{unknown[0]}` is no input of the surrogate, which takes {', '.join(names)}")
        columns = {name: _numbers(name, inputs[name]) for name in names}
        try:
            spread = torch.broadcast_tensors(*columns.values())
        except RuntimeError:
            shapes = ", ".join(f"{name} {tuple(column.shape)}" for name, column in columns.items())
            raise DataError(f"inputs must be numbers and arrays of shapes that broadcast, got {shapes}") from None
        return torch.stack([column.reshape(-1) for column in spread], 1)
    try:
        if isinstance(inputs, Tensor):
            rows = inputs.detach().to("cpu", torch.float64)
        else:
            rows = torch.from_numpy(np.array(inputs, dtype=np.float64))
    except (TypeError, ValueError):
        raise DataError(f"inputs must be numbers of shape (N, {len(problem.inputs)})") from None
    if rows.ndim != 2 or rows.shape[1] != len(problem.inputs):
        raise DataError(
            f"inputs must have shape (N, {len(problem.inputs)}), columns {', '.join(problem.inputs)}, "
            f"got {tuple(rows.shape)}"
        )
    return rows


def _numbers(name: str, value: Any) -> Tensor:
    """One input as a tensor in float64."""
    try:
        if isinstance(value, Tensor):
            return value.detach().to("cpu", torch.float64)
        return torch.from_numpy(np.array(value, dtype=np.float64))
    except (TypeError, ValueError):
        raise DataError(f"input `{name}` must be numbers, got {value!r}") from None
