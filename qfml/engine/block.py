"""A block of members trained together: the training loop itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qfml.data.dataset import TimeDataset
from qfml.engine.clock import Clock
from qfml.engine.fit import Fit
from qfml.engine.inputs import ROWS_AT_A_TIME, Inputs, pad_rows, panel_of, time_order
from qfml.engine.member import Member
from qfml.engine.stack import Layout
from qfml.engine.streams import stream
from qfml.engine.trainer import Trainer
from qfml.losses import Loss
from qfml.networks import Dropout

OnEpoch = Callable[[int, dict[str, Any]], None]
_DROPOUT_BYTES = 2**20  # drawn at a time for one member


class Block:
    """M members of one architecture and one batch shape, from their first step to their last.

    Every tensor has a leading member axis; a member that has stopped is taken out of all of them. `members` numbers
    the members that are still training, as places in `everyone`.
    """

    def __init__(
        self, trainer: Trainer, members: Sequence[Member], loss: Loss, ds: TimeDataset, on_epoch: OnEpoch
    ) -> None:
        self.trainer, self.everyone, self.loss, self.ds, self.on_epoch = trainer, members, loss, ds, on_epoch
        self.network = members[0].network
        self.fits: dict[int, Fit] = {}
        self.histories: list[list[dict[str, Any]]] = [[] for _ in members]
        self.members = list(range(len(members)))

        seeds = [(trainer.seed, member.seed) for member in members]
        ordered = trainer.batch_size is None  # all rows at once: their order only matters to a loss of the whole sample
        rows = [time_order(ds, member.train) if ordered else np.asarray(member.train) for member in members]
        batch_size = len(rows[0]) if trainer.batch_size is None else min(trainer.batch_size, len(rows[0]))
        self.clock = Clock(rows, seeds, batch_size, shuffle=not ordered)
        self.inputs = Inputs(ds, [member.transforms for member in members])
        self.panel = None if loss.additive else panel_of(ds, rows, self.clock.width)

        drawn = [_initial(member, self.inputs, seed) for member, seed in zip(members, seeds)]
        self.layout = Layout.of(drawn[0])
        self.parameters = torch.stack([self.layout.flatten(one) for one in drawn]).to(ds.y.device)
        self.best = self.parameters.clone()
        self.state = {name: torch.zeros_like(self.parameters) for name in trainer.optimizer.state_names}
        self.best_loss = np.full(len(members), np.inf)
        self.best_epoch = np.zeros(len(members), dtype=np.int64)
        self.loss_sum = torch.zeros(len(members), dtype=torch.float64, device=ds.y.device)
        self.weight_sum = torch.zeros_like(self.loss_sum)
        self.healthy = torch.ones(len(members), dtype=torch.bool, device=ds.y.device)
        self._bind()

    @property
    def done(self) -> bool:
        """Whether every member has stopped."""
        return len(self.members) == 0

    def step(self) -> None:
        """One training step of every member, each at its own place in its own epoch."""
        rows, filled = self.clock.batch()
        x, y, weight = self.inputs.gather(rows, filled)
        output = self.network.forward(self.views, x, self._dropout())
        loss = self.loss(output, y, weight, self.panel)
        gradient = self.layout.gradient(loss.sum(), self.views, out=self.gradient)
        rate = self._guard(gradient)
        ended = self.clock.advance()
        steps = self.clock.n_steps.tolist()
        self.trainer.optimizer.update(self.parameters, gradient, self.state, steps, rate, self.weight_decay)
        weights = weight.sum(1).double()
        self.loss_sum += loss.detach().double() * weights
        self.weight_sum += weights
        if len(ended):
            self._end_epoch(ended)

    def _guard(self, gradient: Tensor) -> Tensor:
        """Clip each member's gradient to its norm; a member whose gradient is not finite is frozen for good."""
        norm = gradient.square().sum(1, keepdim=True).sqrt()
        self.healthy &= torch.isfinite(norm[:, 0])
        if self.clips:
            gradient.mul_((self.clip_norm / (norm + 1e-6)).clamp_max(1))
        if gradient.device.type == "cpu" and bool(self.healthy.all()):
            return self.lr
        healthy = self.healthy[:, None]
        gradient.masked_fill_(~healthy, 0)
        return torch.where(healthy, self.lr, 0)

    def _dropout(self) -> Dropout | None:
        """The dropout bytes of each member's present step."""
        units = self.network.dropout_units
        if not units:
            return None
        steps = max(1, _DROPOUT_BYTES // (units * self.clock.width))
        if self._bytes is None:
            self._bytes = torch.zeros(len(self.members), steps, self.clock.width, units, dtype=torch.uint8)
            self._bytes_of = [None] * len(self.members)
        chunk, place = np.divmod(self.clock.step, steps)
        for i, (seed, epoch, part) in enumerate(zip(self.clock.seeds, self.clock.epoch.tolist(), chunk.tolist())):
            if self._bytes_of[i] != (epoch, part):
                self._bytes[i].random_(generator=stream(*seed, "dropout", epoch, part))
                self._bytes_of[i] = (epoch, part)
        return Dropout(self._bytes[torch.arange(len(self.members)), torch.from_numpy(place)].to(self.ds.y.device))

    def _end_epoch(self, ended: np.ndarray) -> None:
        """Close the epoch of the members `ended`: validate, keep the best, stop or go on."""
        index = torch.from_numpy(ended).to(self.ds.y.device)
        train_losses = (self.loss_sum[index] / self.weight_sum[index]).tolist()
        self.loss_sum[index] = self.weight_sum[index] = 0
        val_losses = self.validate(ended)
        healthy = self.healthy[index].tolist()
        stopped: list[int] = []
        for member, train_loss, val_loss, finite in zip(ended.tolist(), train_losses, val_losses, healthy):
            epoch = int(self.clock.epoch[member]) + 1
            record = {"epoch": epoch, "train_loss": train_loss, "val_loss": val_loss}
            self.histories[self.members[member]].append(record)
            finite = finite and (val_loss is None or math.isfinite(val_loss))
            if finite and (val_loss is None or val_loss < self.best_loss[member]):
                self.best_loss[member] = np.inf if val_loss is None else val_loss
                self.best_epoch[member] = epoch
                self.best[member] = self.parameters[member]
            status = self._status(member, epoch, finite)
            if status is None:
                self.clock.begin_epoch(member)
            else:
                self._finish(member, status)
                stopped.append(member)
            self.on_epoch(self.members[member], record)
        if stopped:
            self._keep(np.setdiff1d(np.arange(len(self.members)), stopped))

    def _status(self, member: int, epoch: int, finite: bool) -> str | None:
        """Why the member stops here, or None if it goes on."""
        own = self.everyone[self.members[member]]
        patience = self.trainer.patience if own.patience is None else own.patience
        if not finite:
            return "nan"
        if own.val is not None and patience is not None and epoch - self.best_epoch[member] >= patience:
            return "early_stopped"
        return "finished" if epoch >= self.trainer.max_epochs else None

    def _finish(self, member: int, status: str) -> None:
        own = self.everyone[self.members[member]]
        best_epoch = int(self.best_epoch[member])
        kept = self.best[member] if best_epoch else self.parameters[member]  # nan in the first epoch: nothing better
        history = tuple(self.histories[self.members[member]])
        self.fits[self.members[member]] = Fit(
            own.network, self.loss, kept.clone(), self.layout, own.transforms, own.seed, status, history, best_epoch
        )

    @torch.no_grad()
    def validate(self, members: np.ndarray) -> list[float | None]:
        """Loss of each of `members` on its own validation rows; None for one without any.

        Rows go through in chunks of a fixed size, so that a member's loss has the same bits alone and in a stack.
        """
        chosen = [int(member) for member in members if self.everyone[self.members[member]].val is not None]
        losses: dict[int, float] = {}
        if chosen and self.loss.additive:
            losses = dict(zip(chosen, self._validate(chosen)))
        elif chosen:
            losses = {member: self._validate([member])[0] for member in chosen}
        return [losses.get(int(member)) for member in members]

    def _validate(self, members: list[int]) -> list[float]:
        rows = [time_order(self.ds, self.everyone[self.members[member]].val) for member in members]  # pyright: ignore[reportArgumentType]
        table, filled = pad_rows(rows, ROWS_AT_A_TIME)
        index = torch.tensor(members, device=self.ds.y.device)
        views = self.layout.views(self.parameters[index])
        table, weight = table.to(self.ds.y.device), filled.to(self.ds.y.device)
        if self.ds.weight is not None:
            weight = weight * self.ds.weight[table]
        chunks = table.split(ROWS_AT_A_TIME, dim=1)
        outputs = [self.network.forward(views, self.inputs.gather_x(chunk, index)) for chunk in chunks]
        if not self.loss.additive:
            n = len(rows[0])
            output, own = torch.cat(outputs, dim=1)[:, :n], table[:, :n]
            return self.loss(output, self.ds.y[own], weight[:, :n], panel_of(self.ds, rows)).tolist()
        total = weight_sum = torch.zeros(len(members), dtype=torch.float64, device=self.ds.y.device)
        for output, chunk, part in zip(outputs, chunks, weight.split(ROWS_AT_A_TIME, dim=1)):
            chunk_weight = part.sum(1).double()
            total = total + self.loss(output, self.ds.y[chunk], part).double() * chunk_weight
            weight_sum = weight_sum + chunk_weight
        return (total / weight_sum).tolist()

    def _keep(self, places: np.ndarray) -> None:
        """Take the members that have stopped out of every tensor."""
        index = torch.from_numpy(places)
        moved = index.to(self.ds.y.device)
        self.members = [self.members[place] for place in places]
        self.clock.keep(places)
        self.inputs.keep(moved)
        if self.panel is not None:
            self.panel = type(self.panel)(self.panel.period[moved], self.panel.first[moved])
        for name in ("parameters", "best", "loss_sum", "weight_sum", "healthy"):
            setattr(self, name, getattr(self, name)[moved])
        self.state = {name: value[moved] for name, value in self.state.items()}
        self.best_loss, self.best_epoch = self.best_loss[places], self.best_epoch[places]
        self._bind()

    def _bind(self) -> None:
        """What is derived from the members that are left: views, work buffers and hyperparameters as columns."""
        self.views = self.layout.views(self.parameters, requires_grad=True)
        self.gradient = torch.empty_like(self.parameters)
        self._bytes: Tensor | None = None
        self._bytes_of: list[tuple[int, int] | None] = []
        own, trainer = [self.everyone[i] for i in self.members], self.trainer
        self.lr = self._column([m.lr for m in own], trainer.optimizer.lr)
        self.weight_decay = self._column([m.weight_decay for m in own], trainer.optimizer.weight_decay)
        clip = float("inf") if trainer.clip_norm is None else trainer.clip_norm
        self.clip_norm = self._column([m.clip_norm for m in own], clip)
        self.clips = bool(torch.isfinite(self.clip_norm).any())

    def _column(self, values: Sequence[float | None], default: float) -> Tensor:
        filled = [default if value is None else value for value in values]
        return torch.tensor(filled, dtype=torch.float32, device=self.ds.y.device)[:, None]

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of a checkpoint, one row a member."""
        names = ("parameters", "best", "loss_sum", "weight_sum", "healthy")
        tensors = {name: getattr(self, name) for name in names}
        tensors |= {f"state.{name}": value for name, value in self.state.items()}
        return tensors | {f"fit.{place}": fit.parameters for place, fit in self.fits.items()}

    def counters(self) -> dict[str, Any]:
        """The rest of a checkpoint, as JSON types."""
        fits = {place: {"status": fit.status, "best_epoch": fit.best_epoch} for place, fit in self.fits.items()}
        return {
            "members": self.members,
            "clock": self.clock.state(),
            "best_loss": self.best_loss.tolist(),
            "best_epoch": self.best_epoch.tolist(),
            "histories": self.histories,
            "fits": {str(place): fit for place, fit in fits.items()},
        }

    def restore(self, tensors: dict[str, Tensor], counters: dict[str, Any]) -> None:
        """Continue where `tensors()` and `counters()` were taken."""
        self.histories = counters["histories"]
        for place, fit in counters["fits"].items():
            self.best[int(place)] = tensors[f"fit.{place}"]
            self.best_epoch[int(place)] = fit["best_epoch"]
            self.parameters[int(place)] = tensors[f"fit.{place}"]
            self._finish(int(place), fit["status"])
        places = np.array(counters["members"], dtype=np.int64)
        self._keep(places)
        self.clock.restore(counters["clock"])
        for name in ("parameters", "best", "loss_sum", "weight_sum", "healthy"):
            getattr(self, name).copy_(tensors[name])
        for name, value in self.state.items():
            value.copy_(tensors[f"state.{name}"])
        self.best_loss = np.array(counters["best_loss"], dtype=np.float64)
        self.best_epoch = np.array(counters["best_epoch"], dtype=np.int64)


def _initial(member: Member, inputs: Inputs, seed: tuple[int, int]) -> dict[str, Tensor]:
    """A member's first parameters: those of an earlier fit, or drawn from its own stream."""
    if member.start is not None:
        return member.start.named_parameters()
    return member.network.init(inputs.features.shape[1], inputs.window, stream(*seed, "init"))
