"""What members are fed that train from a stream: all of a stack see the same batches, each read once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from qfml.data.dataset import TimeDataset
from qfml.engine.clock import Counters
from qfml.engine.feed import Batch, BatchData
from qfml.engine.inputs import Inputs
from qfml.engine.loading import BatchSource, Reader
from qfml.engine.member import Member
from qfml.engine.trainer import Trainer
from qfml.errors import DataError, UserError
from qfml.losses import Loss
from qfml.networks import Network

Adapter = Callable[[Any], Any]


def _no_rows() -> np.ndarray:
    return np.array([], dtype=np.int64)


@dataclass(frozen=True, eq=False)
class StreamMember(Member):
    """A member that trains on the batches of a stream: it has no training rows of its own.

    Args:
        network, seed, lr, weight_decay, clip_norm, patience, start: as of `Member`.
        val: rows of the validation data; None takes all of them.

    Example:
        >>> import qfml
        >>> StreamMember(qfml.MLP(hidden=(8,)), seed=3).seed
        3
    """

    train: np.ndarray = field(init=False, repr=False, default_factory=_no_rows)

    def check_validation(self, val: TimeDataset | None) -> None:
        """Raise UserError if the validation rows are not those of the validation data."""
        rows = self.val
        if rows is None:
            return
        if val is None:
            raise UserError("`val` of a member names rows of validation data, and there are none: pass `val=` as well")
        if rows.ndim != 1 or rows.dtype.kind not in "iu" or len(np.unique(rows)) != len(rows) or len(rows) == 0:
            raise UserError(f"`val` must be a non-empty 1-D array of distinct row ids, got {rows.dtype} {rows.shape}")
        if rows.min() < 0 or rows.max() >= len(val):
            raise UserError(f"`val` must hold row ids from 0 to {len(val) - 1}, got {rows.min()} to {rows.max()}")


class Rows(NamedTuple):
    """One batch of a stream, filled up to the width of a step; fillers have weight 0."""

    x: Tensor
    y: Tensor
    weight: Tensor


class StreamedData(BatchData):
    """The stream that a training reads, and where it stands; in place of a data set in memory.

    Args:
        source: the batches.
        loss: checks the labels of each batch.
        batch_size: most rows of a batch.
        adapter: makes `(x, y)`, `(x, y, weight)` or a dict with these names of a batch.
        val: the data in memory that validation rows are taken from.
        ahead: batches that a thread prepares ahead.
        device: where the training runs.
    """

    def __init__(
        self,
        source: BatchSource,
        loss: Loss,
        batch_size: int,
        adapter: Adapter | None = None,
        val: TimeDataset | None = None,
        ahead: int = 2,
        device: str | torch.device = "cpu",
    ) -> None:
        self.source, self.loss, self.batch_size, self.adapter = source, loss, batch_size, adapter
        self.val, self.ahead, self.device = val, ahead, torch.device(device)
        self._reader: Reader[Rows] | None = None
        self._at = (0, 0)  # epoch and number of the batch that comes next
        self._held: Rows | None = None
        self._shape: torch.Size | None = None

    @property
    def width(self) -> int:
        """Rows of one step: the batch size, filled up to a multiple of 16."""
        return -(-self.batch_size // 16) * 16

    @property
    def shape(self) -> torch.Size:
        """(F,) or (L, F), what one row of the features has; the first batch is read to know it."""
        if self._shape is None:
            self._open(0, 0)
            self._held = self._next()
            self._shape = self._held.x.shape[1:]
        return self._shape

    @property
    def data_hash(self) -> str:
        """16 hex digits of what is known of the stream without reading it, and of the validation data."""
        val = None if self.val is None else self.val.data_hash
        return hashlib.sha256(repr([self.source.identity, self.batch_size, val]).encode()).hexdigest()[:16]

    def to(self, device: torch.device | str) -> StreamedData:
        """The same stream for a training on `device`."""
        self.device = torch.device(device)
        self.val = None if self.val is None else self.val.to(device)
        return self

    def feed(self, trainer: Trainer, members: Sequence[Member]) -> StreamFeed:
        """The same batches for every member."""
        return StreamFeed(trainer, members, self)

    def read(self, epoch: int, batch: int) -> Rows:
        """A batch by its number; one that does not follow the last one opens the source anew."""
        if self._reader is None or self._at != (epoch, batch):
            self._open(epoch, batch)
        rows, self._held = self._held or self._next(), None
        if rows.x.shape[1:] != self.shape:
            raise DataError(
                f"batch {batch} of epoch {epoch} has features of shape {tuple(rows.x.shape[1:])} a row, the first one "
                f"{tuple(self.shape)}"
            )
        self._at = (epoch, batch + 1)
        if batch + 1 == self.source.n_batches and self._reader is not None and self._reader.next() is not None:
            raise DataError(f"the stream has more batches than its length says, {self.source.n_batches}: correct it")
        return rows

    def close(self) -> None:
        """Stop reading."""
        if self._reader is not None:
            self._reader.close()
        self._reader = self._held = None

    def _open(self, epoch: int, batch: int) -> None:
        self.close()
        self._reader, self._at = Reader(self.source, self._prepared, epoch, batch, self.ahead), (epoch, batch)

    def _next(self) -> Rows:
        assert self._reader is not None
        rows = self._reader.next()
        if rows is None:
            raise DataError(
                f"the stream ended before its {self.source.n_batches} batches, the number that its length says: "
                "correct it"
            )
        return rows

    def _prepared(self, raw: Any, epoch: int, number: int) -> Rows:
        """Check a batch and fill it up; in pinned memory where it goes to a GPU."""
        where = f"batch {number} of epoch {epoch}"
        x, y, weight = _columns(raw, self.adapter, self.source.columns, where)
        _check(x, y, weight, self.batch_size, where)
        self.loss.check_labels(y)
        rows = Rows(_filled(x, self.width), _filled(y, self.width), torch.zeros(self.width))
        rows.weight[: len(y)] = 1 if weight is None else weight
        return Rows(*(part.pin_memory() for part in rows)) if self.device.type == "cuda" else rows


class StreamFeed:
    """The batches of a stream, the same ones for every member; their clocks go together."""

    def __init__(self, trainer: Trainer, members: Sequence[Member], data: StreamedData) -> None:
        self.data = data
        seeds = [(trainer.seed, member.seed) for member in members]
        steps = np.full(len(members), data.source.n_batches, dtype=np.int64)
        self.clock = Counters(seeds, data.batch_size, steps, trainer.max_steps)
        self.inputs = None if data.val is None else Inputs(data.val, [None] * len(members))
        self.n_features, self.window = data.n_features, data.window

    def next(self) -> Batch:
        """The batch that all members stand at."""
        rows = self.copied(self.data.read(int(self.clock.epoch[0]), int(self.clock.step[0])))
        n_members = len(self.clock.seeds)
        x, y, weight = (part.expand(n_members, *part.shape).contiguous() for part in rows)
        total = weight.sum(-1, keepdim=True)
        return Batch(x, y, weight, weight / total.clamp_min(1e-30), total[..., 0].double())

    def copied(self, rows: Rows) -> Rows:
        """The same rows on the device; the copy is begun here, and not waited for."""
        if rows.x.device == self.data.device:
            return rows
        return Rows(*(part.to(self.data.device, non_blocking=True) for part in rows))

    def validated(
        self, network: Network, loss: Loss, parameters: Mapping[str, Tensor], places: np.ndarray
    ) -> list[dict[str, float]]:
        """Nothing: validation rows are those of `inputs`."""
        return [{} for _ in places]

    def keep(self, places: np.ndarray) -> None:
        """Forget all members but those at `places`."""
        self.clock.keep(places)
        if self.inputs is not None:
            self.inputs.keep(torch.from_numpy(places).to(self.data.device))


def _columns(
    raw: Any, adapter: Adapter | None, roles: tuple[str, ...] | None, where: str
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Features, labels and weights of a batch as float32 on the CPU."""
    batch = raw if adapter is None else adapter(raw)
    if adapter is None and roles is not None:
        batch = dict(zip(roles, batch, strict=True))
    if isinstance(batch, Mapping):
        found = [batch.get(role) for role in ("x", "y", "weight")]
    elif isinstance(batch, Sequence) and len(batch) in (2, 3):
        found = [*batch, None][:3]
    else:
        found = [None, None, None]
    if not all(isinstance(column, Tensor) for column in found[:2]) or not isinstance(found[2], Tensor | None):
        raise DataError(
            f"{where} must be tensors (x, y) or (x, y, weight), or a dict of these names, got {_described(batch)}: "
            "pass an `adapter` that makes them of what the loader gives"
        )
    x, y, weight = (None if column is None else column.detach().to("cpu", torch.float32) for column in found)
    assert x is not None
    assert y is not None
    return x, y, weight


def _described(batch: Any) -> str:
    if isinstance(batch, Mapping):
        return f"a dict of {', '.join(map(str, batch))}"
    if isinstance(batch, Sequence) and not isinstance(batch, str):
        return f"({', '.join(type(part).__name__ for part in batch)})"
    return type(batch).__name__


def _check(x: Tensor, y: Tensor, weight: Tensor | None, batch_size: int, where: str) -> None:
    if x.ndim not in (2, 3) or y.ndim != 1 or len(x) != len(y) or len(y) == 0:
        column = ": take `y[:, 0]` by an `adapter`" if y.ndim == 2 and y.shape[1] == 1 else ""
        raise DataError(
            f"{where} must have features (B, F) or (B, L, F) and labels (B,), one a row, got {tuple(x.shape)} and "
            f"{tuple(y.shape)}{column}"
        )
    if len(y) > batch_size:
        raise DataError(
            f"{where} has {len(y)} rows, more than `batch_size` {batch_size}: raise it to the largest batch"
        )
    for name, values in (("x", x), ("y", y), ("weight", weight)):
        if values is not None and not bool(torch.isfinite(values).all()):
            row = int((~torch.isfinite(values).reshape(len(values), -1).all(1)).nonzero()[0])
            raise DataError(f"`{name}` must be finite: row {row} of {where} is not")
    if weight is not None and (weight.shape != y.shape[:1] or bool((weight < 0).any())):
        raise DataError(f"`weight` must be >= 0, one for each of {len(y)} rows: in {where} it is not")


def _filled(values: Tensor, width: int) -> Tensor:
    """Memory of our own, which begins on a cache line; missing rows are the first one again."""
    filled = values.new_empty((width, *values.shape[1:]))
    filled[: len(values)] = values
    filled[len(values) :] = values[0]
    return filled
