"""Training from a stream: what can be trained so, and the same run that trains from memory."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch.utils.data import DataLoader

from qfml.data.dataset import TimeDataset
from qfml.data.streaming import StreamingTimeDataset
from qfml.engine.callbacks import Callback
from qfml.engine.fit import Fit
from qfml.engine.loading import BatchSource, Data
from qfml.engine.member import Member, check_weights
from qfml.engine.sampling import Shuffled
from qfml.engine.stream_feed import Adapter, StreamedData, StreamMember
from qfml.engine.trainer import Trainer
from qfml.engine.training import train
from qfml.errors import UserError
from qfml.losses import Loss

_DEAD_WORKER = re.compile(r"DataLoader worker \(pid")


def train_stream(
    trainer: Trainer,
    members: Sequence[Member],
    loss: Loss,
    data: Data,
    val: TimeDataset | None,
    adapter: Adapter | None,
    ahead: int,
    callbacks: Sequence[Callback],
    checkpoint_dir: Path | None,
    resume: bool,
) -> list[Fit]:
    """What `Trainer.fit_stream` does."""
    batch_size = _check(trainer, members, loss, data, val, ahead)
    source = BatchSource(data, trainer.seed)
    if source.batch_size is not None and source.batch_size != batch_size:
        raise UserError(
            f"`batch_size` of the trainer must be that of the stream, {source.batch_size}, got {batch_size}"
        )
    if checkpoint_dir is not None and source.irreproducible is not None:
        raise UserError(
            f"a training from this DataLoader cannot be resumed, since the order of an epoch cannot be had again: "
            f"{source.irreproducible}. Pass `generator=torch.Generator()` to the DataLoader, which is then seeded for "
            "each epoch, or leave `checkpoint_dir` out"
        )
    if val is not None:
        everything = np.arange(len(val))
        members = [replace(member, val=everything) if member.val is None else member for member in members]
        for place, member in enumerate(members):
            check_weights(member, place, loss, val, names=("val",))
    # the stream is read once for all members that can train together
    trainer = replace(trainer, member_block=trainer.member_block or len(members))
    streamed = StreamedData(source, loss, batch_size, adapter, val, ahead, trainer.device)
    try:
        _check_validation(streamed)
        return train(trainer, members, loss, streamed, callbacks, checkpoint_dir, resume)
    except RuntimeError as error:
        if _DEAD_WORKER.search(str(error)):
            raise UserError(
                f"a worker process of the DataLoader died ({error}): most often it had no memory left. Lower "
                "`num_workers` or `prefetch_factor`, or set `num_workers` to 0 to see its error; `resume` continues "
                "from the last checkpoint, if there is one"
            ) from error
        raise
    finally:
        streamed.close()
        source.release()


def _check(
    trainer: Trainer,
    members: Sequence[Member],
    loss: Loss,
    data: Data,
    val: TimeDataset | None,
    ahead: int,
) -> int:
    """Raise UserError on what a stream cannot do; the batch size."""
    if not isinstance(data, StreamingTimeDataset | DataLoader):
        raise UserError(f"`data` must be a StreamingTimeDataset or a DataLoader, got {type(data).__name__}")
    if not isinstance(val, TimeDataset | None):
        raise UserError(f"`val` must be a TimeDataset, got {type(val).__name__}")
    if isinstance(ahead, bool) or not isinstance(ahead, int) or ahead < 0:
        raise UserError(f"`ahead` must be a whole number, at least 0, got {ahead!r}")
    if trainer.optimizer.kind == "lbfgs":
        raise UserError("the optimizer lbfgs takes all rows at once, which a stream does not have: use another one")
    if isinstance(loss, Loss) and not isinstance(loss, type) and not loss.additive:
        raise UserError(
            f"`{loss.kind}` is a loss of the whole sample, of which a stream shows one batch at a time: use an "
            "additive loss such as MSE(), or a TimeDataset in memory"
        )
    if trainer.batch_size is None:
        raise UserError(
            "`batch_size` must be the stream's batch size, got None: a stream does not give all rows at once"
        )
    if trainer.sampler != Shuffled():
        raise UserError(
            f"the sampler {trainer.sampler.kind} needs rows in memory: the order of a stream is its own; leave "
            "`sampler` out"
        )
    for place, member in enumerate(members):
        if member.transforms is not None:
            raise UserError(
                f"member {place} has `transforms`, which are applied to data in memory: fit them on the training rows "
                "and apply them before the shards are written"
            )
        if not isinstance(member, StreamMember):
            raise UserError(
                f"member {place} has training rows of its own, which a stream does not have: make it a StreamMember"
            )
        member.check_validation(val)
    return trainer.batch_size


def _check_validation(streamed: StreamedData) -> None:
    val = streamed.val
    if val is not None and (val.n_features, val.window) != (streamed.n_features, streamed.window):
        raise UserError(
            f"`val` must have the stream's features: it has {val.n_features} and window {val.window}, the stream "
            f"{streamed.n_features} and {streamed.window}"
        )
