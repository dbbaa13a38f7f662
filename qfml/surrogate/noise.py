"""How noisy simulated labels are, place by place: what the weights of a surrogate's training are made of."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingRegressor
from torch import Tensor

N_TREES, LEAF = 60, 40  # rows of a leaf: enough that a row's own variance hardly moves what is found there
LEAST = 1e-4  # of the median: paths that all end worthless tell a variance of 0


def smoothed_variance(features: Tensor, variance: Tensor) -> Tensor:
    """The typical variance (N,) of the labels at each place, from the neighbours' estimates and hardly from the own.

    A label's own standard error comes from the paths that made the label: where none of few paths reached the payoff
    both are 0. Weighted by their own errors such labels count most, and what is learnt is too low. What neighbours
    tell does not depend on the label's luck.

    Args:
        features: coordinates of the labels (N, F).
        variance: squares of their standard errors (N,), 0 or more.

    Returns:
        Positive variances: the exponential of a regression of the logarithm by boosted trees.

    Example:
        >>> place = torch.linspace(0.0, 1.0, 4000, dtype=torch.float64)
        >>> luck = torch.rand(4000, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.5
        >>> found = smoothed_variance(place[:, None], 0.04 * (1 + place) * luck)
        >>> bool(((found / (0.04 * (1 + place)) - 1.0).abs() < 0.25).all())  # the luck of one is between .5 and 1.5
        True
    """
    if len(variance) < 2 * LEAF:
        return variance.mean().clamp_min(torch.finfo(variance.dtype).tiny).expand_as(variance)
    floor = LEAST * float(variance.median()) or LEAST * float(variance.mean()) or torch.finfo(variance.dtype).tiny
    trees = HistGradientBoostingRegressor(
        loss="absolute_error",
        max_iter=N_TREES,
        min_samples_leaf=LEAF,
        early_stopping=False,  # pyright: ignore[reportArgumentType]  (the stubs know its default "auto" alone)
        random_state=0,
    )
    trees.fit(features.numpy(), np.log(variance.numpy() + floor))
    return torch.from_numpy(np.exp(trees.predict(features.numpy()))).to(variance)
