"""Finders: which learning rate a network trains with, and how large a batch fits and pays."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from qfml.data.dataset import TimeDataset
from qfml.data.fitted_transforms import FittedTransform
from qfml.engine.callbacks import Callback
from qfml.engine.member import Member
from qfml.engine.optimizers import SGD
from qfml.engine.short_run import short_run, step_losses
from qfml.engine.tensor_memory import TensorMemory
from qfml.engine.trainer import Trainer
from qfml.errors import UserError
from qfml.losses import Loss
from qfml.networks import Network

_NO_RATE = 1e-30  # moves no weight by a bit: the untrained network
BLUE, RED, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#999999"  # told apart by the colour-blind (Okabe and Ito)


@dataclass(frozen=True, eq=False)
class RateCurve:
    """What `find_lr` found: the training loss after a number of steps, at each learning rate.

    Attributes:
        rates: (R,) learning rates, ascending.
        losses: (R, S) loss of each rate and seed over its last steps; nan where it diverged.
        untrained: (S,) loss of the same steps at a learning rate of 0.
        n_steps: steps that each member trained.
    """

    rates: np.ndarray
    losses: np.ndarray
    untrained: np.ndarray
    n_steps: int

    @property
    def mean(self) -> np.ndarray:
        """Mean loss over the seeds (R,); nan where one of them diverged."""
        return self.losses.mean(axis=1)

    @property
    def std_error(self) -> np.ndarray:
        """Standard error of the mean over the seeds (R,); nan with a single seed."""
        n_seeds = self.losses.shape[1]
        return self.losses.std(axis=1, ddof=1) / math.sqrt(n_seeds) if n_seeds > 1 else np.full(len(self.rates), np.nan)

    @property
    def lowest(self) -> float:
        """The rate of the lowest mean loss."""
        return float(self.rates[_lowest(self.losses)])

    @property
    def diverges(self) -> float | None:
        """The first rate above `lowest` at which a seed ends above its untrained loss; None if there is none."""
        return _rate(self.rates, _diverges(self.losses, self.untrained))

    @property
    def steepest(self) -> float:
        """The rate at which the mean loss falls fastest in the logarithm of the rate, up to `lowest`."""
        return float(self.rates[steepest_descent(self.rates, self.mean)])

    @property
    def suggestion(self) -> float:
        """The smallest rate that does as well as `lowest`, by `smallest_as_good`."""
        return float(self.rates[smallest_as_good(self.losses)])

    def plot(self, ax: Any = None) -> Any:
        """Draw loss against rate with the spread over seeds, and the rates found. Returns the axes."""
        ax = _axes(ax)
        mean, spread = self.mean, np.nan_to_num(self.std_error)
        start = float(self.untrained.mean())
        ax.fill_between(self.rates, mean - spread, mean + spread, color=BLUE, alpha=0.25, linewidth=0)
        ax.plot(self.rates, mean, color=BLUE, marker=".", label=f"loss after {self.n_steps} steps")
        ax.axhline(start, color=GREY, linestyle="--", label="untrained")
        ax.axvline(self.suggestion, color=GREEN, label=f"suggestion {self.suggestion:.2g}")
        ax.axvline(self.steepest, color=GREY, linestyle=":", label=f"steepest {self.steepest:.2g}")
        if self.diverges is not None:
            ax.axvspan(self.diverges, self.rates[-1], color=RED, alpha=0.1, label=f"diverges from {self.diverges:.2g}")
        low = float(np.nanmin(mean))
        span = max(start - low, 1e-12)
        ax.set_ylim(low - 0.1 * span, start + 0.5 * span)  # what diverges would hide the rest
        ax.set(xscale="log", xlim=(self.rates[0], self.rates[-1]), xlabel="learning rate", ylabel="training loss")
        ax.legend(frameon=False)
        return ax


def find_lr(
    trainer: Trainer,
    network: Network,
    loss: Loss,
    ds: TimeDataset,
    train: np.ndarray,
    *,
    rates: Sequence[float] | None = None,
    n_steps: int = 100,
    n_seeds: int = 3,
    seed: int = 0,
    transforms: FittedTransform | None = None,
) -> RateCurve:
    """Learning-rate range test: train a few steps at every rate and see which rate gets furthest.

    Smith raises the rate from step to step within one run, so that the loss at a rate depends on all rates before it
    and has to be smoothed. Here every rate is a member of one stack, for about the price of one run: it starts from the
    same weights and sees the same batches (and dropout masks) as the others of its seed, so that losses differ by the
    rate alone, and the seeds give an error bar. The loss of a member is its mean over the last fifth of its steps.

    Args:
        trainer: its optimizer, batch size, clipping and precision are used, with a constant rate; its epochs, schedule,
            averaging and early stop are not.
        network: the specification.
        loss: the training loss.
        ds: the data.
        train: row ids to train on.
        rates: learning rates to try; by default 25 from 1e-5 to 10, evenly spaced in their logarithm.
        n_steps: steps at each rate. More favour lower rates.
        n_seeds: networks at each rate.
        seed: of the first of them; the others follow by one.
        transforms: fitted on the training rows, applied to the features.

    Returns:
        The curve, with `suggestion` and `plot()`.

    Raises:
        ValueError: rates that are not positive and ascending, no rate that trains, or data that are not finite.

    References:
        Smith (2017), "Cyclical Learning Rates for Training Neural Networks", section 3.3.

    Example:
        >>> days = np.arange("2020-01-01", "2020-04-10", dtype="datetime64[D]")
        >>> X = np.linspace(-1, 1, 100)[:, None]
        >>> ds = TimeDataset(X, 2 * X[:, 0], time=days, label_end=days + 1)
        >>> from qfml import MLP, MSE
        >>> trainer = Trainer(max_epochs=1, batch_size=16)
        >>> curve = find_lr(trainer, MLP(hidden=(8,)), MSE(), ds, np.arange(100), rates=(1e-4, 1e-2), n_steps=50)
        >>> curve.suggestion
        0.01
    """
    chosen = np.asarray(np.geomspace(1e-5, 10, 25) if rates is None else rates, dtype=np.float64)
    rising = chosen.ndim == 1 and len(chosen) > 1 and bool((chosen > 0).all() and (np.diff(chosen) > 0).all())
    if not rising or not np.isfinite(chosen).all():
        raise UserError(f"`rates` must be two or more positive, finite numbers in ascending order, got {rates}")
    _check_at_least("n_steps", n_steps, 5)
    _check_at_least("n_seeds", n_seeds, 1)
    seeds = [Member(network, train, seed=seed + i, transforms=transforms) for i in range(n_seeds)]
    members = [replace(member, lr=float(lr)) for lr in chosen for member in seeds]
    untrained = _last_losses(short_run(trainer, n_steps, optimizer=SGD(lr=_NO_RATE)), seeds, loss, ds, n_steps)
    if (fault := next((fault for _, fault in untrained if fault is not None), None)) is not None:
        raise UserError(f"no rate can train: at a rate of 0 too the loss or its gradient is not finite, {fault}")
    trained = _last_losses(short_run(trainer, n_steps), members, loss, ds, n_steps)
    losses = np.array([value for value, _ in trained]).reshape(len(chosen), n_seeds)
    if not np.isfinite(losses.mean(axis=1)).any():
        raise UserError(f"`rates` from {chosen[0]:g} to {chosen[-1]:g} all diverge within {n_steps} steps: take lower")
    return RateCurve(chosen, losses, np.array([value for value, _ in untrained]), n_steps)


def _last_losses(
    trainer: Trainer, members: Sequence[Member], loss: Loss, ds: TimeDataset, n_steps: int
) -> list[tuple[float, str | None]]:
    """Of each member the mean loss over the last fifth of its steps, nan if it diverged, and where it did."""
    found, faults = step_losses(trainer, members, loss, ds, n_steps)
    last = found[:, -(-4 * n_steps // 5) :].mean(axis=1).tolist()
    return [(value if fault is None else math.nan, fault) for value, fault in zip(last, faults, strict=True)]


def steepest_descent(rates: np.ndarray, losses: np.ndarray) -> int:
    """Place of the most negative slope d loss / d log(rate), by central differences, up to the lowest loss.

    Example:
        >>> steepest_descent(np.array([1e-4, 1e-3, 1e-2, 1e-1, 1.0]), np.array([9.0, 8.0, 3.0, 1.0, np.nan]))
        2
    """
    stop = int(np.nanargmin(losses)) + 1
    finite = np.flatnonzero(np.isfinite(losses[:stop]))
    if len(finite) < 2:
        return int(finite[0])
    return int(finite[np.argmin(np.gradient(losses[finite], np.log(rates[finite])))])


def smallest_as_good(losses: np.ndarray) -> int:
    """Place of the smallest rate that is as good as the one of the lowest mean loss, within one standard error.

    Seed by seed, by how much is a rate worse than the best one? Going down from the best rate, those whose mean excess
    lies within one standard error of 0 are as good; the last of them is taken, since a long training rewards a lower
    rate more than a short test does. With one seed it is the best rate itself.

    Args:
        losses: (R, S), by ascending rate and seed.

    References:
        Breiman, Friedman, Olshen and Stone (1984), "Classification and Regression Trees", section 3.4.3, for the rule
        of one standard error.

    Example:
        >>> smallest_as_good(np.array([[9.0, 9.1], [1.1, 1.3], [1.2, 1.0], [8.0, 7.0]]))
        1
    """
    best = _lowest(losses)
    excess = losses - losses[best]
    n_seeds = losses.shape[1]
    place = best
    while n_seeds > 1 and place > 0:
        below = excess[place - 1]
        if not below.mean() <= below.std(ddof=1) / math.sqrt(n_seeds):
            break
        place -= 1
    return place


@dataclass(frozen=True, eq=False)
class BatchCurve:
    """What `find_batch_size` found, for each power of two that was tried.

    Attributes:
        batch_sizes: (K,) rows of a step that fit, ascending.
        peak_bytes: (K,) most memory that tensors held during training, the data set not counted on a CPU.
        steps_per_second: (K,) steps of the whole stack.
        limit: what ended the search: "memory", "rows" (the training rows are used up) or "max_batch_size".
    """

    batch_sizes: np.ndarray
    peak_bytes: np.ndarray
    steps_per_second: np.ndarray
    limit: str

    @property
    def largest(self) -> int:
        """The largest batch that fits."""
        return int(self.batch_sizes[-1])

    @property
    def rows_per_second(self) -> np.ndarray:
        """Rows of each member that are trained on in a second."""
        return self.batch_sizes * self.steps_per_second

    @property
    def pays_up_to(self) -> int:
        """The smallest batch that trains on at least 80 % as many rows a second as the best: larger ones pay little."""
        rows = self.rows_per_second
        return int(self.batch_sizes[np.argmax(rows >= 0.8 * rows.max())])

    def plot(self, ax: Any = None) -> Any:
        """Draw rows and steps per second against the batch size. Returns the axes of the rows."""
        ax = _axes(ax)
        steps = ax.twinx()
        (rows_line,) = ax.plot(self.batch_sizes, self.rows_per_second, color=BLUE, marker="o")
        (steps_line,) = steps.plot(self.batch_sizes, self.steps_per_second, color=RED, marker=".", linestyle="--")
        mark = ax.axvline(self.pays_up_to, color=GREEN, linestyle=":")
        ax.set_xscale("log", base=2)
        ax.set(xlabel="batch size (rows)", ylabel="rows per second", ylim=(0, None))
        steps.set(ylabel="steps per second", ylim=(0, None))
        names = ["rows per second", "steps per second", f"pays up to {self.pays_up_to}"]
        ax.set_title(f"largest that fits: {self.largest} (limit: {self.limit})")
        ax.legend([rows_line, steps_line, mark], names, frameon=False, loc="center left")
        return ax


def find_batch_size(
    trainer: Trainer,
    network: Network,
    loss: Loss,
    ds: TimeDataset,
    train: np.ndarray,
    *,
    memory_bytes: int | None = None,
    n_members: int = 1,
    max_batch_size: int | None = None,
    n_steps: int = 10,
    transforms: FittedTransform | None = None,
) -> BatchCurve:
    """The largest batch, a power of two, whose training step fits into memory, and the speed of all smaller ones.

    From 16 rows on the batch is doubled and really trained on, until memory is exceeded. On a GPU memory ends where
    torch says so, on a CPU at `memory_bytes`, counted tensor by tensor: parameters, optimizer state, batch, outputs
    kept for the backward pass, gradients. It says what fits and what is fast, not what trains best.

    Args:
        trainer: its optimizer, precision and `micro_batch_size` are used; its batch size is not.
        network: the specification.
        loss: the training loss.
        ds: the data.
        train: row ids to train on.
        memory_bytes: what training may take, bytes. Needed on a CPU, whose memory would be swapped before it ends; on a
            GPU the device's own limit counts if this is left out.
        n_members: members that train together.
        max_batch_size: stop at this size.
        n_steps: steps that are timed, three times each; the fastest time counts.
        transforms: fitted on the training rows, applied to the features.

    Returns:
        The curve, with `largest`, `pays_up_to` and `plot()`.

    Raises:
        ValueError: no `memory_bytes` on a CPU, or a budget that does not even hold the smallest batch.
    """
    device = torch.device(trainer.device)
    if device.type == "cpu" and memory_bytes is None:
        raise UserError("`memory_bytes` must be given on a CPU: how much memory training may take, such as 2 * 2**30")
    for name, value in (("memory_bytes", memory_bytes), ("max_batch_size", max_batch_size)):
        if value is not None:
            _check_at_least(name, value, 1 if name == "memory_bytes" else 16)
    _check_at_least("n_members", n_members, 1)
    _check_at_least("n_steps", n_steps, 1)
    if not loss.additive:
        raise UserError(f"`{loss.kind}` is a loss of the whole sample: it has no batch size to find")
    members = [Member(network, train, seed=i, transforms=transforms) for i in range(n_members)]
    if len(members[0].train) < 16:
        raise UserError(f"`train` must hold at least 16 rows, the smallest batch, got {len(members[0].train)}")
    plain = replace(trainer, member_block=n_members)
    found: list[tuple[int, int, float]] = []
    size = 16
    while True:
        limit = _beyond(size, len(members[0].train), max_batch_size)
        if limit is None:
            peak = _peak(replace(plain, batch_size=size), members, loss, ds, memory_bytes)
            limit = "memory" if peak is None else None
            if peak is not None:
                seconds = _step_seconds(replace(plain, batch_size=size), members, loss, ds, n_steps)
                found.append((size, peak, 1 / seconds))
        if limit is not None:
            break
        size *= 2
    if not found:
        raise UserError(f"`memory_bytes` {memory_bytes} does not hold a step of 16 rows: allow more, or shrink the net")
    sizes, peaks, speeds = (np.array(column) for column in zip(*found, strict=True))
    return BatchCurve(sizes, peaks, speeds, limit)


def _beyond(size: int, n_rows: int, max_batch_size: int | None) -> str | None:
    if max_batch_size is not None and size > max_batch_size:
        return "max_batch_size"
    return "rows" if size > n_rows else None


def _peak(
    trainer: Trainer, members: Sequence[Member], loss: Loss, ds: TimeDataset, memory_bytes: int | None
) -> int | None:
    """Most bytes that tensors hold in two steps; None if that is too much. The second step has all moments."""
    trainer, device = short_run(trainer, 2), torch.device(trainer.device)
    try:
        if device.type == "cpu":
            with TensorMemory(memory_bytes) as memory:
                trainer.fit_many(members, loss, ds)
            return memory.peak
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        trainer.fit_many(members, loss, ds)
        peak = torch.cuda.max_memory_allocated(device)
    except (torch.OutOfMemoryError, UserError) as error:  # the trainer may explain the one by the other
        if not isinstance(error, torch.OutOfMemoryError) and not isinstance(error.__cause__, torch.OutOfMemoryError):
            raise
        if device.type != "cpu":
            torch.cuda.empty_cache()
        return None
    return peak if memory_bytes is None or peak <= memory_bytes else None


def _step_seconds(trainer: Trainer, members: Sequence[Member], loss: Loss, ds: TimeDataset, n_steps: int) -> float:
    """Seconds of one step of the stack, the best of three times after a warm-up."""
    ticks = _Ticks()
    short_run(trainer, 4 * n_steps, log_every=n_steps).fit_many(members, loss, ds, callbacks=[ticks])
    return min(np.diff(ticks.seconds)) / n_steps


class _Ticks(Callback):
    """When the first member was logged; reading its loss has waited for a GPU."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def log(self, member: int, step: int, values: dict[str, float]) -> None:
        if member == 0:
            self.seconds.append(time.perf_counter())


def _lowest(losses: np.ndarray) -> int:
    return int(np.nanargmin(losses.mean(axis=1)))


def _diverges(losses: np.ndarray, untrained: np.ndarray) -> int | None:
    worse = np.logical_not(np.all(losses <= untrained, axis=1))  # nan is worse than anything
    worse[: _lowest(losses) + 1] = False
    return int(np.argmax(worse)) if worse.any() else None


def _rate(rates: np.ndarray, place: int | None) -> float | None:
    return None if place is None else float(rates[place])


def _axes(ax: Any) -> Any:
    if ax is None:
        from matplotlib import pyplot as plt  # slow to import and seldom needed

        _, ax = plt.subplots(figsize=(7, 4.5), layout="constrained")
    return ax


def _check_at_least(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise UserError(f"`{name}` must be a whole number of at least {least}, got {value!r}")
