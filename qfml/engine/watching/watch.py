"""What is attached to a block, by wrapping its callables; a block of a training that is not watched is left alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from qfml.engine.backward import micro_batches
from qfml.engine.block import Block
from qfml.engine.callbacks import Callback
from qfml.engine.feed import Batch
from qfml.engine.stream_feed import StreamFeed
from qfml.engine.trainer import Trainer
from qfml.engine.watching.memory import memory_report
from qfml.engine.watching.split import AFTER, Stopwatch, verdict
from qfml.engine.watching.statistics import activation_statistics, norms_by_parameter, update_ratio
from qfml.engine.watching.trace import Tracer
from qfml.networks import Module, Network


class Watching:
    """All that watches one training.

    Args:
        trainer: says what is watched.
        callbacks: who is told.
        device: where the training runs.
    """

    def __init__(self, trainer: Trainer, callbacks: Sequence[Callback], device: torch.device) -> None:
        self.trainer, self.callbacks = trainer, callbacks
        self.stopwatch = Stopwatch(device) if trainer.time_split else None
        self.tracer = None if trainer.profile is None else Tracer(trainer.profile, device)
        self.last_epoch = 0

    def attach(self, block: Block) -> None:
        """Watch a block from its next step on."""
        if self.trainer.log_every is not None:
            _add_statistics(block, self.trainer.log_every, self.trainer.watch)
        if self.stopwatch is not None:
            self._split(block, self.stopwatch)
        if self.tracer is not None:
            _replace(block, "step", self.tracer.traced)
        if "memory" in self.trainer.watch:  # the last, for it undoes itself after one step
            self._report_memory(block)

    def checkpoint(self, write: Callable[..., None]) -> Callable[..., None]:
        """`write`, with its time counted."""
        return write if self.stopwatch is None else self.stopwatch.timed("checkpoint", write)

    def end(self) -> None:
        """Training is over."""
        if self.stopwatch is not None:  # the last checkpoint, or the part of an epoch that was cut off
            self._tell(self.stopwatch, after=True)
        if self.tracer is not None:
            self.tracer.end()

    def _tell(self, watch: Stopwatch, after: bool = False) -> None:
        """Tell what the time since the last call went into; `after` the last epoch there is nothing to judge."""
        seconds = watch.take()
        for callback in self.callbacks:
            callback.split(self.last_epoch, seconds, AFTER if after else verdict(seconds))

    def _report_memory(self, block: Block) -> None:
        """Tell of the memory once, after the block's first step, when its largest tensors have come and gone."""

        def reported(step: Callable[[], None]) -> Callable[[], None]:
            def run() -> None:
                first, batches = {**block.tensor, "gradient": block.gradient}, []
                following = block.feed.next

                def seen() -> Batch:
                    batches.append(following())
                    return batches[-1]

                block.feed.next = seen
                try:
                    step()
                finally:
                    block.feed.next = following
                    block.step = step
                gradient = first.pop("gradient")
                inputs = block.feed.inputs
                data = [] if inputs is None else [inputs.features, inputs.y, inputs.ends, inputs.sample_weight]
                report = memory_report(first, gradient, batches[0], data, block.device)
                for callback in self.callbacks:
                    callback.memory(report)

            return run

        _replace(block, "step", reported)

    def _split(self, block: Block, watch: Stopwatch) -> None:
        """Count the time of the block's parts, and tell of it when the block's first member ends an epoch."""

        def end_epoch(ended: Any) -> None:
            epoch = int(block.clock.epoch[0]) + 1
            close(ended)
            if 0 in ended:
                self.last_epoch = epoch
                self._tell(watch)

        # what a gradient takes beside the network's own pass is counted as the backward pass
        parts = {"_gradient": "backward", "_validate": "validation", "step": "step"}
        for name, part in parts.items():
            setattr(block, name, watch.timed(part, getattr(block, name)))
        _replace(block.feed, "next", lambda call: watch.timed("data", call))
        if isinstance(block.feed, StreamFeed):
            _replace(block.feed, "copied", lambda call: watch.timed("copy", call))
        block.forward = watch.timed("forward", block.forward)
        if block.written:
            block.network = TimedNetwork(block.network, watch)  # pyright: ignore[reportAttributeAccessIssue]
        close = block._end_epoch
        block._end_epoch = watch.timed("other", end_epoch)
        block._log = watch.timed("other", block._log)


class TimedNetwork:
    """A network that knows its own gradient, with the time of its outputs counted apart from that of the gradient."""

    def __init__(self, network: Network, watch: Stopwatch) -> None:
        self._network, self._watch = network, watch

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._network, name)
        return self._watch.timed("forward", found) if name == "pullback" else found


def _replace(owner: Any, name: str, wrap: Callable[[Any], Any]) -> None:
    setattr(owner, name, wrap(getattr(owner, name)))


def _add_statistics(block: Block, log_every: int, watch: Sequence[str]) -> None:
    """On log steps, add to what `log` is told; on others, do nothing."""
    noted: dict[str, Tensor] = {}
    told: dict[str, list[float]] = {}
    look, update, on_log = block._calm, block._update, block.on_log

    def logs() -> bool:
        return bool(((block.clock.n_steps + 1) % log_every == 0).any())

    def looked(norm: Tensor) -> bool:
        if "layers" in watch and logs():  # here the gradient is still what was found: neither clipped nor masked
            by_name = norms_by_parameter(block.gradient, block.layout)
            noted.update({f"gradient_norm/{name}": value for name, value in by_name.items()})
        return look(norm)

    def updated(moving: Tensor | None, batch: Batch) -> None:
        if not logs():
            return update(moving, batch)
        before = block.parameters.clone()
        if "layers" in watch:
            by_name = norms_by_parameter(before, block.layout)
            noted.update({f"weight_norm/{name}": value for name, value in by_name.items()})
        if "activations" in watch:
            noted.update(_activations(block, batch, before))
        update(moving, batch)
        noted["update_ratio"] = update_ratio(before, block.parameters)
        return None

    def logged(member: int, step: int, values: dict[str, float]) -> None:
        if noted:  # read from the device once, for all members
            told.clear()
            columns = torch.stack([value.double() for value in noted.values()]).tolist()
            told.update(zip(noted, columns))
            noted.clear()
        place = block.members.index(member)
        on_log(member, step, values | {name: column[place] for name, column in told.items()})

    block._calm, block._update, block.on_log = looked, updated, logged


def _activations(block: Block, batch: Batch, parameters: Tensor) -> dict[str, Tensor]:
    """What the layers put out on the rows of the step, without dropout."""
    parts = list(micro_batches(batch.share.shape[1], block.trainer.micro_batch_size))
    pieces = [(batch.x[:, part], None) for part in parts]
    there = [batch.weight[:, part] > 0 for part in parts]
    network = block.everyone[0].network
    if not isinstance(network, Module):
        return activation_statistics(network, block.layout.views(parameters), pieces, there)
    alone = [slice(member, member + 1) for member in range(len(parameters))]  # stacked, its layers cannot be seen
    found = [
        activation_statistics(
            network,
            block.layout.views(parameters[own]),
            [(x[own], dropout) for x, dropout in pieces],
            [part[own] for part in there],
        )
        for own in alone
    ]
    return {name: torch.cat([one[name] for one in found]) for name in found[0]}
