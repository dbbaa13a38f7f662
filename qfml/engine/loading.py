"""Epochs of batches that do not lie in memory: Parquet shards and torch's DataLoader, read from any batch on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, IterableDataset, SequentialSampler

from qfml.data.streaming import StreamingTimeDataset
from qfml.engine.streams import stream
from qfml.errors import UserError

Prepared = TypeVar("Prepared")
Data = Any  # StreamingTimeDataset | DataLoader; the annotations of torch's class are older than beartype allows


class BatchSource:
    """The batches of each epoch, in an order that depends on (seed, epoch) alone.

    A `StreamingTimeDataset` is told epoch and position and starts at any batch. Another DataLoader is iterated anew:
    its generator, and that of its sampler, are seeded by (seed, epoch); a data set or sampler that has `set_epoch` is
    told the epoch; the batches before the position are read and left out.

    Args:
        data: a stream of shards, or a DataLoader.
        seed: of the order of a DataLoader that has a generator; a stream of shards has a seed of its own.

    Attributes:
        n_batches: batches of an epoch.
        batch_size: rows of each batch but the last; None where only the batches themselves tell.
        columns: what stands in a batch of `StreamingTimeDataset`, in its order; None for other batches.

    Raises:
        UserError: a DataLoader whose number of batches is not known, or that would join batches of shards.
    """

    def __init__(self, data: Data, seed: int) -> None:
        self.data: Data = data
        self.seed = seed
        dataset = data.dataset if isinstance(data, DataLoader) else data
        self.shards = dataset if isinstance(dataset, StreamingTimeDataset) else None
        if self.shards is not None and isinstance(data, DataLoader) and data.batch_size is not None:
            raise UserError(
                f"`batch_size` of the DataLoader must be None, got {data.batch_size}: what StreamingTimeDataset gives "
                "are batches already"
            )
        try:
            self.n_batches = len(data)
        except TypeError:
            raise UserError(
                f"the DataLoader must know its number of batches, and {type(dataset).__name__} has no length: give it "
                "`__len__`"
            ) from None
        if self.n_batches < 1:
            raise UserError("the DataLoader gives no batch: its data set is empty, or smaller than one batch")
        self.batch_size = data.batch_size if self.shards is None else self.shards.batch_size
        self._begun = False

    @property
    def has_workers(self) -> bool:
        """Whether processes of their own read ahead."""
        return isinstance(self.data, DataLoader) and self.data.num_workers > 0

    @property
    def columns(self) -> tuple[str, ...] | None:
        """The roles of the columns of a batch of shards."""
        if self.shards is None or self.shards.as_dict:
            return None
        if isinstance(self.data, DataLoader) and self.data.collate_fn is not torch.utils.data.default_convert:
            return None
        return ("x", "y", "time") if self.shards.columns.weight is None else ("x", "y", "weight", "time")

    @property
    def irreproducible(self) -> str | None:
        """Why the order of an epoch cannot be had again; None if it can."""
        if self.shards is not None or not isinstance(self.data, DataLoader):
            return None
        parts = _parts(self.data)
        if any(hasattr(part, "set_epoch") for part in parts) or _generators(parts):
            return None
        if isinstance(self.data.dataset, IterableDataset):
            return f"{type(self.data.dataset).__name__} has no `set_epoch(epoch)` that says which order is wanted"
        if self.data.batch_sampler is None or isinstance(_innermost(self.data), SequentialSampler):
            return None
        return f"its {type(_innermost(self.data)).__name__} has no `generator` that could be seeded"

    @property
    def identity(self) -> list[Any]:
        """What the batches depend on, as far as it can be known, as JSON types."""
        if self.shards is not None:
            return [self.shards.state_dict(batch=0)["settings"]]
        loader = self.data
        assert isinstance(loader, DataLoader)
        names = [type(part).__qualname__ for part in _parts(loader)]
        return [*names, self.n_batches, loader.batch_size, loader.drop_last]

    def open(self, epoch: int, batch: int) -> Iterator[Any]:
        """The batches of an epoch from number `batch` on."""
        if self.shards is not None:
            self.shards.set_epoch(epoch, batch)
            return iter(self.data)
        assert isinstance(self.data, DataLoader)
        parts = _parts(self.data)
        if self.data.persistent_workers and not self._begun:
            iter(self.data)  # the first iteration draws a seed of the workers from the generator, later ones do not
        self._begun = True
        for generator in _generators(parts):
            generator.manual_seed(stream(self.seed, "loader", epoch).initial_seed())
        for part in parts:
            if hasattr(part, "set_epoch"):
                part.set_epoch(epoch)
        batches = iter(self.data)
        for _ in range(batch):
            next(batches, None)
        return batches

    def release(self) -> None:
        """Let go of the data, which cannot be opened again.

        Worker processes end at once when the last reference to their DataLoader goes; where the garbage collector has
        to find it in a cycle, its queues are closed first, and five seconds are spent waiting for each worker.
        """
        self.data = self.shards = None


class Reader(Generic[Prepared]):
    """Batches of a source from a position on; a thread prepares some ahead unless the source has workers that do.

    Args:
        source: where they come from.
        prepare: makes of a batch what is handed out; told its epoch and number.
        epoch: of the first one.
        batch: its number in the epoch.
        ahead: batches that are prepared ahead by a thread; 0 reads each when it is wanted.
    """

    def __init__(
        self, source: BatchSource, prepare: Callable[[Any, int, int], Prepared], epoch: int, batch: int, ahead: int
    ) -> None:
        self.epoch, self._number, self._prepare = epoch, batch, prepare
        self._batches = source.open(epoch, batch)  # workers are started here, by the thread that handles signals
        self._ahead = 0 if source.has_workers else ahead
        self._pool = ThreadPoolExecutor(1, "qfml-batches") if self._ahead else None
        self._pending: deque[Future[Prepared | None]] = deque()

    def next(self) -> Prepared | None:
        """The next batch; None after the last. An error of the reading thread is raised here."""
        if self._pool is None:
            return self._take()
        while len(self._pending) <= self._ahead:
            self._pending.append(self._pool.submit(self._take))
        return self._pending.popleft().result()

    def close(self) -> None:
        """Stop reading ahead; workers end with the iteration."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._pending.clear()
        self._batches = iter(())

    def _take(self) -> Prepared | None:
        raw = next(self._batches, _END)
        if raw is _END:
            return None
        self._number += 1
        return self._prepare(raw, self.epoch, self._number - 1)


_END = object()


def _parts(loader: Data) -> list[Any]:
    """All that may decide the order: the data set, the loader, its samplers."""
    inner = getattr(loader.batch_sampler, "sampler", None)
    found = [loader.dataset, loader, loader.batch_sampler, loader.sampler, inner]
    return list({id(part): part for part in found if part is not None}.values())


def _generators(parts: list[Any]) -> list[torch.Generator]:
    generators = [getattr(part, "generator", None) for part in parts]
    return list({id(one): one for one in generators if isinstance(one, torch.Generator)}.values())


def _innermost(loader: Data) -> Any:
    """The sampler that decides the order of single rows."""
    if loader.batch_sampler is None:
        return loader.sampler
    return getattr(loader.batch_sampler, "sampler", loader.batch_sampler)
