"""Can the network learn one batch by heart? If not, more data and more epochs will not help."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from qfml.data.dataset import TimeDataset
from qfml.data.fitted_transforms import FittedTransform
from qfml.engine.member import Member
from qfml.engine.overfitting.rows import checked_rows
from qfml.engine.sampling import Shuffled
from qfml.engine.short_run import short_run, step_losses
from qfml.engine.trainer import Trainer
from qfml.errors import UserError
from qfml.losses import Loss
from qfml.networks import Network


@dataclass(frozen=True, eq=False)
class OneBatch:
    """Whether a network can learn one batch by heart.

    Attributes:
        losses: (R, n_steps) loss of the batch before each step, one row a learning rate; nan after it diverged.
        rates: (R,) the learning rates, the trainer's own first.
        constant_loss: lowest loss of a prediction that is the same for all rows.
        tolerance: share of `constant_loss` that counts as zero.
    """

    losses: np.ndarray
    rates: tuple[float, ...]
    constant_loss: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the loss came down to the tolerance at any of the rates."""
        return self.rate is not None

    @property
    def rate(self) -> float | None:
        """The first of the rates at which it did; None if at none."""
        reached = (self.losses <= self.tolerance * self.constant_loss).any(axis=1)
        return self.rates[int(np.argmax(reached))] if reached.any() else None

    @property
    def lowest(self) -> float:
        """The lowest loss of all rates and steps."""
        return float(np.nanmin(self.losses))

    @property
    def verdict(self) -> str:
        """What it means, in a sentence."""
        share = f"{100 * self.lowest / self.constant_loss:.2g} % of what a constant reaches ({self.constant_loss:.3g})"
        if self.rate == self.rates[0]:
            return f"passed: the network learns the batch by heart, to {share}"
        if self.rate is not None:
            return (
                f"passed, but not at the trainer's learning rate {self.rates[0]:g}: at {self.rate:g} the network "
                f"learns the batch by heart, to {share}"
            )
        if np.isnan(self.losses[:, -1]).all():
            return (
                f"failed: the loss diverged at every rate from {min(self.rates):g} to {max(self.rates):g}; lower them"
            )
        return (
            f"failed: after {self.losses.shape[1]} steps the loss of the batch is still {share}; look at the labels, "
            "the scale of features and labels, the capacity of the network, or allow more steps"
        )


def overfit_one_batch(
    trainer: Trainer,
    network: Network,
    loss: Loss,
    ds: TimeDataset,
    rows: np.ndarray,
    *,
    n_steps: int = 1000,
    tolerance: float = 0.01,
    factors: Sequence[float] = (1.0, 0.1, 10.0),
    seed: int = 0,
    transforms: FittedTransform | None = None,
) -> OneBatch:
    """Train on one batch until the network knows it by heart: a check of the whole chain from data to gradient.

    Zero is measured against the best constant prediction, not against the untrained network: a network that has only
    found the mean of large labels has learned nothing of the features. Dropout and weight decay, which forbid what is
    asked for here, are off. Some learning rates are tried beside the trainer's own, all as one stack.

    Args:
        trainer: its optimizer, clipping and precision are used, at a constant learning rate.
        network: the specification.
        loss: a loss whose lowest value is 0: a weighted mean over rows. Labels between two classes have none.
        ds: the data.
        rows: row ids of the batch.
        n_steps: steps to train.
        tolerance: share of the best constant's loss that counts as zero.
        factors: the learning rates as multiples of the trainer's, its own (1.0) first.
        seed: of the network.
        transforms: applied to the features.

    Returns:
        The losses, with `passed` and `verdict`.

    Raises:
        ValueError: a loss without a lowest value of 0, labels that a constant predicts exactly, or wrong settings.

    Example:
        >>> from qfml import MLP, MSE
        >>> from qfml.engine import SGD
        >>> days = np.arange(32)
        >>> X = np.linspace(-1, 1, 32)[:, None]
        >>> ds = TimeDataset(X, np.sign(X[:, 0]), time=days, label_end=days + 1)
        >>> trainer = Trainer(max_epochs=1, batch_size=32)
        >>> check = overfit_one_batch(trainer, MLP(), MSE(), ds, np.arange(32), n_steps=300)
        >>> check.passed
        True
    """
    if not loss.additive:
        raise UserError(f"`{loss.kind}` has no lowest value of 0 that a network could reach on one batch")
    rows = checked_rows("rows", rows, len(ds))
    if loss.predicts in ("probability", "class_probabilities") and bool((ds.y[rows] != ds.y[rows].round()).any()):
        raise UserError(f"`{loss.kind}` of labels between two classes cannot come down to 0: take labels 0 and 1")
    if not 0 < tolerance < 1:
        raise UserError(f"`tolerance` must be a share between 0 and 1, got {tolerance}")
    if not factors or factors[0] != 1.0 or min(factors) <= 0:
        raise UserError(f"`factors` must be positive and begin with 1.0, the trainer's own rate, got {factors}")
    if n_steps < 1:
        raise UserError(f"`n_steps` must be at least 1, got {n_steps}")
    constant = constant_loss(loss, ds, rows)
    if constant == 0:
        raise UserError("the labels of `rows` are predicted exactly by a constant: take rows whose labels differ")
    rates = tuple(trainer.optimizer.lr * factor for factor in factors)
    bare = _without_dropout(network)
    members = [Member(bare, rows, seed=seed, lr=lr, weight_decay=0.0, transforms=transforms) for lr in rates]
    whole_batch = short_run(trainer, n_steps, batch_size=None, sampler=Shuffled())
    losses, failures = step_losses(whole_batch, members, loss, ds, n_steps)
    if np.isnan(losses[:, 0]).all():
        raise UserError(f"the batch cannot be learned: its loss or gradient is not finite at once, {failures[0]}")
    return OneBatch(losses, rates, constant, tolerance)


def constant_loss(loss: Loss, ds: TimeDataset, rows: np.ndarray) -> float:
    """The lowest loss on `rows` of outputs that do not depend on the features, by L-BFGS from zero in float64."""
    index = torch.as_tensor(rows, device=ds.y.device)
    y = ds.y[index].double()[None]
    weight = torch.ones_like(y) if ds.weight is None else ds.weight[index].double()[None]
    shape = () if loss.n_outputs == 1 else (loss.n_outputs,)
    # a median or quantile is a kink, at which a line search may stall: begin at each decile of the labels
    starts = torch.quantile(y[0], torch.linspace(0, 1, 11, dtype=torch.float64, device=y.device))
    if loss.predicts in ("probability", "class_probabilities"):
        starts = torch.zeros(1, dtype=torch.float64, device=y.device)
    return min(_minimum(loss, y, weight, start.expand(shape)) for start in starts)


def _minimum(loss: Loss, y: Tensor, weight: Tensor, start: Tensor) -> float:
    constant = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([constant], max_iter=100, line_search_fn="strong_wolfe")
    lowest = float("inf")

    def closure() -> Tensor:
        nonlocal lowest
        optimizer.zero_grad()
        value = loss(constant.expand(*y.shape, *constant.shape), y, weight).sum()
        value.backward()
        lowest = min(lowest, float(value.detach()))
        return value

    optimizer.step(closure)  # pyright: ignore[reportArgumentType]
    return lowest


def _without_dropout(network: Network) -> Network:
    if not network.dropout_units:
        return network
    if "dropout" not in {field.name for field in fields(network)}:  # pyright: ignore[reportArgumentType]
        raise UserError(f"`network` {network.kind} drops units and has no field `dropout` to turn that off")
    return replace(network, dropout=0.0)  # pyright: ignore[reportArgumentType, reportCallIssue]
