"""Differential learning: a network learns a function from its values and its derivatives."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from qfml.errors import UserError
from qfml.losses.base import Additive, Rows


@dataclass(frozen=True)
class Twin(Additive):
    r"""Squared error of the value and of its derivatives in the n features, each in units of its own size.

    .. math:: \frac{1}{1 + \lambda n} \frac{(f - y)^2}{s^2}
        + \frac{\lambda n}{1 + \lambda n}\, \frac1n \sum_{j=1}^n \frac{(\partial_j f - \partial_j y)^2}{s_j^2}

    The derivatives of y are the data's `label_gradient`, in the features that the network sees. `Twin.of(ds, train)`
    takes the sizes from training rows. Where the data have a `label_gradient_weight`, it multiplies the squared error
    of each derivative: one over its variance, for simulated ones. In windows (L, F) the n features are those of all
    rows, oldest row first.

    Args:
        label_scale: s, the standard deviation of the label, in its unit.
        gradient_scale: s_j, the root mean square of the label's derivative in each feature.
        balance: :math:`\lambda`, what one derivative counts beside the value; 1 lets each count as much as the value.

    References:
        Huge and Savine (2020), "Differential Machine Learning", section 2.

    Example:
        >>> loss = Twin(label_scale=1.0, gradient_scale=(1.0, 2.0))
        >>> value_and_slopes, truth = torch.tensor([[[1.0, 0.0, 2.0]]]), torch.zeros(1, 1, 3)
        >>> loss(value_and_slopes, truth, torch.ones(1, 1))  # (1 + 0 + 1) / 3
        tensor([0.6667])
    """

    kind: ClassVar[str] = "twin"
    differential: ClassVar[bool] = True
    label_scale: float
    gradient_scale: tuple[float, ...]
    balance: float = 1.0

    def __post_init__(self) -> None:
        for name, values in (("label_scale", (self.label_scale,)), ("gradient_scale", self.gradient_scale)):
            if not values or not all(0 < value < math.inf for value in values):
                raise UserError(f"`{name}` must be positive and finite, got {getattr(self, name)}: see `Twin.of`")
        if not 0 < self.balance < math.inf:
            raise UserError(f"`balance` must be positive and finite, got {self.balance}; mse learns from values alone")

    @classmethod
    def of(cls, ds: Any, rows: np.ndarray, balance: float = 1.0) -> Twin:
        """The loss whose sizes are those of the samples `rows` (training rows) of `ds`, a `TimeDataset`.

        Raises:
            UserError: without a `label_gradient`, or where the label or one of its derivatives does not vary.
        """
        if ds.label_gradient is None:
            raise UserError("`ds` has no `label_gradient`, from which a twin loss learns: give it one, or take mse")
        index = torch.as_tensor(rows, device=ds.y.device)
        label_scale = float(ds.y[index].double().std())
        square = ds.label_gradient[index].flatten(1).double().square()
        if ds.label_gradient_weight is None:
            size = square.mean(0).sqrt()
        else:
            share = ds.label_gradient_weight[index].flatten(1).double()
            size = ((square * share).sum(0) / share.sum(0)).nan_to_num(0.0).sqrt()
        if not label_scale > 0:
            raise UserError(f"the label of the {len(index)} `rows` does not vary: there is nothing to learn")
        if bool((size == 0).any()):
            raise UserError(
                f"the label's derivative in feature {int((size == 0).nonzero()[0])} is 0 on all `rows`: leave the "
                "feature out, the label does not depend on it"
            )
        return cls(label_scale, tuple(size.tolist()), balance)

    def rows(self, output: Tensor, y: Tensor) -> Rows:
        """The error of each row.

        Args:
            output: (M, B, 1 + n), the value, then its n derivatives.
            y: the same, then the n weights of the derivatives if they have any, (M, B, 1 + 2 n).
        """
        weight = _weights(self, output.dtype, output.device)
        n_known = output.shape[-1]
        square = (output - y[..., :n_known]).square() * weight
        if y.shape[-1] == n_known:
            return square.sum(-1)
        return square[..., 0] + (square[..., 1:] * y[..., n_known:]).sum(-1)

    def prediction(self, output: Tensor) -> Tensor:
        """The value."""
        return output

    def check_labels(self, y: Tensor) -> None:
        """Any finite label will do."""


@lru_cache(maxsize=64)
def _weights(loss: Twin, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What the squared errors of the value and of each derivative count; they depend on the settings alone."""
    total = 1 + loss.balance * len(loss.gradient_scale)
    weights = [1 / loss.label_scale**2, *(loss.balance / size**2 for size in loss.gradient_scale)]
    return torch.tensor(weights, dtype=torch.float64).div(total).to(device, dtype)
