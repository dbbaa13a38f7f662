"""A block of members trained together: the training loop itself."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pricers.parallel import all_threads
from qfml.data.dataset import TimeDataset
from qfml.engine.backward import Pull, losses_and_gradient, losses_and_written_gradient
from qfml.engine.clipping import clip_norm_, clip_value_, norms
from qfml.engine.compiling import forward_of
from qfml.engine.dropout import DropoutBytes
from qfml.engine.feed import Batch, BatchData, Feed, feed_of
from qfml.engine.fit import Fit
from qfml.engine.groups import group_factors
from qfml.engine.inputs import time_order
from qfml.engine.member import Member
from qfml.engine.monitor import judged
from qfml.engine.optimizers import Step, start_state
from qfml.engine.precision import casting, rescale, start_scale
from qfml.engine.restoring import check_restorable
from qfml.engine.schedules import Constant, Moment
from qfml.engine.stack import Layout
from qfml.engine.streams import stream
from qfml.engine.trainer import Trainer
from qfml.engine.validation import validated
from qfml.engine.watching.birth import birthplace, one_member, validation_fault
from qfml.errors import UserError
from qfml.losses import Loss
from qfml.networks import Network, works_on_all_threads, writes_gradient

OnEpoch = Callable[[int, dict[str, Any], bool], bool]
OnLog = Callable[[int, int, dict[str, float]], None]
OnFail = Callable[[int, int, str], None]


class Block:
    """M members of one architecture and one batch shape, from their first step to their last.

    Every tensor has a leading member axis; a member that has stopped is taken out of all of them. `members` numbers
    the members that are still training, as places in `everyone`. `tensor` and `array` hold, by name, all that belongs
    to a member and changes: the rows that compaction keeps and a checkpoint stores.
    """

    def __init__(
        self,
        trainer: Trainer,
        members: Sequence[Member],
        loss: Loss,
        ds: TimeDataset | BatchData,
        on_epoch: OnEpoch,
        on_log: OnLog,
        on_fail: OnFail,
    ) -> None:
        self.trainer, self.everyone, self.loss, self.ds = trainer, members, loss, ds
        self.on_epoch, self.on_log, self.on_fail = on_epoch, on_log, on_fail
        self.network: Network = members[0].network
        self.device = ds.device if isinstance(ds, BatchData) else ds.y.device
        self.fits: dict[int, Fit] = {}
        self.failures: dict[int, tuple[int, str]] = {}  # the step, and where what is not finite came from
        self.histories: list[list[dict[str, Any]]] = [[] for _ in members]
        self.members = list(range(len(members)))
        self.threads = 1  # on which micro-batches may be worked on side by side

        seeds = [(trainer.seed, member.seed) for member in members]
        self.feed = feed_of(trainer, members, loss, ds)
        self.clock, self.inputs = self.feed.clock, self.feed.inputs

        drawn = [_initial(member, self.feed, seed, loss.n_outputs) for member, seed in zip(members, seeds)]
        self.layout = Layout.of(drawn[0])
        parameters = torch.stack([self.layout.flatten(one) for one in drawn]).to(self.device)
        no_loss = torch.zeros(len(members), dtype=torch.float64, device=self.device)
        self.tensor = {
            "parameters": parameters,
            "best": parameters.clone(),
            "loss_sum": no_loss,
            "weight_sum": no_loss.clone(),
            "healthy": torch.ones(len(members), 1, dtype=torch.bool, device=self.device),
        }
        self.tensor |= _over("optimizer.", start_state(trainer.optimizer, parameters, self.layout))
        self.tensor |= _over("precision.", start_scale(trainer.precision, parameters))
        if trainer.averaging is not None:
            self.tensor["average"] = parameters.clone()
        self.array = {
            "best": np.full(len(members), np.inf),
            "best_epoch": np.zeros(len(members), dtype=np.int64),
            "lr": _filled([m.lr for m in members], trainer.optimizer.lr),
            "weight_decay": _filled([m.weight_decay for m in members], trainer.optimizer.weight_decay),
            "clip_norm": _filled([m.clip_norm for m in members], trainer.clip_norm or np.inf),
            "n_updates": np.zeros(len(members), dtype=np.int64),
        } | _over("schedule.", trainer.schedule.start(len(members)))
        self.groups = group_factors(trainer.parameter_groups, self.layout, parameters)
        self.written = (
            writes_gradient(self.network)
            and trainer.precision in ("fp32", "tf32")
            and trainer.compile is None
            and not loss.differential
        )
        self.forward = forward_of(self.network, trainer.compile)
        self._bind()

    @property
    def done(self) -> bool:
        """Whether every member has stopped."""
        return len(self.members) == 0

    def step(self) -> None:
        """One training step of every member, each at its own place in its own epoch."""
        batch = self._next_batch()
        losses = self._gradient(batch, self.views, self.gradient)
        norm = norms(self.gradient)
        moving = None
        if not self._calm(norm):
            moving = self._guard(norm, batch)
            if self.clips:
                clip_norm_(self.gradient, norm, self.clip_norm)
        if self.trainer.clip_value is not None:
            clip_value_(self.gradient, self.trainer.clip_value)
        self._update(moving, batch)
        if self.trainer.averaging is not None:
            self.trainer.averaging.after_step(self.tensor["average"], self.parameters, self.array["n_updates"])
        self.loss_sum.addcmul_(losses.double(), batch.total)
        self.weight_sum.add_(batch.total)
        ended = self.clock.advance()
        if self.trainer.log_every is not None:
            due = self.clock.n_steps % self.trainer.log_every == 0
            if due.any():
                self._log(losses, norm, due)
        if len(ended):
            self._end_epoch(ended)

    def _next_batch(self) -> Batch:
        """The rows of a step; data that make themselves, element by element, do so on all threads."""
        if not isinstance(self.ds, BatchData):
            return self.feed.next()
        with all_threads(self.threads):
            return self.feed.next()

    def _gradient(self, batch: Batch, views: dict[str, Tensor], out: Tensor) -> Tensor:
        """Losses of the members (M,) at the parameters `views`; their gradients go to `out`."""
        if self.written:
            dropout = self.dropout.next(self.clock)

            def pullback(x: Tensor, members: slice, part: slice) -> tuple[Tensor, Pull]:
                own = None if dropout is None else dropout[part]
                theirs = views if len(x) == len(out) else {name: view[members] for name, view in views.items()}
                return self.network.pullback(theirs, x, own)  # pyright: ignore[reportAttributeAccessIssue]

            def put(found: list[Tensor]) -> None:
                self.layout.write(found, out)

            with casting(self.trainer.precision, self.device):
                size = self.trainer.micro_batch_size
                spread = works_on_all_threads(self.network)
                losses = losses_and_written_gradient(pullback, self.loss, batch, size, put, self.threads, spread)
        else:
            losses = self._graph_gradient(batch, views, out)
        if self.groups.trained is not None:
            out.mul_(self.groups.trained)
        return losses

    def _graph_gradient(self, batch: Batch, views: dict[str, Tensor], out: Tensor) -> Tensor:
        dropout = self.dropout.next(self.clock)

        def forward(x: Tensor, part: slice) -> Tensor:
            with casting(self.trainer.precision, self.device):
                output = self.forward(views, x, None if dropout is None else dropout[part])
            return output.float()

        def take(values: Tensor, weights: Tensor | None, first: bool) -> None:
            if self.scaling:
                scale = self.scaling["scale"].view(-1, *(1,) * (values.ndim - 1))
                weights = scale.expand_as(values) if weights is None else weights * scale
            self.layout.gradient(values, views, out, weights, add=not first)

        losses = losses_and_gradient(forward, self.loss, batch, self.trainer.micro_batch_size, take)
        if self.scaling:
            out.div_(self.scaling["scale"])
        return losses

    def _evaluate(self, batch: Batch, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Losses and gradients of the same batch at other parameters."""
        gradient = torch.zeros_like(parameters)
        return self._gradient(batch, self.layout.views(parameters, requires_grad=True), gradient), gradient

    def _calm(self, norm: Tensor) -> bool:
        """Whether every gradient is known to be finite and short enough: on a CPU, where a look costs little."""
        return self.well and bool((norm.numpy() + np.float32(1e-6) <= self.longest).all())

    def _guard(self, norm: Tensor, batch: Batch) -> Tensor | None:
        """Which members move, (M, 1); None if all are known to.

        A member whose gradient is not finite is frozen for good; with a scaled loss it skips the step, until no scale
        is small enough.
        """
        if self.well and bool(np.isfinite(norm.numpy()).all()):
            return None
        moving, before = torch.isfinite(norm), self.healthy.clone()
        if self.scaling:
            rescale(self.scaling, moving)
            self.healthy.logical_and_(self.scaling["scale"] >= 1)
        else:
            self.healthy.logical_and_(moving)
        self.well = False
        if self.device.type == "cpu":
            for member in torch.nonzero(before & ~self.healthy)[:, 0].tolist():
                self._fail(member, self._birthplace(member, batch))
        moving = moving & self.healthy
        self.gradient.masked_fill_(~moving, 0)
        return moving

    def _fail(self, member: int, place: str) -> None:
        """Note and tell that a member trains no further, since at `place` something was not finite."""
        step, epoch = int(self.clock.n_steps[member]) + 1, int(self.clock.epoch[member]) + 1
        self.failures[self.members[member]] = step, f"step {step}, epoch {epoch}: {place}"
        self.on_fail(self.members[member], *self.failures[self.members[member]])

    def _birthplace(self, member: int, batch: Batch) -> str:
        """Where the gradient of a member's present step became infinite or NaN: the step is taken once more, alone."""
        own, dropout = slice(member, member + 1), self.dropout.next(self.clock)
        alone = None if dropout is None else dropout.member(member)

        def forward(views: Mapping[str, Tensor], x: Tensor) -> Tensor:
            with casting(self.trainer.precision, self.device):
                return self.network.forward(views, x, alone).float()

        batch = one_member(batch, member)
        return birthplace(forward, self.loss, self.layout, self.parameters[own], batch, self.gradient[own])

    def _update(self, moving: Tensor | None, batch: Batch) -> None:
        """One step of the optimizer; of a member that skips it nothing changes, its moments neither."""
        skips = bool(self.scaling) and moving is not None and not bool(moving.all())
        before = {name: value.clone() for name, value in self.state.items()} if skips else {}
        self.trainer.optimizer.update(self.parameters, self.gradient, self.state, self._step(moving, batch))
        for name, old in before.items():
            rows = moving.view(-1, *(1,) * (old.ndim - 1))  # pyright: ignore[reportOptionalMemberAccess]
            self.state[name].copy_(torch.where(rows, self.state[name], old))
        self.array["n_updates"] += moving[:, 0].cpu().numpy() if skips and moving is not None else 1

    def _step(self, moving: Tensor | None, batch: Batch) -> Step:
        lr = self.array["lr"]
        if not isinstance(self.trainer.schedule, Constant):
            clock = self.clock
            ends = self.trainer.max_epochs, self.trainer.max_steps
            moment = Moment(clock.n_steps, clock.epoch, clock.steps_per_epoch, *ends)
            lr = lr * self.trainer.schedule.factor(moment, self.schedule)
        self.rates = lr
        return Step(
            self.array["n_updates"] + 1,
            lr,
            self.array["weight_decay"],
            self.layout,
            self.groups.lr,
            self.groups.weight_decay,
            None if moving is None else moving.to(self.parameters.dtype),
            partial(self._evaluate, batch),
        )

    def _log(self, losses: Tensor, norm: Tensor, due: np.ndarray) -> None:
        """Tell what the last step was like of the members that are `due`: all, unless some have joined later."""
        values = list(zip(losses.tolist(), norm[:, 0].tolist(), self.rates.tolist()))
        for place in np.flatnonzero(due).tolist():
            loss, gradient_norm, lr = values[place]
            told = {"loss": loss, "gradient_norm": gradient_norm, "lr": lr}
            self.on_log(self.members[place], int(self.clock.n_steps[place]), told)

    def _end_epoch(self, ended: np.ndarray) -> None:
        """Close the epoch of the members `ended`: validate, keep the best, stop or go on."""
        index = torch.from_numpy(ended).to(self.device)
        train_losses = (self.loss_sum[index] / self.weight_sum[index]).tolist()
        if any(map(math.isnan, train_losses)) and bool((self.weight_sum[index] == 0).any()):
            raise UserError("all rows that a member has seen in an epoch weigh 0: give some of them a positive weight")
        self.loss_sum[index] = self.weight_sum[index] = 0
        weights = self._averaged(ended)
        validations = self._validate(ended, weights)
        healthy = self.healthy[index, 0].tolist()
        stopped: list[int] = []
        for member, train_loss, validation, finite in zip(ended.tolist(), train_losses, validations, healthy):
            epoch = int(self.clock.epoch[member]) + 1
            nothing = dict.fromkeys(("val_loss", *(f"val_{name}" for name in self.trainer.metrics)))
            record = {"epoch": epoch, "train_loss": train_loss} | nothing | validation
            self.histories[self.members[member]].append(record)
            value = judged(record, self.trainer.monitor, self.trainer.mode)
            val_loss = record["val_loss"]
            finite = finite and (val_loss is None or math.isfinite(val_loss))
            if finite and self._better(member, value):
                self.array["best"][member] = np.inf if value is None else value
                self.array["best_epoch"][member] = epoch
                self.tensor["best"][member] = weights[member]
            if value is not None and math.isfinite(value):
                self.trainer.schedule.observe(self.schedule, member, value)
            status = self._status(member, epoch, finite, watched=value is not None)
            if self.on_epoch(self.members[member], record, status is not None) and status is None:
                status = "stopped"
            if status is None:
                self.clock.begin_epoch(member)
            else:
                self._finish(member, status)
                stopped.append(member)
        if stopped:
            self._keep(np.setdiff1d(np.arange(len(self.members)), stopped))

    def _better(self, member: int, value: float | None) -> bool:
        """Whether the epoch beats the best one so far; without a value the last one counts as best."""
        return value is None or bool(value < self.array["best"][member] - self.trainer.min_delta)

    def _averaged(self, ended: np.ndarray) -> Tensor:
        """The weights that are judged and kept: the averages of members that have one, else the parameters."""
        averaging = self.trainer.averaging
        if averaging is None:
            return self.parameters
        weights = self.parameters.clone()
        for member in ended.tolist():
            epoch = int(self.clock.epoch[member]) + 1
            averaging.after_epoch(self.tensor["average"][member], self.parameters[member], epoch)
            if averaging.ready(epoch):
                weights[member] = self.tensor["average"][member]
        return weights

    def _status(self, member: int, epoch: int, finite: bool, watched: bool) -> str | None:
        """Why the member stops here, or None if it goes on."""
        own = self.everyone[self.members[member]]
        patience = self.trainer.patience if own.patience is None else own.patience
        if not finite:
            return "nan"
        if watched and patience is not None and epoch - self.array["best_epoch"][member] >= patience:
            return "early_stopped"
        done = epoch >= self.trainer.max_epochs or self.clock.n_steps[member] == self.trainer.max_steps
        return "finished" if done else None

    def stop(self, status: str) -> None:
        """Finish all members where they stand, each with its best epoch, or its last weights before the first."""
        for member in range(len(self.members)):
            self._finish(member, status)
        self._keep(np.array([], dtype=np.int64))

    def _finish(self, member: int, status: str) -> None:
        own = self.everyone[self.members[member]]
        if status == "nan" and self.members[member] not in self.failures:
            self._fail(member, self._unseen_fault(member))
        best_epoch = int(self.array["best_epoch"][member])
        if status != "nan" and not best_epoch and self.histories[self.members[member]]:
            warnings.warn(
                f"a member of seed {own.seed} that trains on {len(own.train)} rows: `{self.trainer.monitor}` was not "
                "finite in any epoch, so that none could be chosen: its last weights are kept; monitor something that "
                "its rows define",
                UserWarning,
                stacklevel=2,
            )
        kept = self.tensor["best"][member] if best_epoch else self._last_weights(member, status)
        history = tuple(self.histories[self.members[member]])
        self.fits[self.members[member]] = Fit(
            own.network, self.loss, kept.clone(), self.layout, own.transforms, own.seed, status, history, best_epoch
        )
        if self.members[member] in self.failures:
            failure = self.failures[self.members[member]][1]
            self.fits[self.members[member]] = replace(self.fits[self.members[member]], failure=failure)

    def _last_weights(self, member: int, status: str) -> Tensor:
        """What is validated and kept of a member of which no epoch was chosen; of one with a nan the finite weights."""
        averaging, epoch = self.trainer.averaging, len(self.histories[self.members[member]])
        averaged = averaging is not None and epoch > 0 and status != "nan" and averaging.ready(epoch)
        return self.tensor["average" if averaged else "parameters"][member]

    def _unseen_fault(self, member: int) -> str:
        """What stopped a member whose gradients were not looked at one by one, or were all finite."""
        if not bool(self.healthy[member]):
            return (
                "a gradient of this epoch was not finite; on a GPU no step is waited for, so that its rows are not "
                "known: train the member on a CPU to learn where it came from"
            )
        if self.inputs is None:
            return "the loss of the epoch, or the one that it is validated by, is not finite"
        val = self.everyone[self.members[member]].val
        assert val is not None
        parameters = self.tensor["average" if self.trainer.averaging else "parameters"][member][None]
        return validation_fault(self.network, self.loss, self.inputs, self.layout, parameters, member, val)

    def _validate(self, members: np.ndarray, weights: Tensor) -> list[dict[str, float]]:
        """Loss and metrics of each of `members` on its own validation rows; nothing for one without any."""
        if self.inputs is None:
            own = self.layout.views(weights[torch.from_numpy(members).to(self.device)])
            return self.feed.validated(self.network, self.loss, own, members)
        ds = self.inputs.ds
        rows = {int(member): self.everyone[self.members[member]].val for member in members}
        chosen = {member: time_order(ds, own) for member, own in rows.items() if own is not None}
        found = validated(self.network, self.loss, ds, self.inputs, self.layout, weights, chosen, self.trainer.metrics)
        return [found.get(member, {}) for member in rows]

    def _keep(self, places: np.ndarray) -> None:
        """Take the members that have stopped out of everything."""
        index = torch.from_numpy(places).to(self.device)
        self.members = [self.members[place] for place in places]
        self.feed.keep(places)
        self.tensor = {name: value[index] for name, value in self.tensor.items()}
        self.array = {name: value[places] for name, value in self.array.items()}
        self._bind()

    def _bind(self) -> None:
        """What is derived from the members that are left: views of their rows, work buffers, columns."""
        self.parameters, self.healthy = self.tensor["parameters"], self.tensor["healthy"]
        self.loss_sum, self.weight_sum = self.tensor["loss_sum"], self.tensor["weight_sum"]
        self.views = self.layout.views(self.parameters, requires_grad=True)
        self.gradient = torch.zeros_like(self.parameters)
        self.state = _under("optimizer.", self.tensor)
        self.scaling = _under("precision.", self.tensor)
        self.schedule = _under("schedule.", self.array)
        going = [self.everyone[i].network for i in self.members]
        self.dropout = DropoutBytes(self.everyone[0].network, going, self.clock, self.device)
        self.clip_norm = torch.from_numpy(self.array["clip_norm"]).to(self.parameters)[:, None]
        # a GPU is not waited for
        self.well = self.device.type == "cpu" and not self.scaling and bool(self.healthy.all())
        self.longest = np.minimum(self.array["clip_norm"], np.finfo(np.float32).max).astype(np.float32)[:, None]
        self.clips = bool(np.isfinite(self.array["clip_norm"]).any())

    def joined(self, members: Sequence[Member], on_epoch: OnEpoch, on_log: OnLog, on_fail: OnFail) -> Block:
        """A block of the members that are left, where they stand, and of `members`, which begin.

        The fits of those that have stopped stay with this one.
        """
        going = len(self.members)
        everyone = [*(self.everyone[member] for member in self.members), *members]
        block = Block(self.trainer, everyone, self.loss, self.ds, on_epoch, on_log, on_fail)
        block.threads = self.threads
        block.histories[:going] = [self.histories[member] for member in self.members]
        block.failures = {i: self.failures[old] for i, old in enumerate(self.members) if old in self.failures}
        for name, value in block.tensor.items():
            value[:going] = self.tensor[name]
        for name, value in block.array.items():
            value[:going] = self.array[name]
        clock = self.clock.state()
        block.clock.restore({name: [*values, *[0] * len(members)] for name, values in clock.items()})
        block._bind()
        return block

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of a checkpoint, one row a member."""
        return self.tensor | {f"fit.{place}": fit.parameters for place, fit in self.fits.items()}

    def counters(self) -> dict[str, Any]:
        """The rest of a checkpoint, as JSON types."""
        fits = {place: {"status": fit.status, "best_epoch": fit.best_epoch} for place, fit in self.fits.items()}
        return {
            "members": self.members,
            "clock": self.clock.state(),
            "arrays": {name: value.tolist() for name, value in self.array.items()},
            "histories": [list(history) for history in self.histories],  # they grow while they are written
            "failures": [[place, step, sentence] for place, (step, sentence) in self.failures.items()],
            "fits": {str(place): fit for place, fit in fits.items()},
        }

    def restore(self, tensors: dict[str, Tensor], counters: dict[str, Any]) -> None:
        """Continue where `tensors()` and `counters()` were taken; CheckpointError if they cannot be of this block."""
        check_restorable(self, tensors, counters)
        self.histories = counters["histories"]
        self.failures = {place: (step, sentence) for place, step, sentence in counters["failures"]}
        for place, fit in counters["fits"].items():
            for name in {"best", "parameters", "average"} & self.tensor.keys():
                self.tensor[name][int(place)] = tensors[f"fit.{place}"]
            self.array["best_epoch"][int(place)] = fit["best_epoch"]
            self._finish(int(place), fit["status"])
        self._keep(np.array(counters["members"], dtype=np.int64))
        self.clock.restore(counters["clock"])
        for name, value in self.tensor.items():
            value.copy_(tensors[name])
        for name, value in self.array.items():
            value[...] = counters["arrays"][name]


def _filled(values: Sequence[float | None], default: float) -> np.ndarray:
    return np.array([default if value is None else value for value in values], dtype=np.float64)


def _over(prefix: str, named: dict[str, Any]) -> dict[str, Any]:
    return {f"{prefix}{name}": value for name, value in named.items()}


def _under(prefix: str, named: dict[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in named.items() if name.startswith(prefix)}


def _initial(member: Member, feed: Feed, seed: tuple[int, int], n_outputs: int) -> dict[str, Tensor]:
    """A member's first parameters: those of an earlier fit, or drawn from its own stream."""
    drawn = member.network.init(feed.n_features, feed.window, stream(*seed, "init"), n_outputs)
    if member.start is None:
        return drawn
    if member.start.layout != Layout.of(drawn):
        raise UserError(
            f"`start` is a fit of another architecture, of parameters {dict(member.start.layout.shapes)}, and the "
            f"member's network has {dict(Layout.of(drawn).shapes)}: start from a fit of the same one, or leave it out"
        )
    return member.start.named_parameters()
