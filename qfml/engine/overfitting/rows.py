"""What is asked of the rows that a network is trained or judged on."""

from __future__ import annotations

from typing import Any

import numpy as np

from qfml.errors import UserError


def checked_rows(name: str, rows: Any, n_rows: int) -> np.ndarray:
    """Row ids as an array; UserError if they are not distinct rows of `n_rows`, or none."""
    ids = np.asarray(rows)
    if ids.ndim != 1 or ids.dtype.kind not in "iu" or len(ids) == 0 or len(np.unique(ids)) < len(ids):
        raise UserError(f"`{name}` must be a non-empty 1-D array of distinct row ids, got {ids.dtype} {ids.shape}")
    if ids.min() < 0 or ids.max() >= n_rows:
        raise UserError(f"`{name}` must hold row ids from 0 to {n_rows - 1}, got {ids.min()} to {ids.max()}")
    return ids
