"""Learning curve and validation curve over purged splits: all sizes or values, folds and seeds as one stack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np
import polars as pl
import torch

from qfml.data.dataset import TimeDataset
from qfml.data.transforms import FittedTransforms, Transform, fit_transforms
from qfml.engine.fit import Fit
from qfml.engine.inputs import Inputs, time_order
from qfml.engine.member import Member
from qfml.engine.monitor import KNOWN, check_metrics
from qfml.engine.trainer import Trainer
from qfml.engine.unvalidated import check_unvalidated
from qfml.engine.validation import validated
from qfml.errors import UserError
from qfml.losses import Loss
from qfml.networks import Network
from qfml.splits.base import Splitter
from qfml.splits.validation import validation_tail

KEEP = ("oldest", "newest")
OF_MEMBER = ("lr", "weight_decay", "clip_norm", "patience")
BLUE, RED = "#0072B2", "#D55E00"  # told apart by the colour-blind (Okabe and Ito)
_CELLS = 2**22  # rows times members that are scored at a time


@dataclass(frozen=True, eq=False)
class ScoreCurve:
    """Scores on training and test rows, for K sizes or values, F folds and S seeds.

    Attributes:
        name: what varies: "training rows", or the hyperparameter.
        values: (K,) of it; for a learning curve the sizes as they were asked for.
        n_rows: (K, F) rows that were trained on.
        train: (K, F, S) score on the rows that were trained on.
        test: (K, F, S) score on the fold's test rows.
        status: (K, F, S) of the fits, such as "finished" or "nan".
        metric: what the scores are.
    """

    name: str
    values: tuple[Any, ...]
    n_rows: np.ndarray
    train: np.ndarray
    test: np.ndarray
    status: np.ndarray
    metric: str

    def mean(self, of: str = "test") -> np.ndarray:
        """Mean score over folds and seeds (K,), of "test" or "train"."""
        return self._of(of).mean(axis=(1, 2))

    def std_over_folds(self, of: str = "test") -> np.ndarray:
        """Standard deviation over the folds of the mean over seeds (K,); nan with one fold."""
        return _std(self._of(of).mean(axis=2))

    def std_over_seeds(self, of: str = "test") -> np.ndarray:
        """Standard deviation over the seeds of a fold, root mean square over the folds (K,); nan with one seed."""
        scores = self._of(of)
        return np.sqrt(np.square(np.stack([_std(scores[:, fold]) for fold in range(scores.shape[1])])).mean(axis=0))

    def frame(self) -> pl.DataFrame:
        """One row a fit: `value`, `fold`, `seed`, `n_rows`, `train`, `test`, `status`."""
        value, fold, seed = (axis.ravel() for axis in np.indices(self.test.shape))
        values = _column(self.values)
        return pl.DataFrame(
            {
                "value": [values[i] for i in value],
                "fold": fold,
                "seed": seed,
                "n_rows": self.n_rows[value, fold],
                "train": self.train.ravel(),
                "test": self.test.ravel(),
                "status": self.status.ravel().tolist(),
            }
        )

    def plot(self, ax: Any = None) -> Any:
        """Draw both means, the spread over folds as bands and that over seeds as bars. Returns the axes."""
        if ax is None:
            from matplotlib import pyplot as plt  # slow to import and seldom needed

            _, ax = plt.subplots(figsize=(7, 4.5), layout="constrained")
        x, numeric = self._places()
        for of, colour in (("train", BLUE), ("test", RED)):
            mean, folds = self.mean(of), np.nan_to_num(self.std_over_folds(of))
            seeds = np.nan_to_num(self.std_over_seeds(of))
            ax.fill_between(x, mean - folds, mean + folds, color=colour, alpha=0.15, linewidth=0)
            ax.errorbar(x, mean, yerr=seeds, color=colour, marker="o", capsize=3, label=of)
        if not numeric:
            ax.set_xticks(x, [str(value) for value in self.values])
        elif bool((x > 0).all()) and x.max() >= 50 * x.min():
            ax.set_xscale("log")
        n_failed = int((self.status == "nan").sum())
        title = "band: folds, bars: seeds (one standard deviation)"
        ax.set_title(title + (f"; {n_failed} fits diverged" if n_failed else ""), fontsize="medium")
        ax.set(xlabel=self.name, ylabel=self.metric)
        ax.legend(frameon=False)
        return ax

    def _of(self, of: str) -> np.ndarray:
        if of not in ("train", "test"):
            raise UserError(f"`of` must be train or test, got {of!r}")
        return self.train if of == "train" else self.test

    def _places(self) -> tuple[np.ndarray, bool]:
        """Where the values stand on the axis, and whether they are numbers."""
        if self.name == "training rows":
            return self.n_rows.mean(axis=1), True
        numbers = _numbers(self.values)
        return np.array(self.values if numbers else range(len(self.values)), dtype=np.float64), numbers


def learning_curve(
    trainer: Trainer,
    network: Network,
    loss: Loss,
    ds: TimeDataset,
    splitter: Splitter,
    *,
    sizes: Sequence[float] = (0.1, 0.2, 0.4, 0.7, 1.0),
    keep: str = "newest",
    n_seeds: int = 3,
    seed: int = 0,
    metric: str | None = None,
    validation: float = 0.0,
    transforms: Sequence[Transform] = (),
) -> ScoreCurve:
    """Score against the number of training rows: would more data help?

    Of each fold's purged training rows nested subsets are taken, whole timestamps at a time. All sizes, folds and seeds
    are members of one `fit_many`.

    Args:
        trainer: how each network is trained.
        network: the specification.
        loss: the training loss.
        ds: the data.
        splitter: one of `qfml.splits`; its purge and embargo hold for every subset.
        sizes: shares (floats up to 1.0) or numbers (ints) of a fold's training timestamps, ascending.
        keep: "newest" takes the last timestamps, as one would in production; "oldest" the first, as they came in.
        n_seeds: networks for each size and fold.
        seed: of the first of them; the others follow by one.
        metric: one of the trainer's metrics (r2, rank_ic, ...); the loss if omitted.
        validation: share of a subset's timestamps kept back, purged, for early stopping and the best epoch; 0 for none.
        transforms: fitted on a subset's training rows only.

    Returns:
        The scores, with `plot()` and `frame()`.

    Raises:
        ValueError: sizes, a metric or settings that do not fit.

    References:
        Hastie, Tibshirani and Friedman (2009), "The Elements of Statistical Learning", section 7.10.1 and figure 7.8.
    """
    if keep not in KEEP:
        raise UserError(f"`keep` must be oldest or newest, got {keep!r}")
    _check(sizes, "sizes", metric, n_seeds, loss)
    if not validation:
        check_unvalidated(trainer, "set `validation`, such as 0.2")
    folds = [(train, test) for train, test in splitter.split(ds)]
    cells, rows = [], []
    for size in sizes:
        for train, test in folds:
            own = nested(ds, train, size, keep)
            rows.append((own, test))
            cells.append(_members(ds, network, own, validation, transforms, range(seed, seed + n_seeds)))
    fits = trainer.fit_many([member for cell in cells for member in cell], loss, ds)
    shape = (len(sizes), len(folds), n_seeds)
    return _curve("training rows", tuple(sizes), shape, fits, cells, [test for _, test in rows], ds, metric)


def validation_curve(
    trainer: Trainer,
    network: Network,
    loss: Loss,
    ds: TimeDataset,
    splitter: Splitter,
    *,
    parameter: str,
    values: Sequence[Any],
    n_seeds: int = 3,
    seed: int = 0,
    metric: str | None = None,
    validation: float = 0.0,
    transforms: Sequence[Transform] = (),
) -> ScoreCurve:
    """Score against one hyperparameter: where does the network underfit, and where does it overfit?

    All values, folds and seeds are members of one `fit_many`; a `trainer.` setting is not a member's own and takes one
    for each value.

    Args:
        trainer: how each network is trained.
        network: the specification.
        loss: the training loss.
        ds: the data.
        splitter: one of `qfml.splits`.
        parameter: "lr", "weight_decay", "clip_norm" or "patience"; "network." and a field of the network
            (network.dropout); or "trainer." and a field of the trainer (trainer.max_epochs).
        values: what it takes, in the order of the curve.
        n_seeds: networks for each value and fold.
        seed: of the first of them; the others follow by one.
        metric: one of the trainer's metrics (r2, rank_ic, ...); the loss if omitted.
        validation: share of a fold's training timestamps kept back, purged, for early stopping; 0 for none.
        transforms: fitted on a fold's training rows only.

    Returns:
        The scores, with `plot()` and `frame()`.

    Raises:
        ValueError: a parameter that is none, or settings that do not fit.
    """
    _check(values, "values", metric, n_seeds, loss)
    if not validation:
        waits = parameter.rpartition(".")[2] == "patience" and any(value is not None for value in values)
        check_unvalidated(trainer, "set `validation`, such as 0.2", own_patience=waits)
    folds = [(train, test) for train, test in splitter.split(ds)]
    seeds = range(seed, seed + n_seeds)
    plain = [_members(ds, network, train, validation, transforms, seeds) for train, _ in folds]
    settled = [_settled(trainer, network, parameter, value) for value in values]
    cells = [
        [replace(member, network=own_network, **own) for member in cell]
        for _, own_network, own in settled
        for cell in plain
    ]
    fits: list[Fit] = []
    if parameter.startswith("trainer."):
        for (own_trainer, _, _), start in zip(settled, range(0, len(cells), len(folds)), strict=True):
            fits += own_trainer.fit_many([m for cell in cells[start : start + len(folds)] for m in cell], loss, ds)
    else:
        fits = trainer.fit_many([member for cell in cells for member in cell], loss, ds)
    shape = (len(values), len(folds), n_seeds)
    return _curve(parameter, tuple(values), shape, fits, cells, [test for _, test in folds] * len(values), ds, metric)


def nested(ds: TimeDataset, rows: np.ndarray, size: float, keep: str) -> np.ndarray:
    """The oldest or newest timestamps of `rows`: a share (float) or a number (int) of them, at least one.

    Example:
        >>> days = np.arange(6)
        >>> ds = TimeDataset(np.ones((6, 1)), np.zeros(6), time=days, label_end=days + 1)
        >>> nested(ds, np.arange(5), 0.4, "newest"), nested(ds, np.arange(5), 3, "oldest")
        (array([3, 4]), array([0, 1, 2]))
    """
    stamps = np.unique(ds.time[rows])
    count = size if isinstance(size, (int, np.integer)) else max(1, round(size * len(stamps)))
    if count > len(stamps):
        raise UserError(f"`sizes` asks for {count} timestamps of a fold that has {len(stamps)}: take fewer, or shares")
    if keep == "oldest":
        return rows[ds.time[rows] <= stamps[count - 1]]
    return rows[ds.time[rows] >= stamps[len(stamps) - count]]


def scores(fits: Sequence[Fit], rows: Sequence[np.ndarray], ds: TimeDataset, metric: str | None) -> np.ndarray:
    """The loss or a metric of each fit on its own rows (len(fits),), by stacks of one architecture."""
    found = np.full(len(fits), np.nan)
    alike: dict[Any, list[int]] = {}
    for place, fit in enumerate(fits):
        alike.setdefault((fit.network, fit.layout, fit.loss), []).append(place)
    names, key = ((), "val_loss") if metric is None else ((metric,), f"val_{metric}")
    for (network, layout, loss), places in alike.items():
        at_a_time = max(1, _CELLS // max(len(rows[place]) for place in places))
        for start in range(0, len(places), at_a_time):
            group = places[start : start + at_a_time]
            parameters = torch.stack([fits[place].parameters for place in group]).to(ds.y.device)
            inputs = Inputs(ds, [fits[place].transforms for place in group])
            chosen = {i: time_order(ds, rows[place]) for i, place in enumerate(group)}
            records = validated(network, loss, ds, inputs, layout, parameters, chosen, names)
            for i, place in enumerate(group):
                found[place] = records[i][key]
    return found


def _members(
    ds: TimeDataset,
    network: Network,
    rows: np.ndarray,
    validation: float,
    transforms: Sequence[Transform],
    seeds: Sequence[int],
) -> list[Member]:
    """The seeds of one training set; scalers see its training rows only."""
    train, val = rows, None
    if validation:
        fold = validation_tail(ds, rows, validation)
        train, val = fold.train, fold.test
    fitted: FittedTransforms | None = None
    if transforms:
        fitted = fit_transforms(transforms, ds.feature_rows(train), ds.feature_names)
    return [Member(network, train, val, seed=seed, transforms=fitted) for seed in seeds]


def _settled(trainer: Trainer, network: Network, parameter: str, value: Any) -> tuple[Trainer, Network, dict[str, Any]]:
    """Trainer, network and the member's own settings with the parameter at `value`."""
    place, _, name = parameter.rpartition(".")
    if place == "" and name in OF_MEMBER:
        return trainer, network, {name: value}
    if place == "network" and name in _names(network):
        return trainer, replace(network, **{name: value}), {}  # pyright: ignore[reportArgumentType]
    if place == "trainer" and name in _names(trainer):
        return replace(trainer, **{name: value}), network, {}
    raise UserError(
        f"`parameter` must be {', '.join(OF_MEMBER)}, or network. and one of {', '.join(_names(network)) or 'none'}, "
        f"or trainer. and one of {', '.join(_names(trainer))}; got {parameter!r}"
    )


def _names(component: Any) -> list[str]:
    return [field.name for field in fields(component)] if is_dataclass(component) else []  # a module has none


def _curve(
    name: str,
    values: tuple[Any, ...],
    shape: tuple[int, int, int],
    fits: Sequence[Fit],
    cells: Sequence[Sequence[Member]],
    tests: Sequence[np.ndarray],
    ds: TimeDataset,
    metric: str | None,
) -> ScoreCurve:
    members = [member for cell in cells for member in cell]
    train = scores(fits, [member.train for member in members], ds, metric)
    test = scores(fits, [rows for rows, cell in zip(tests, cells, strict=True) for _ in cell], ds, metric)
    return ScoreCurve(
        name=name,
        values=values,
        n_rows=np.array([len(cell[0].train) for cell in cells]).reshape(shape[:2]),
        train=train.reshape(shape),
        test=test.reshape(shape),
        status=np.array([fit.status for fit in fits]).reshape(shape),
        metric=metric or fits[0].loss.kind,
    )


def _check(values: Sequence[Any], name: str, metric: str | None, n_seeds: int, loss: Loss) -> None:
    if len(values) == 0:
        raise UserError(f"`{name}` is empty: a curve needs points")
    if name == "sizes":
        whole = [isinstance(value, (int, np.integer)) and not isinstance(value, bool) for value in values]
        shares = [isinstance(value, float) and 0 < value <= 1 for value in values]
        if not ((all(whole) and min(values) >= 1) or all(shares)) or list(values) != sorted(set(values)):
            raise UserError(f"`sizes` must be shares in (0.0, 1.0] or whole numbers >= 1, ascending, got {values}")
    if metric is not None and metric not in KNOWN:
        raise UserError(f"`metric` must be one of {', '.join(KNOWN)}, or None for the loss, got {metric!r}")
    check_metrics(() if metric is None else (metric,), loss)
    if isinstance(n_seeds, bool) or not isinstance(n_seeds, (int, np.integer)) or n_seeds < 1:
        raise UserError(f"`n_seeds` must be a whole number, at least 1, got {n_seeds!r}")


def _std(values: np.ndarray) -> np.ndarray:
    """Over the last axis; nan where there is one value only."""
    return values.std(axis=-1, ddof=1) if values.shape[-1] > 1 else np.full(len(values), np.nan)


def _numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(value, (int, float, np.number)) and not isinstance(value, bool) for value in values)


def _column(values: Sequence[Any]) -> list[Any]:
    """The values as they may stand in one column: whole numbers, numbers, or texts of anything else."""
    if not _numbers(values):
        return [value if isinstance(value, str) else str(value) for value in values]
    whole = all(isinstance(value, (int, np.integer)) for value in values)
    return [int(value) if whole else float(value) for value in values]
