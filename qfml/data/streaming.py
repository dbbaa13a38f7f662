"""`StreamingTimeDataset`: batches of samples from Parquet shards that do not fit into memory.

The order of an epoch is arithmetic: row groups are permuted and dealt into blocks of about `buffer_rows` rows, each
block is permuted on its own, and batches are cut from the result. Both permutations are addressed by (seed, epoch),
and the counts of kept rows are known before anything is read, so any process can start at any batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from qfml.data.shards import (
    Interval,
    Piece,
    RowGroupReader,
    ShardColumns,
    Source,
    find_shards,
    time_bound,
    write_shards,
)
from qfml.errors import CheckpointError, DataError, UserError

__all__ = ["StreamingTimeDataset", "write_shards"]

Array = np.ndarray
_EPOCH, _START, _IN_WORKER = range(3)  # positions in the memory that worker processes share


class StreamingTimeDataset(IterableDataset):  # pyright: ignore[reportMissingTypeArgument]
    """Batches from Parquet shards, read row group by row group: for data larger than memory.

    A batch is `(x, y, time)` or, with weights, `(x, y, weight, time)`: `TimeDataset.gather` followed by the rows'
    times, which are int64 nanoseconds since 1970 (UTC) for datetimes and the stored numbers otherwise.

    Memory holds one block of `buffer_rows` rows (of one row group without shuffling), `interleave` of them in a
    process that reads alone, and the row group being read. Use it in a DataLoader with `batch_size=None`; the order
    is the same for any number of workers. A worker skips only what none of its batches needs: give `interleave` the
    number of workers, and each reads its own part.

    Args:
        source: a folder, a glob, a file, or a list of them; shards are taken by name.
        features: columns of `x`; numbers give (B, F), fixed-size lists of L numbers give windows (B, L, F).
        label: column of `y`.
        time: column of the decision time; must not go back within a shard.
        label_end: column of the moment at which the label is known.
        window_start: column of the earliest information used, for `window_after`.
        group: column of the asset; batches hold codes, `group_names` their names. Needs `as_dict`.
        weight: column of non-negative sample weights.
        start: rows decided before this are left out.
        end: rows decided at or after this are left out.
        known_by: rows whose label is known only after this are left out: a training row looks into the test data
            otherwise. "end" is the value of `end`; `None` purges nothing, as for test rows.
        window_after: rows whose features use information at or before this are left out (purge of the look-back).
        batch_size: rows of each batch but the last.
        seed: shuffles; `None` streams the shards as they are.
        buffer_rows: rows that are shuffled among each other.
        interleave: number of places of the epoch that are read in turn, batch by batch. Part of the order.
        as_dict: batches are dicts by role: x, y, weight, time, label_end, window_start, group.

    Attributes:
        n_rows: rows of an epoch; `len()` is its number of batches.
        dropped: rows left out, by reason.

    Raises:
        DataError: a missing column, times that go back, no rows left, a value that is not finite in a row that is
            read.

    Example:
        >>> import tempfile, polars as pl
        >>> frame = pl.DataFrame({"time": range(6), "label_end": range(2, 8), "x": [0.5] * 6, "label": [1.0] * 6})
        >>> folder = tempfile.mkdtemp()
        >>> shards = write_shards(frame, folder, rows_per_shard=4)
        >>> stream = StreamingTimeDataset(folder, features=["x"], batch_size=2, start=1, end=6)
        >>> [batch[-1].tolist() for batch in stream], stream.dropped
        ([[1, 2], [3, 4]], {'outside the interval': 1, 'label known too late': 1})
    """

    def __init__(
        self,
        source: Source,
        *,
        features: Sequence[str],
        batch_size: int,
        label: str = "label",
        time: str = "time",
        label_end: str = "label_end",
        window_start: str | None = None,
        group: str | None = None,
        weight: str | None = None,
        start: Any = None,
        end: Any = None,
        known_by: Any = "end",
        window_after: Any = None,
        seed: int | None = None,
        buffer_rows: int = 65_536,
        interleave: int = 1,
        as_dict: bool = False,
    ) -> None:
        _check_numbers(batch_size, buffer_rows, interleave, seed)
        if not features or isinstance(features, str) or len(set(features)) != len(features):
            raise DataError(f"`features` must be a list of distinct column names, got {features!r}")
        if group is not None and not as_dict:
            raise DataError("`group` is given in batches that are dicts only: pass `as_dict=True`")
        if window_after is not None and window_start is None:
            raise DataError("`window_after` needs the column of the earliest information used: pass `window_start`")
        if isinstance(known_by, str) and known_by == "end":
            known_by = end
        # lazily: the end of the labels is read only where something depends on it
        needed = label_end if as_dict or known_by is not None else None
        self.columns = ShardColumns(tuple(features), label, time, needed, window_start, group, weight)
        paths = find_shards(source, self.columns)
        kind = pq.read_schema(paths[0]).field(time).type
        bounds = {"start": start, "end": end, "known_by": known_by, "window_after": window_after}
        self.interval = Interval(**{name: time_bound(bound, kind, name) for name, bound in bounds.items()})
        self.batch_size, self.seed, self.as_dict = batch_size, seed, as_dict
        self.buffer_rows, self.interleave = buffer_rows, interleave
        self.feature_names = self.columns.features
        self.dropped: dict[str, int] = {}
        self._reader = RowGroupReader(self.columns, self.interval)
        pieces = [piece for path in paths for piece in self._reader.pieces(path, self.dropped)]
        self._pieces = [piece for piece in pieces if piece.n_kept]
        self.n_rows = sum(piece.n_kept for piece in self._pieces)
        if self.n_rows == 0:
            raise DataError(f"no row is left of {sum(piece.n_rows for piece in pieces)}: {self.dropped}")
        self.group_names = () if group is None else self._reader.read_groups(self._pieces)
        self._reader.close()
        self._settings = self._describe(pieces)
        self._shared = torch.zeros(3, dtype=torch.int64).share_memory_()
        self._position = 0

    def __len__(self) -> int:
        return -(-self.n_rows // self.batch_size)

    def set_epoch(self, epoch: int, batch: int = 0) -> None:
        """Choose the epoch, and so the order, of the next iterations, and the batch at which they start.

        It reaches the persistent workers of a DataLoader too. Without it, every iteration is the same.
        """
        if epoch < 0 or not 0 <= batch <= len(self):
            raise DataError(f"`epoch` must be >= 0 and `batch` in 0..{len(self)}, got {epoch} and {batch}")
        self._shared[_EPOCH], self._shared[_START] = epoch, batch
        self._position = batch

    def state_dict(self, batch: int | None = None) -> dict[str, Any]:
        """The position in the epoch, as JSON types; `load_state_dict` continues with the same bits.

        Args:
            batch: number of batches of this epoch that were used. Needed after a DataLoader with workers, which read
                ahead in processes of their own; otherwise it is known.
        """
        if batch is None and self._shared[_IN_WORKER]:
            raise UserError(
                "worker processes iterated over this stream and read ahead: pass the number of batches used, "
                "`state_dict(batch=...)`"
            )
        used = self._position if batch is None else batch
        return {"epoch": int(self._shared[_EPOCH]), "batch": used, "settings": dict(self._settings)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next iteration start where `state_dict` was taken.

        Raises:
            CheckpointError: the state is damaged, or of other data or other settings; the message names the first.
        """
        try:
            epoch, batch, settings = int(state["epoch"]), int(state["batch"]), dict(state["settings"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"the stored position of the stream is damaged: {error!r}") from None
        for name, value in self._settings.items():
            if settings.get(name) != value:
                raise CheckpointError(f"the stored position is of a stream with other `{name}`: {settings.get(name)!r}")
        self.set_epoch(epoch, batch)

    def __iter__(self) -> Iterator[tuple[Tensor, ...] | dict[str, Tensor]]:
        worker = get_worker_info()
        plan = self._plan(int(self._shared[_EPOCH]))
        start = int(self._shared[_START])
        if worker is None:
            for i, batch in enumerate(self._batches(plan, plan.order[start:], threads=True), start):
                self._position = i + 1
                yield batch
        else:  # the DataLoader takes one batch from each worker in turn
            self._shared[_IN_WORKER] = 1
            self._reader.close()  # a file handle inherited from the parent process is not ours to read
            yield from self._batches(plan, plan.order[start + worker.id :: worker.num_workers], threads=False)

    def _plan(self, epoch: int) -> _Plan:
        sizes = np.array([piece.n_kept for piece in self._pieces])
        if self.seed is None:
            sequence = np.arange(len(sizes))
            cuts = sequence[1:]
        else:
            sequence = _random(self.seed, epoch, 0).permutation(len(sizes))
            cuts = _cuts(sizes[sequence], self.buffer_rows)
        blocks = np.split(sequence, cuts)
        offsets = np.concatenate([[0], np.cumsum([sizes[block].sum() for block in blocks])])
        # batch i comes from part i % interleave of the epoch
        parts = np.array_split(np.arange(len(self)), self.interleave)
        order = np.full((len(parts[0]), len(parts)), -1)
        for i, part in enumerate(parts):
            order[: len(part), i] = part
        return _Plan(epoch, blocks, offsets, order[order >= 0])

    def _batches(self, plan: _Plan, batches: Array, threads: bool) -> Iterator[tuple[Tensor, ...] | dict[str, Tensor]]:
        """Cut the numbered batches; a block is read at the first batch that needs it and freed after the last."""
        first = batches * self.batch_size
        last = np.minimum(first + self.batch_size, self.n_rows)
        first_block = np.searchsorted(plan.offsets, first, side="right") - 1
        last_block = np.searchsorted(plan.offsets, last, side="left") - 1
        last_use = {block: k for k, pair in enumerate(zip(first_block, last_block)) for block in _between(*pair)}
        held: dict[int, _Block] = {}
        for k in range(len(batches)):
            parts = []
            for number in _between(first_block[k], last_block[k]):
                if number not in held:
                    held[number] = self._read_block(plan, number, threads)
                offset = plan.offsets[number]
                parts.append(held[number].rows(slice(max(first[k] - offset, 0), last[k] - offset)))
                if last_use[number] == k:
                    del held[number]
            batch = {name: torch.from_numpy(np.concatenate([part[name] for part in parts])) for name in parts[0]}
            yield batch if self.as_dict else tuple(batch[role] for role in _TUPLE if role in batch)

    def _read_block(self, plan: _Plan, number: int, threads: bool) -> _Block:
        n_rows = int(plan.offsets[number + 1] - plan.offsets[number])
        columns: dict[str, Array] = {}
        filled = 0
        for piece in plan.blocks[number]:
            rows = self._reader.read(self._pieces[piece], threads)
            for name, values in rows.items():
                if name not in columns:
                    columns[name] = np.empty((n_rows, *values.shape[1:]), dtype=values.dtype)
                columns[name][filled : filled + len(values)] = values
            filled += len(rows["time"])
        order = None if self.seed is None else _random(self.seed, plan.epoch, 1 + number).permutation(n_rows)
        return _Block(columns, order)

    def _describe(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        """What the order and content of the batches depend on, as JSON types."""
        names = [(piece.path.replace("\\", "/").rsplit("/", 1)[-1], piece.n_rows, piece.n_kept) for piece in pieces]
        settings = {
            name: getattr(self, name) for name in ("batch_size", "seed", "buffer_rows", "interleave", "as_dict")
        }
        columns = {name: list(item) if isinstance(item, tuple) else item for name, item in asdict(self.columns).items()}
        shards = hashlib.sha256(repr(names).encode()).hexdigest()[:16]
        return settings | {"columns": columns, "interval": asdict(self.interval), "shards": shards}


_TUPLE = ("x", "y", "weight", "time")


@dataclass(frozen=True)
class _Plan:
    """The order of an epoch: blocks of pieces, the rows before each block, and the batches in their order."""

    epoch: int
    blocks: list[Array]
    offsets: Array
    order: Array


@dataclass(frozen=True)
class _Block:
    """Rows in memory, and the order in which they are given out."""

    columns: dict[str, Array]
    order: Array | None

    def rows(self, places: slice) -> dict[str, Array]:
        chosen = places if self.order is None else self.order[places]
        return {name: values[chosen] for name, values in self.columns.items()}


def _cuts(sizes: Array, at_least: int) -> list[int]:
    """Where to cut a sequence of pieces so that each part but the last has at least that many rows."""
    cuts, rows = [], 0
    for i, size in enumerate(sizes[:-1], 1):
        rows += size
        if rows >= at_least:
            cuts.append(i)
            rows = 0
    return cuts


def _random(seed: int, epoch: int, stream: int) -> np.random.Generator:
    """The random stream of that address: 0 permutes the row groups, 1 + b the rows of block b."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch, stream])))


def _between(first: Any, last: Any) -> range:
    return range(int(first), int(last) + 1)


def _check_numbers(batch_size: int, buffer_rows: int, interleave: int, seed: int | None) -> None:
    for name, number in (("batch_size", batch_size), ("buffer_rows", buffer_rows), ("interleave", interleave)):
        if number < 1:
            raise DataError(f"`{name}` must be at least 1, got {number}")
    if seed is not None and seed < 0:
        raise DataError(f"`seed` must not be negative, got {seed}")
    if seed is None and interleave != 1:
        raise DataError("`interleave` mixes the order and needs a `seed`: without one, rows stream as they are stored")
