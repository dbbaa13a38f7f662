"""Why a network errs: bias, the luck of its training rows, and the luck of its seed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from qfml.data.dataset import TimeDataset, replaced
from qfml.data.fitted_transforms import FittedTransform
from qfml.engine.fit import Fit
from qfml.engine.member import Member
from qfml.engine.overfitting.rows import checked_rows
from qfml.engine.streams import stream
from qfml.engine.trainer import Trainer
from qfml.engine.unvalidated import check_unvalidated
from qfml.errors import UserError
from qfml.losses import Loss
from qfml.networks import Network


@dataclass(frozen=True, eq=False)
class BiasVariance:
    """Mean squared error of T x S networks (T training sets, S seeds), taken apart.

    `error = bias_squared + variance_rows + variance_seeds`, exactly, in the units of the target squared.

    Attributes:
        error: mean squared error over networks and samples.
        bias_squared: of the mean network. It holds the labels' noise too, unless the target is the true function.
        variance_rows: variance that comes with the training set: of the means over seeds.
        variance_seeds: variance that comes with the seed: around the mean of its training set.
        noise_variance: variance of the labels around their true mean, None if not known.
        n_sets: T.
        n_seeds: S.
    """

    error: float
    bias_squared: float
    variance_rows: float
    variance_seeds: float
    noise_variance: float | None
    n_sets: int
    n_seeds: int

    @property
    def variance(self) -> float:
        """Variance of a single network, from rows and seed."""
        return self.variance_rows + self.variance_seeds

    @property
    def bias_squared_unbiased(self) -> float:
        r"""The squared bias freed of what a finite number of networks adds to it, and of the labels' noise, if known.

        The mean of T sets x S seeds has itself the variance :math:`\hat\sigma_T^2 / T`, where :math:`\hat\sigma_T^2` is
        the variance over T - 1 of the sets' means (with one set, over S - 1 of the seeds, divided by S). It may come
        out below 0.
        """
        noise = self.noise_variance or 0.0
        if self.n_sets > 1:
            return self.bias_squared - self.variance_rows / (self.n_sets - 1) - noise
        return self.bias_squared - self.variance_seeds / (self.n_seeds - 1) - noise


def bias_variance(
    predictions: Float[np.ndarray, "set seed sample"],
    target: Float[np.ndarray, " sample"],
    noise_variance: float | None = None,
) -> BiasVariance:
    r"""The decomposition of the mean squared error of networks trained on T sets with S seeds.

    With predictions :math:`f_{ts}(x)`, their mean over seeds :math:`f_{t\cdot}` and over all :math:`f_{\cdot\cdot}`,
    and means :math:`\langle\cdot\rangle` over samples, sets and seeds:

    .. math::
        \langle (f_{ts} - y)^2 \rangle = \langle (f_{\cdot\cdot} - y)^2 \rangle
        + \langle (f_{t\cdot} - f_{\cdot\cdot})^2 \rangle + \langle (f_{ts} - f_{t\cdot})^2 \rangle

    Args:
        predictions: shape (T, S, n), at least two networks.
        target: (n,) the true function if it is known, else labels, whose noise then counts as bias.
        noise_variance: variance of the labels around their true mean, if it is known.

    Raises:
        ValueError: a single network, or shapes that do not fit.

    References:
        Geman, Bienenstock and Doursat (1992), "Neural Networks and the Bias/Variance Dilemma", eq. 3.5.

    Example:
        >>> found = bias_variance(np.array([[[1.0], [3.0]], [[4.0], [8.0]]]), np.array([3.0]))
        >>> found.error, found.bias_squared, found.variance_rows, found.variance_seeds
        (7.5, 1.0, 4.0, 2.5)
    """
    if predictions.shape[0] * predictions.shape[1] < 2:
        raise UserError("`predictions` are of a single network, which has no variance: train with several seeds")
    if target.shape != predictions.shape[2:]:
        raise UserError(f"`target` must have shape {predictions.shape[2:]} like the samples, got {target.shape}")
    of_set = predictions.mean(axis=1)
    mean = of_set.mean(axis=0)
    return BiasVariance(
        error=float(np.square(predictions - target).mean()),
        bias_squared=float(np.square(mean - target).mean()),
        variance_rows=float(np.square(of_set - mean).mean()),
        variance_seeds=float(np.square(predictions - of_set[:, None]).mean()),
        noise_variance=noise_variance,
        n_sets=predictions.shape[0],
        n_seeds=predictions.shape[1],
    )


def bias_variance_of(
    trainer: Trainer,
    network: Network,
    loss: Loss,
    ds: TimeDataset,
    train: np.ndarray,
    test: np.ndarray,
    *,
    n_seeds: int = 8,
    n_bootstraps: int = 1,
    block: int | None = None,
    seed: int = 0,
    target: np.ndarray | None = None,
    noise_variance: float | None = None,
    transforms: FittedTransform | None = None,
) -> tuple[BiasVariance, list[list[Fit]]]:
    """Train a network with several seeds, on several bootstrap samples of its rows, and take its error apart.

    All networks are members of one stack. The circular block bootstrap draws blocks of consecutive timestamps, so that
    labels that overlap stay together; with `n_bootstraps=1` all networks train on the rows as they are.

    Args:
        trainer: how they are trained, without validation rows.
        network: the specification.
        loss: the training loss; its prediction must be a mean.
        ds: the data.
        train: row ids to train on.
        test: row ids to judge on; purge them from `train` with a splitter.
        n_seeds: S, seeds for each training set.
        n_bootstraps: T, training sets; more than 1 are bootstrap samples.
        block: timestamps of a block of the bootstrap, at least as long as labels overlap; 1 draws timestamps one by
            one. Only with several training sets.
        seed: of the first network, and of the bootstrap.
        target: (len(test),) the true function at the test rows, if it is known; their labels if omitted.
        noise_variance: variance of the labels around their true mean, if it is known.
        transforms: fitted on the training rows, applied to the features.

    Returns:
        The decomposition, and the fits by training set and seed.

    Raises:
        ValueError: a loss whose prediction is no mean, a bootstrap without `block`, rows that are none of the data's or
            are trained on and judged on, other settings that do not fit, or a network that diverged.

    References:
        Politis and Romano (1992), "A Circular Block-Resampling Procedure for Stationary Data", for the bootstrap.
    """
    if loss.predicts != "mean":
        raise UserError(f"`loss` {loss.kind} does not predict a mean, whose squared error could be taken apart")
    _check_counts(n_seeds, n_bootstraps)
    check_unvalidated(trainer, "leave `patience` out")
    train, test = checked_rows("train", train, len(ds)), checked_rows("test", test, len(ds))
    if shared := len(np.intersect1d(train, test)):
        raise UserError(
            f"`test` shares {shared} rows with `train`: a network would be judged on what it was trained on"
        )
    _check_block(block, n_bootstraps, len(np.unique(ds.time[train])))
    truth = ds.y[torch.as_tensor(test)].double().cpu().numpy() if target is None else np.asarray(target, np.float64)
    _check_target(truth, len(test), noise_variance)
    sets = [train]
    if n_bootstraps > 1:
        assert block is not None
        counts = [bootstrap_counts(ds, sets[0], block, seed, number) for number in range(n_bootstraps)]
        ds, sets = repeated(ds, sets[0], counts)
    members = [Member(network, rows, seed=seed + i, transforms=transforms) for rows in sets for i in range(n_seeds)]
    fits = trainer.fit_many(members, loss, ds)
    broken = [(place, fit) for place, fit in enumerate(fits) if fit.status == "nan"]
    if broken:
        place, fit = broken[0]
        raise UserError(
            f"{len(broken)} of {len(fits)} networks diverged, so that there is no error to take apart: seed {fit.seed} "
            f"on training set {place // n_seeds} at {fit.failure}; lower the learning rate or clip the gradient"
        )
    predictions = np.stack([fit.predict(ds, test) for fit in fits]).reshape(len(sets), n_seeds, len(test))
    by_set = [fits[start : start + n_seeds] for start in range(0, len(fits), n_seeds)]
    return bias_variance(predictions, truth, noise_variance), by_set


def _check_counts(n_seeds: int, n_bootstraps: int) -> None:
    for name, value in (("n_seeds", n_seeds), ("n_bootstraps", n_bootstraps)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
            raise UserError(f"`{name}` must be a whole number, at least 1, got {value!r}")
    if n_seeds * n_bootstraps < 2:
        raise UserError("a single network has no variance: set `n_seeds` or `n_bootstraps` to at least 2")


def _check_block(block: int | None, n_bootstraps: int, n_stamps: int) -> None:
    if n_bootstraps == 1:
        if block is not None:
            raise UserError(
                f"`block` is of the bootstrap: set `n_bootstraps` to at least 2, or leave it out, got {block}"
            )
    elif isinstance(block, bool) or not isinstance(block, (int, np.integer)) or not 1 <= block < n_stamps:
        raise UserError(
            f"`block` must be the timestamps of a block of the bootstrap, at least 1 and fewer than the {n_stamps} of "
            f"the training rows, got {block!r}"
        )


def _check_target(target: np.ndarray, n_test: int, noise_variance: float | None) -> None:
    if target.shape != (n_test,) or not bool(np.isfinite(target).all()):
        raise UserError(f"`target` must be {n_test} finite numbers, one for each of `test`, got shape {target.shape}")
    if noise_variance is not None and not 0 <= noise_variance < math.inf:
        raise UserError(f"`noise_variance` must be >= 0 and finite, got {noise_variance}")


def bootstrap_counts(ds: TimeDataset, rows: np.ndarray, block: int, seed: int, number: int) -> np.ndarray:
    """How often each of `rows` is in the bootstrap sample `number`: blocks of timestamps, drawn with replacement."""
    stamps, stamp = np.unique(ds.time[rows], return_inverse=True)
    n_blocks = math.ceil(len(stamps) / block)
    starts = torch.randint(len(stamps), (n_blocks,), generator=stream(seed, "bootstrap", number)).numpy()
    drawn = (starts[:, None] + np.arange(block)).ravel()[: len(stamps)] % len(stamps)
    return np.bincount(drawn, minlength=len(stamps))[stamp]


def repeated(ds: TimeDataset, rows: np.ndarray, counts: list[np.ndarray]) -> tuple[TimeDataset, list[np.ndarray]]:
    """A data set in which row i stands again as i + N, i + 2N, ..., and ids that take each row as often as counted.

    Features are not copied. The samples up to N are those of `ds`.
    """
    n, copies = len(ds), max(int(own.max()) for own in counts)
    index = np.tile(np.arange(n), copies)
    names = ("ends", "y", "time", "label_end", "window_start", "group", "weight", "returns")
    columns = {name: getattr(ds, name) for name in names}
    larger = replaced(ds, **{name: None if column is None else column[index] for name, column in columns.items()})
    return larger, [np.concatenate([rows[own > copy] + copy * n for copy in range(copies)]) for own in counts]
