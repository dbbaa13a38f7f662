"""`Trainer`: how members are trained, and the two calls that do it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch

from qfml.config import OneOf, Section
from qfml.data.dataset import TimeDataset
from qfml.engine.averaging import AVERAGES, Averaging
from qfml.engine.callbacks import Callback
from qfml.engine.compiling import check_compile
from qfml.engine.fit import Fit
from qfml.engine.groups import ParameterGroup
from qfml.engine.member import Member
from qfml.engine.monitor import check_monitor
from qfml.engine.optimizers import OPTIMIZERS, AdamW, Optimizer
from qfml.engine.precision import check_precision
from qfml.engine.sampling import SAMPLERS, Sampler, Shuffled
from qfml.engine.schedules import SCHEDULES, Constant, Schedule
from qfml.engine.watching.settings import Profile, check_watch
from qfml.errors import UserError
from qfml.losses import Loss
from qfml.networks import ModuleFactory, Network


@dataclass(frozen=True)
class Trainer:
    """Trains many small networks as one stack; a single one is a stack of one.

    Each member has its own learning rate, weight decay, clip, patience, clock, best epoch and random streams. On a CPU
    its result is the same to the last bit whether it is trained alone, in any stack, or in any block.

    Args:
        optimizer: `AdamW(...)` or `SGD(...)`; members may override `lr` and `weight_decay`.
        schedule: factor of the learning rate over a member's steps.
        max_epochs: passes over a member's training rows.
        batch_size: rows of one step; None takes all rows at once, in time order.
        sampler: which rows of a member an epoch takes, and in which order; needs a `batch_size`.
        micro_batch_size: rows that go through the network at a time; it limits memory and never changes the gradient.
        precision: "fp32", "tf32", "bf16" or "fp16": the format of the network's products. The promise of equal bits is
            for fp32.
        compile: "default" compiles forward and backward pass by `torch.compile` for the shapes of stack and batch, some
            ten seconds for each; "cuda_graphs" also records their kernels, on a GPU. The promise of equal bits is for
            None.
        parameter_groups: other learning rates and weight decays for parameters chosen by name.
        averaging: `EMA(...)` or `SWA(...)`: averaged weights are validated and kept in place of the last ones.
        max_steps: steps after which a member stops, even within an epoch; None leaves it to `max_epochs`.
        clip_norm: largest norm of a member's gradient; None does not clip.
        clip_value: largest size of an element of it, after `clip_norm`; None does not clip.
        monitor: what decides which epoch was best: "val_loss", "train_loss", or "val_" and one of `metrics`.
        mode: "min" or "max": which values of it are better.
        min_delta: by how much a value must be better to count as better.
        metrics: computed on the validation rows after each epoch: mse, mae, r2, rank_ic, accuracy, roc_auc, brier; of
            probabilities of classes accuracy and brier; of quantiles coverage_error.
        patience: epochs without a better value after which a member stops; None never stops early.
        max_seconds: time after which all members stop where they are, with status "max_time". What they are then
            depends on the machine. Resumed from its checkpoint, the training goes on, for as long again.
        fast_dev_run: two steps and one validation of each member, no checkpoint: does it run at all?
        log_every: steps between two calls of the callbacks' `log`, the only ones that read numbers from the device;
            None logs epochs only.
        watch: what else is logged on these steps: "layers" (norms of gradient and weights by parameter) and
            "activations" (mean, standard deviation, share of zeros and dead units by layer, from one more forward
            pass without dropout); and "memory", told once. Nothing watched changes a result.
        time_split: tell callbacks in each epoch what its time went into.
        profile: steps whose trace is written by torch's profiler.
        seed: enters every member's random streams.
        device: where the training runs.
        member_block: members trained at a time; None fits a block into the cache. It changes the speed only.
        checkpoint_seconds: the least time between two checkpoints; never below 20 times what the last one cost: the
            time that the training waited for it plus that of the thread that wrote it.
        keep_checkpoints: the last so many are kept, at least 2. Each holds every member's best parameters so far beside
            its present ones, so that the best are never lost.
        deterministic: on CUDA, take deterministic algorithms only; needs the environment variable
            CUBLAS_WORKSPACE_CONFIG. On a CPU training is deterministic in any case.

    Example:
        >>> import numpy as np, qfml
        >>> from qfml.data import TimeDataset
        >>> days = np.arange("2020-01-01", "2020-07-19", dtype="datetime64[D]")
        >>> X = np.linspace(-1, 1, 200)[:, None]
        >>> ds = TimeDataset(X, 2 * X[:, 0], time=days, label_end=days + 1)
        >>> trainer = qfml.Trainer(optimizer=qfml.AdamW(lr=1e-2), max_epochs=30, batch_size=32)
        >>> fit = trainer.fit(qfml.MLP(hidden=(16,)), qfml.MSE(), ds, train=np.arange(0, 200, 2))
        >>> fit.status, fit.n_epochs, bool(abs(fit.predict(ds) - 2 * X[:, 0]).max() < 0.5)
        ('finished', 30, True)
    """

    max_epochs: int
    batch_size: int | None
    optimizer: Annotated[Optimizer, OneOf(OPTIMIZERS)] = AdamW()  # noqa: RUF009  (frozen)
    schedule: Annotated[Schedule, OneOf(SCHEDULES)] = Constant()  # noqa: RUF009  (frozen)
    sampler: Annotated[Sampler, OneOf(SAMPLERS)] = Shuffled()  # noqa: RUF009  (frozen)
    micro_batch_size: int | None = None
    max_steps: int | None = None
    precision: str = "fp32"
    compile: str | None = None
    parameter_groups: tuple[Annotated[ParameterGroup, Section(ParameterGroup)], ...] = ()
    averaging: Annotated[Averaging, OneOf(AVERAGES)] | None = None
    clip_norm: float | None = None
    clip_value: float | None = None
    monitor: str = "val_loss"
    mode: str = "min"
    min_delta: float = 0.0
    metrics: tuple[str, ...] = ()
    patience: int | None = None
    max_seconds: float | None = None
    fast_dev_run: bool = False
    log_every: int | None = None
    watch: tuple[str, ...] = ()
    time_split: bool = False
    profile: Annotated[Profile, Section(Profile)] | None = None
    seed: int = 0
    device: str = "cpu"
    member_block: int | None = None
    checkpoint_seconds: float = 30.0
    keep_checkpoints: int = 2
    deterministic: bool = False

    def __post_init__(self) -> None:
        for name in (
            "max_epochs",
            "batch_size",
            "micro_batch_size",
            "max_steps",
            "patience",
            "log_every",
            "member_block",
        ):
            value = getattr(self, name)
            if value is None and name != "max_epochs":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UserError(f"`{name}` must be a whole number, at least 1, got {value!r}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise UserError(f"`seed` must be a whole number, got {self.seed!r}")
        if isinstance(self.optimizer, type) or not isinstance(self.optimizer, Optimizer):
            raise UserError(f"`optimizer` must be one such as AdamW(lr=1e-3), got {self.optimizer!r}")
        if not isinstance(self.sampler, Sampler):
            raise UserError(f"`sampler` must be one such as Shuffled(), got {self.sampler!r}")
        if self.batch_size is None and self.sampler != Shuffled():
            raise UserError(
                f"`sampler` {self.sampler.kind} needs a `batch_size`: without one all rows are taken in time order"
            )
        if not isinstance(self.schedule, Schedule):
            raise UserError(f"`schedule` must be one such as Constant(), got {self.schedule!r}")
        if self.averaging is not None and not isinstance(self.averaging, Averaging):
            raise UserError(f"`averaging` must be one such as EMA(decay=0.999), got {self.averaging!r}")
        if self.optimizer.kind == "lbfgs":  # its line search compares losses of one and the same function
            wrong = [name for name in ("batch_size", "clip_norm", "clip_value") if getattr(self, name) is not None]
            if wrong:
                raise UserError(
                    f"`{wrong[0]}` must be None with the optimizer lbfgs, got {getattr(self, wrong[0])}: it searches "
                    "along the loss of all rows, whose gradient must be that of the loss"
                )
            if self.precision != "fp32":
                raise UserError(f"`precision` must be fp32 with the optimizer lbfgs, got {self.precision!r}")
        try:
            torch.device(self.device)
        except (RuntimeError, TypeError):
            raise UserError(f"`device` must name a torch device such as cpu or cuda, got {self.device!r}") from None
        check_monitor(self.monitor, self.mode, self.metrics, self.min_delta)
        if self.max_seconds is not None and not self.max_seconds > 0:
            raise UserError(f"`max_seconds` must be positive, got {self.max_seconds}; leave it out to train to the end")
        check_precision(self.precision, torch.device(self.device))
        check_watch(self.watch, self.log_every)
        check_compile(self.compile, torch.device(self.device))
        for name in ("clip_norm", "clip_value"):
            limit = getattr(self, name)
            if limit is not None and not limit > 0:
                raise UserError(f"`{name}` must be positive, got {limit}; leave it out to train without")
        if type(self.keep_checkpoints) is not int or self.keep_checkpoints < 2:
            raise UserError(
                f"`keep_checkpoints` must be a whole number, at least 2, got {self.keep_checkpoints!r}: the one before "
                "the last is what a damaged one falls back on"
            )
        if not self.checkpoint_seconds >= 0:
            raise UserError(f"`checkpoint_seconds` must be >= 0, got {self.checkpoint_seconds}")

    def fit(
        self,
        network: Network | ModuleFactory,
        loss: Loss,
        ds: TimeDataset,
        *,
        train: np.ndarray,
        val: np.ndarray | None = None,
        **options: Any,
    ) -> Fit:
        """Train one network on the samples `train`, judged on `val`; `options` are those of `fit_many`."""
        return self.fit_many([Member(network, train, val)], loss, ds, **options)[0]

    def fit_many(
        self,
        members: Sequence[Member],
        loss: Loss,
        ds: TimeDataset,
        *,
        callbacks: Sequence[Callback] = (),
        checkpoint_dir: str | Path | None = None,
        resume: bool = False,
        refill: Callable[[int], Sequence[Member]] | None = None,
    ) -> list[Fit]:
        """Train many networks as one stack.

        Args:
            members: what to train; nothing passed in is changed.
            loss: one of `qfml.losses.LOSSES`.
            ds: the data.
            callbacks: told of what happens.
            checkpoint_dir: write checkpoints here, on time, on Ctrl-C and SIGTERM, and at the end.
            resume: continue from the newest checkpoint of `checkpoint_dir`.
            refill: called with the number of members that have just stopped; the members that it returns are numbered
                after all others and begin at once, in the same stack where architecture and batch shape are the same.
                It excludes `checkpoint_dir`: which members it made is for the caller to keep.

        Returns:
            One `Fit` a member, in the members' order, then in that of `refill`.

        Raises:
            ValueError: rows that are not the data's, labels the loss is not defined on, or settings that do not fit.
            Interrupted: stopped by a signal, after a checkpoint was written.
            CheckpointError: nothing to resume from, a checkpoint of other data or settings, or, without `resume`, a
                folder that holds checkpoints already.
        """
        from qfml.engine.training import train  # it is built on this class

        folder = None if checkpoint_dir is None else Path(checkpoint_dir)
        return train(self, members, loss, ds, callbacks, folder, resume, refill)

    def fit_stream(
        self,
        members: Sequence[Member],
        loss: Loss,
        data: Any,
        *,
        val: TimeDataset | None = None,
        adapter: Callable[[Any], Any] | None = None,
        ahead: int = 2,
        callbacks: Sequence[Callback] = (),
        checkpoint_dir: str | Path | None = None,
        resume: bool = False,
    ) -> list[Fit]:
        """Train many networks on batches that do not lie in memory, all of them on the same ones.

        The order is the stream's own and does not depend on the number of workers. A `StreamingTimeDataset` is told
        epoch and position. Another DataLoader has its `generator` seeded by the trainer's seed and the epoch, and is
        resumed by reading on to the position; what its data set draws at random is not ours to repeat.

        Args:
            members: `StreamMember`s; nothing of them is changed.
            loss: one of `qfml.losses.LOSSES`, not one of the whole sample.
            data: a `StreamingTimeDataset`, or a DataLoader of one (with `batch_size=None`) or of anything else.
                `batch_size` of the trainer is that of its batches.
            val: data in memory that the members are judged on; without, the last epoch is taken.
            adapter: makes of a batch `(x, y)`, `(x, y, weight)` or a dict of these; None if batches are such.
            ahead: batches that a thread prepares while the networks train, where no workers of `data` do.
            callbacks: told of what happens.
            checkpoint_dir: write checkpoints here, on time, on Ctrl-C and SIGTERM, and at the end.
            resume: continue from the newest checkpoint of `checkpoint_dir`.

        Returns:
            One `Fit` a member, in the members' order.

        Raises:
            ValueError: what a stream cannot do, a batch that breaks a rule, a worker process that died.
            Interrupted: stopped by a signal, after a checkpoint was written.
            CheckpointError: nothing to resume from, a checkpoint of other data or settings, or, without `resume`, a
                folder that holds checkpoints already.
        """
        from qfml.engine.stream_training import train_stream  # it is built on this class

        folder = None if checkpoint_dir is None else Path(checkpoint_dir)
        return train_stream(self, members, loss, data, val, adapter, ahead, callbacks, folder, resume)
