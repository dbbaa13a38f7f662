"""How sure a network is of a prediction: dropout left on, or an ensemble of seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from qfml.data.dataset import TimeDataset, gather_windows
from qfml.engine.fit import Fit
from qfml.engine.inputs import ROWS_AT_A_TIME
from qfml.engine.streams import stream
from qfml.errors import UserError
from qfml.networks import Dropout

_ELEMENTS = 2**24  # of one layer's outputs in one forward pass
Noise = float | np.ndarray


@dataclass(frozen=True, eq=False)
class Uncertainty:
    """A predictive distribution, by the law of total variance.

    Attributes:
        mean: mean over the draws (networks), shape (n,), or (n, K) where a prediction has K numbers.
        epistemic: variance of the draws' predictions around it: what more training data would remove.
        aleatoric: mean over the draws of the label's variance around a prediction; None where it is not known.
        n_draws: D, how many draws there are.
    """

    mean: np.ndarray
    epistemic: np.ndarray
    aleatoric: np.ndarray | None
    n_draws: int

    @property
    def std(self) -> np.ndarray:
        """Standard deviation of the predictions over the draws."""
        return np.sqrt(self.epistemic)

    @property
    def std_error(self) -> np.ndarray:
        """Standard error of `mean` from the finite number of draws."""
        return np.sqrt(self.epistemic / self.n_draws)

    @property
    def total_std(self) -> np.ndarray:
        """Standard deviation of the label around `mean`: the root of epistemic plus aleatoric variance."""
        if self.aleatoric is None:
            raise UserError("the label's own variance is not known: pass `noise_variance`")
        return np.sqrt(self.epistemic + self.aleatoric)


def total_variance(means: np.ndarray, variances: np.ndarray | None) -> Uncertainty:
    r"""The law of total variance :math:`V[y] = V[E[y|d]] + E[V[y|d]]` over draws d.

    The variance of the draws' means is the unbiased one, over D - 1.

    Args:
        means: E[y | d] of each of D draws, shape (D, n) or (D, n, K).
        variances: V[y | d], of the same shape; None if not known.

    Raises:
        ValueError: fewer than two draws.

    Example:
        >>> found = total_variance(np.array([[1.0], [3.0]]), np.array([[0.5], [1.5]]))
        >>> found.mean, found.epistemic, found.aleatoric
        (array([2.]), array([2.]), array([1.]))
    """
    if len(means) < 2:
        raise UserError(f"a variance needs at least 2 draws, got {len(means)}")
    aleatoric = None if variances is None else variances.mean(axis=0)
    return Uncertainty(means.mean(axis=0), means.var(axis=0, ddof=1), aleatoric, len(means))


def ensemble(
    fits: Sequence[Fit], ds: TimeDataset, rows: np.ndarray | None = None, *, noise_variance: Noise | None = None
) -> Uncertainty:
    """Mean and uncertainty over fits that differ by their seed (or by their training rows).

    Args:
        fits: two or more, of one loss.
        ds: the data.
        rows: samples to predict; all of them if omitted.
        noise_variance: variance of a label around its true mean, one number or one a row. A probability of classes
            brings its own, p (1 - p).

    Raises:
        ValueError: fewer than two fits, fits of different losses, or a negative `noise_variance`.

    References:
        Lakshminarayanan, Pritzel and Blundell (2017), "Simple and Scalable Predictive Uncertainty Estimation using Deep
        Ensembles", section 2.4.
    """
    if len(fits) < 2:
        raise UserError(f"`fits` must be two or more, got {len(fits)}: a single network does not disagree with itself")
    if len({fit.loss for fit in fits}) > 1:
        raise UserError("`fits` were trained with different losses, whose predictions mean different things")
    means = np.stack([fit.predict(ds, rows) for fit in fits])
    return total_variance(means, _variances(fits[0], means, noise_variance))


def mc_dropout(
    fit: Fit,
    ds: TimeDataset,
    rows: np.ndarray | None = None,
    *,
    n_draws: int = 100,
    seed: int = 0,
    noise_variance: Noise | None = None,
) -> Uncertainty:
    """Mean and uncertainty of a network with its dropout left on: Monte Carlo dropout.

    A draw is one thinned network: its masks are drawn once, from a stream named by the seed and the draw, and are the
    same for all rows. What is found for a row does not depend on the other rows, nor on the number of draws computed at
    a time.

    Args:
        fit: of a network that was trained with dropout.
        ds: the data.
        rows: samples to predict; all of them if omitted.
        n_draws: D, at least 2.
        seed: names the streams of the masks.
        noise_variance: as for `ensemble`; in the paper it is the inverse of the model precision tau.

    Raises:
        ValueError: a network without dropout, fewer than two draws, or a negative `noise_variance`.

    References:
        Gal and Ghahramani (2016), "Dropout as a Bayesian Approximation: Representing Model Uncertainty in Deep
        Learning", eqs. 6 and 7.
    """
    means = dropout_draws(fit, ds, rows, n_draws=n_draws, seed=seed)
    return total_variance(means, _variances(fit, means, noise_variance))


def dropout_draws(
    fit: Fit, ds: TimeDataset, rows: np.ndarray | None = None, *, n_draws: int = 100, seed: int = 0
) -> np.ndarray:
    """The predictions of D thinned networks, float64 of shape (D, n) or (D, n, K); arguments as for `mc_dropout`."""
    units = fit.network.dropout_units
    if not units:
        raise UserError("`fit` is of a network without dropout: train one with `dropout` > 0, or use an ensemble")
    if isinstance(n_draws, bool) or not isinstance(n_draws, (int, np.integer)) or n_draws < 2:
        raise UserError(f"`n_draws` must be a whole number, at least 2, got {n_draws!r}")
    masks = torch.stack([_mask(units, seed, draw) for draw in range(n_draws)])
    at_a_time = max(1, _ELEMENTS // (ROWS_AT_A_TIME * units * (ds.window or 1)))
    features = ds.features if fit.transforms is None else fit.transforms.apply(ds.features)
    ends = ds.ends if rows is None else ds.ends[torch.as_tensor(rows)]
    if not len(ends):
        shape = () if fit.loss.n_outputs == 1 else (fit.loss.n_outputs,)
        return np.empty((n_draws, 0, *shape))
    draws = []
    with torch.no_grad():
        for own in masks.to(features.device).split(at_a_time):
            flat = fit.parameters.to(features.device).expand(len(own), -1).contiguous()
            views = fit.layout.views(flat)
            outputs = []
            for chunk in ends.split(ROWS_AT_A_TIME):
                full = torch.cat([chunk, chunk[:1].expand(ROWS_AT_A_TIME - len(chunk))])
                x = gather_windows(features, full, ds.window)
                dropout = Dropout(own[:, None].expand(-1, ROWS_AT_A_TIME, -1))
                output = fit.network.forward(views, x.expand(len(own), *x.shape), dropout)
                outputs.append(fit.loss.prediction(output)[:, : len(chunk)].cpu())
            draws.append(torch.cat(outputs, dim=1))
    return torch.cat(draws).double().numpy()


def _mask(units: int, seed: int, draw: int) -> torch.Tensor:
    return torch.empty(units, dtype=torch.uint8).random_(generator=stream(seed, "mc_dropout", draw))


def _variances(fit: Fit, means: np.ndarray, noise_variance: Noise | None) -> np.ndarray | None:
    """The label's variance around each draw's prediction."""
    if noise_variance is not None:
        noise = np.asarray(noise_variance, dtype=np.float64)
        if fit.loss.predicts != "mean":
            raise UserError(f"`noise_variance` is for predictions of a mean, those of `{fit.loss.kind}` are none")
        if noise.shape not in ((), means.shape[1:]) or not bool((noise >= 0).all()):
            raise UserError(f"`noise_variance` must be >= 0, one number or one for each of {means.shape[1]} rows")
        return np.broadcast_to(noise, means.shape)
    if fit.loss.predicts in ("probability", "class_probabilities"):
        return means * (1 - means)  # of an indicator
    return None
