"""From members to fits: plan the blocks, train one after another, write checkpoints, resume."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qfml.config import config_hash, to_dict
from qfml.data.dataset import TimeDataset
from qfml.engine.block import Block, OnEpoch, OnFail, OnLog
from qfml.engine.callbacks import Callback
from qfml.engine.checkpoint import check_unused, newest_whole
from qfml.engine.determinism import deterministic
from qfml.engine.differential import check_differential
from qfml.engine.feed import BatchData
from qfml.engine.fit import Fit
from qfml.engine.inputs import n_periods
from qfml.engine.interrupt import StopRequest, stop_on_signals
from qfml.engine.member import Member, check_weights
from qfml.engine.monitor import check_metrics
from qfml.engine.provenance import provenance
from qfml.engine.saving import Saver, unpack_histories
from qfml.engine.stackable import stackable
from qfml.engine.trainer import Trainer
from qfml.engine.unvalidated import waits_for_validation
from qfml.engine.watching.memory import explained
from qfml.engine.watching.watch import Watching
from qfml.errors import CheckpointError, Interrupted, UserError
from qfml.losses import Loss
from qfml.networks import Module, Network, architecture

Refill = Callable[[int], Sequence[Member]]

_CACHE_BYTES = 4 * 2**20  # what a block's parameters, optimizer state and batch may fill
_FEW = 8  # members below which a step is spent on launching operations; they may fill eight times as much


def train(
    trainer: Trainer,
    members: Sequence[Member],
    loss: Loss,
    ds: TimeDataset | BatchData,
    callbacks: Sequence[Callback],
    checkpoint_dir: Path | None,
    resume: bool,
    refill: Refill | None = None,
) -> list[Fit]:
    """What `Trainer.fit_many` does."""
    _check(members, loss, ds, trainer)
    if refill is not None and checkpoint_dir is not None:
        raise UserError(
            "`refill` and `checkpoint_dir` exclude each other: what new members are is known to the caller alone, who "
            "has to keep it; leave one of them out"
        )
    if trainer.fast_dev_run:
        trainer, checkpoint_dir, resume = replace(trainer, max_epochs=1, max_steps=2), None, False
    if checkpoint_dir is not None and not resume:
        check_unused(checkpoint_dir)
    run = _Run(trainer, members, loss, ds.to(trainer.device), callbacks, checkpoint_dir, refill)
    if resume:
        run.restore()
    # A matrix product that is split over threads sums in another order. With no more threads than members each
    # product stays on one thread, and a member's bits do not depend on the size of the stack.
    threads = torch.get_num_threads()
    try:
        with deterministic(trainer.deterministic, torch.device(trainer.device)), explained(run.memory_settings):
            return run.finish(threads)
    finally:
        torch.set_num_threads(threads)


class _Run:
    """The state of one `fit_many`: blocks that are done, the block at work, and when to write a checkpoint."""

    def __init__(
        self,
        trainer: Trainer,
        members: Sequence[Member],
        loss: Loss,
        ds: TimeDataset | BatchData,
        callbacks: Sequence[Callback],
        folder: Path | None,
        refill: Refill | None = None,
    ) -> None:
        self.trainer, self.members, self.loss, self.ds = trainer, list(members), loss, ds
        self.callbacks, self.folder, self.refill = callbacks, folder, refill
        self.plan = plan_blocks(trainer, members, loss, ds)
        self.blocks: list[Block] = []  # all that were begun; only the last may be unfinished
        self.threads = torch.get_num_threads()
        self.damaged: list[int] = []  # checkpoints that were passed over
        self.told: set[int] = set()  # members whose fits the callbacks know
        self.watching = Watching(trainer, callbacks, torch.device(trainer.device))
        self.write = self.watching.checkpoint(self.write)
        for callback in callbacks:
            callback.begin(len(members), trainer.max_epochs)

    def finish(self, threads: int) -> list[Fit]:
        """Train what is left on at most `threads` threads, and return the fits in the members' order."""
        self.began = time.monotonic()
        with self._saver() as saver, stop_on_signals() if self.folder else _never() as request:
            while True:
                if not self.blocks or self.blocks[-1].done:
                    if len(self.blocks) == len(self.plan):
                        break
                    self._begin_block()
                block = self.blocks[-1]
                if self.late:
                    if saver is not None:  # before they stop: a resumed run goes on from here
                        self.write(saver, wait=True)
                        saver = None
                    block.stop("max_time")
                    self._tell_fits(block)
                    continue
                going = len(block.members)
                torch.set_num_threads(min(threads, going))
                block.step()
                if len(block.members) < going:
                    self._tell_fits(block)
                    if self.refill is not None:
                        self._fill_up(block, self.refill(going - len(block.members)))
                if saver is None:
                    continue
                if request.signal_number:
                    self.write(saver, wait=True)
                    raise Interrupted(request.signal_number)
                self._announce(saver.written())
                if saver.due:
                    self.write(saver)
            if saver is not None:
                self.write(saver, wait=True)
        fits = {ids[own]: fit for ids, block in zip(self.plan, self.blocks) for own, fit in block.fits.items()}
        in_order = [fits[place] for place in range(len(self.members))]
        self.watching.end()
        for callback in self.callbacks:
            callback.end(in_order)
        return in_order

    @property
    def late(self) -> bool:
        """Whether the time that the trainer was given is over."""
        limit = self.trainer.max_seconds
        return limit is not None and time.monotonic() - self.began > limit

    @property
    def memory_settings(self) -> dict[str, int | None]:
        """What decides how much memory is needed, by name."""
        own = {name: getattr(self.trainer, name) for name in ("micro_batch_size", "member_block", "batch_size")}
        return own | {"window": None if isinstance(self.ds, BatchData) else self.ds.window}

    def _begin_block(self) -> Block:
        ids = self.plan[len(self.blocks)]
        members = [self.members[place] for place in ids]
        block = Block(self.trainer, members, self.loss, self.ds, *self._listeners(ids))
        block.threads = self.threads
        self.watching.attach(block)
        self.blocks.append(block)
        return block

    def _listeners(self, ids: list[int]) -> tuple[OnEpoch, OnLog, OnFail]:
        """What a block of the members `ids` tells the callbacks, who know them by these numbers."""

        def on_epoch(member: int, record: dict[str, Any], stopped: bool) -> bool:
            return self.tell(ids[member], record, stopped)

        def on_log(member: int, step: int, values: dict[str, float]) -> None:
            for callback in self.callbacks:
                callback.log(ids[member], step, values)

        def on_fail(member: int, step: int, sentence: str) -> None:
            for callback in self.callbacks:
                callback.fail(ids[member], step, sentence)

        return on_epoch, on_log, on_fail

    def _fill_up(self, block: Block, new: Sequence[Member]) -> None:
        """Take `new` members into the block at work if they are of its kind, and plan blocks for the others."""
        if not new:
            return
        _check(new, self.loss, self.ds, self.trainer)
        first = len(self.members)
        self.members.extend(new)
        planned = plan_blocks(self.trainer, self.members, self.loss, self.ds, range(first, len(self.members)))
        alike = kind_of(self.trainer, block.everyone[0], self.loss, self.ds)
        joining = [] if block.done else [ids for ids in planned if self._kind(ids[0]) == alike]
        self.plan += [ids for ids in planned if ids not in joining]
        if joining:
            old, added = self.plan[len(self.blocks) - 1], [place for ids in joining for place in ids]
            ids = [*(old[member] for member in block.members), *added]
            self.plan.insert(len(self.blocks), ids)
            self.blocks.append(block.joined([self.members[place] for place in added], *self._listeners(ids)))
            self.watching.attach(self.blocks[-1])

    def _kind(self, place: int) -> Any:
        return kind_of(self.trainer, self.members[place], self.loss, self.ds)

    def tell(self, member: int, record: dict[str, Any], stopped: bool) -> bool:
        """Tell all callbacks of an epoch; whether one of them wants the member to stop."""
        wishes = [callback.epoch(member, record, stopped) for callback in self.callbacks]
        return any(wishes)

    def _tell_fits(self, block: Block) -> None:
        """Tell all callbacks of the fits that the block at work has made since the last time."""
        ids = self.plan[len(self.blocks) - 1]
        for own in [own for own in block.fits if ids[own] not in self.told]:
            self.told.add(ids[own])
            for callback in self.callbacks:
                callback.finished(ids[own], block.fits[own])

    def _saver(self) -> Saver | nullcontext[None]:
        if self.folder is None:
            return nullcontext()
        return Saver(self.folder, self.trainer.checkpoint_seconds, self.trainer.keep_checkpoints, self.damaged)

    def write(self, saver: Saver, wait: bool = False) -> None:
        """Begin to write a checkpoint of everything so far, once the one before is written."""
        self._announce(saver.written(wait=True))
        tensors = {f"{i}.{name}": t for i, block in enumerate(self.blocks) for name, t in block.tensors().items()}
        counters = [
            block.counters() | {"ids": ids, "shapes": block.layout.shapes} for ids, block in zip(self.plan, self.blocks)
        ]
        saver.begin(tensors, {"fingerprint": self.fingerprint, "blocks": counters}, self.record)
        if wait:
            self._announce(saver.written(wait=True))

    def _announce(self, written: Path | None) -> None:
        if written is not None:
            for callback in self.callbacks:
                callback.checkpoint(written)

    @cached_property
    def record(self) -> dict[str, Any]:
        """What the manifest says of where the run came from."""
        distinct = {id(member.network): member.network for member in self.members}.values()
        networks = [network.identity if isinstance(network, Module) else network for network in distinct]
        settings = to_dict({"trainer": self.trainer, "loss": self.loss, "networks": networks})
        seeds = [self.trainer.seed, *(member.seed for member in self.members)]
        found = provenance(
            seeds=seeds, data_hash=self.ds.data_hash, config_hash=config_hash(settings), threads=self.threads
        )
        return found | {"config": settings}

    def restore(self) -> None:
        """Continue from the newest whole checkpoint, telling the callbacks of the epochs that it holds."""
        if self.folder is None:
            raise CheckpointError("`resume` needs `checkpoint_dir`, the folder of the checkpoints to resume from")
        tensors, state, self.damaged = newest_whole(self.folder)
        known = state.get("fingerprint")
        if known != self.fingerprint:
            known = known if isinstance(known, dict) else {}
            other = [name for name, own in self.fingerprint.items() if known.get(name) != own]
            raise CheckpointError(
                f"the checkpoint in {self.folder} belongs to other data, members or settings (not the same: "
                f"{', '.join(other)}): resume with those it was "
                "written for, or start a new run"
            )
        tensors, state = unpack_histories(tensors, state)
        if len(state["blocks"]) > len(self.plan):
            raise CheckpointError(f"the checkpoint in {self.folder} is not ours: it has more blocks than the run")
        for i, counters in enumerate(state["blocks"]):
            if self.blocks and not self.blocks[-1].done:
                raise CheckpointError(f"the checkpoint in {self.folder} is not ours: block {i} began before its turn")
            block = self._begin_block()
            own = {name.removeprefix(f"{i}."): t for name, t in tensors.items() if name.startswith(f"{i}.")}
            block.restore(own, counters)
            for member, failure in block.failures.items():
                block.on_fail(member, *failure)
            for member, history in enumerate(block.histories):
                for record in history:
                    last = record is history[-1]
                    self.tell(self.plan[i][member], record, last and member in block.fits)
            self._tell_fits(block)

    @cached_property
    def fingerprint(self) -> dict[str, str]:
        """Hashes of all that decides the result, and of `member_block`, which orders what a checkpoint holds."""
        aside = {"device": "cpu", "deterministic": False, "max_seconds": None, "log_every": None}
        aside |= {"watch": (), "time_split": False, "profile": None}  # what is watched decides nothing
        trainer = replace(self.trainer, checkpoint_seconds=0.0, keep_checkpoints=2, **aside)
        return {
            "data": self.ds.data_hash,
            "trainer": config_hash(trainer),
            "loss": config_hash(self.loss),
            "members": config_hash([_identity(member) for member in self.members]),
        }


def plan_blocks(
    trainer: Trainer,
    members: Sequence[Member],
    loss: Loss,
    ds: TimeDataset | BatchData,
    places: Sequence[int] | None = None,
) -> list[list[int]]:
    """Which members (of `places`) train together: those of one kind, as many as fit into the cache."""
    alike: dict[Any, list[int]] = {}
    for place in range(len(members)) if places is None else places:
        alike.setdefault(kind_of(trainer, members[place], loss, ds), []).append(place)
    blocks = []
    for (network, batch, _, width), own in alike.items():
        size = trainer.member_block or _block_size(network, batch, width, ds.window, loss.n_outputs)
        size = size if stackable(trainer, [members[place] for place in own], loss.n_outputs, ds) else 1
        blocks += [own[i : i + size] for i in range(0, len(own), size)]
    return blocks


def kind_of(trainer: Trainer, member: Member, loss: Loss, ds: TimeDataset | BatchData) -> tuple[Any, ...]:
    """What members must have in common to train in one block: the architecture and the shape of a batch."""
    rows = len(member.train)
    batch = rows if trainer.batch_size is None else min(trainer.batch_size, rows)
    periods = None if loss.additive or isinstance(ds, BatchData) else n_periods(ds, member.train)
    return (architecture(member.network), batch, periods, _width(member, ds))


def _width(member: Member, ds: TimeDataset | BatchData) -> int:
    if member.transforms is None:
        return ds.n_features
    return member.transforms.n_features


def _block_size(network: Network, batch: int, n_features: int, window: int | None, n_outputs: int) -> int:
    """Members whose parameters, gradient, two moments and batch of inputs fill the cache; at least a few."""
    drawn = network.init(n_features, window, torch.Generator(), n_outputs)
    parameters = sum(value.numel() for value in drawn.values())
    own = 16 * parameters + 4 * batch * n_features * (window or 1)
    return max(1, _CACHE_BYTES // own, min(_FEW, 8 * _CACHE_BYTES // own))


def _check(members: Sequence[Member], loss: Loss, ds: TimeDataset | BatchData, trainer: Trainer) -> None:
    if not members:
        raise UserError("`members` is empty: there is nothing to train")
    if not isinstance(ds, TimeDataset | BatchData):
        raise UserError(f"`ds` must be a TimeDataset, got {type(ds).__name__}")
    if isinstance(loss, type) or not isinstance(loss, Loss):
        raise UserError(f"`loss` must be one such as MSE(), got {loss!r}")
    sampled = isinstance(ds, BatchData) and ds.is_sample
    if not loss.additive and trainer.batch_size is not None and not sampled:
        raise UserError(
            f"`{loss.kind}` is a loss of the whole sample: set `batch_size` to None, got {trainer.batch_size}"
        )
    check_metrics(trainer.metrics, loss)
    for place, member in enumerate(members):
        if isinstance(ds, TimeDataset):
            member.check(ds)
            check_weights(member, place, loss, ds)
        check_differential(loss, member, place, ds, trainer.precision, trainer.compile is not None)
        if member.start is not None and member.start.loss.n_outputs != loss.n_outputs:
            raise UserError(
                f"`start` of member {place} has {member.start.loss.n_outputs} outputs, but `{loss.kind}` needs "
                f"{loss.n_outputs}: start from a fit of the same outputs, or leave `start` out"
            )
        if trainer.optimizer.kind == "lbfgs" and member.network.dropout_units:
            raise UserError(
                f"member {place} has dropout, with which the optimizer lbfgs cannot train: its line search needs a "
                "loss that stays the same; set `dropout` to 0"
            )
        validated = member.val is not None or (isinstance(ds, BatchData) and ds.validates)
        if not validated and not trainer.fast_dev_run:
            _check_unvalidated(trainer, member, place)
    if isinstance(ds, TimeDataset):  # a stream's labels are checked batch by batch
        loss.check_labels(ds.y)


def _check_unvalidated(trainer: Trainer, member: Member, place: int) -> None:
    if what := waits_for_validation(trainer, own_patience=member.patience is not None):
        raise UserError(
            f"{what} waits for `{trainer.monitor}`, which member {place} has not: give it `val` rows, set `monitor` to "
            '"train_loss", or leave it out'
        )


def _identity(member: Member) -> list[Any]:
    fitted = None if member.transforms is None else member.transforms
    numbers = {} if fitted is None else {name: _digest(value.cpu().numpy()) for name, value in fitted.state().items()}
    transforms = None if fitted is None else [fitted.meta(), numbers]
    start = None if member.start is None else member.start.parameters.cpu().numpy()
    network = member.network.identity if isinstance(member.network, Module) else member.network
    return [network, *member.numbers, transforms, _digest(member.train), _digest(member.val), _digest(start)]


def _digest(array: np.ndarray | None) -> str | None:
    return None if array is None else hashlib.sha256(np.ascontiguousarray(array).view(np.uint8).data).hexdigest()[:16]


@contextmanager
def _never() -> Iterator[StopRequest]:
    """Signals keep their usual meaning: without checkpoints there is nothing to write."""
    yield StopRequest()
