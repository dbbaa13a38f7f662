"""Parquet shards of time-stamped rows: writing them, counting what an interval keeps, reading one row group.

A shard is a Parquet file whose rows are in time order. The unit of reading is the row group: its statistics say
whether an interval keeps all of it or none, and only where they cannot are its time columns read to count.
"""

from __future__ import annotations

import difflib
import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from qfml.data.dataset import TimeDataset
from qfml.errors import DataError
from qfml.files import replace_file

__all__ = ["Interval", "Piece", "RowGroupReader", "ShardColumns", "find_shards", "write_shards"]

Array = np.ndarray
Source = str | Path | Sequence[str | Path]
OUTSIDE, PURGED, LOOKED_BACK = "outside the interval", "label known too late", "feature window starts too early"


@dataclass(frozen=True)
class ShardColumns:
    """Which column of the shards holds what; `None` is not read."""

    features: tuple[str, ...]
    label: str
    time: str
    label_end: str | None
    window_start: str | None
    group: str | None
    weight: str | None

    @property
    def names(self) -> list[str]:
        """All columns that are read, each once."""
        single = (self.time, self.label_end, self.window_start, self.group, self.weight, self.label)
        return list(dict.fromkeys(name for name in (*single, *self.features) if name is not None))


@dataclass(frozen=True)
class Interval:
    """Rows with `start <= time < end`, `label_end <= known_by` and `window_start > window_after`; `None` is no bound.

    Bounds are int64 nanoseconds since 1970 for datetimes, plain numbers otherwise.
    """

    start: float | None = None
    end: float | None = None
    known_by: float | None = None
    window_after: float | None = None

    def outside(self, time: Array) -> Array:
        """Which rows' times lie outside `[start, end)`."""
        early = np.zeros(len(time), dtype=bool) if self.start is None else time < self.start
        return early if self.end is None else early | (time >= self.end)

    def misses(self, time: Array) -> bool:
        """Whether all of the sorted times lie on one side of `[start, end)`."""
        return bool(
            (self.end is not None and time[0] >= self.end) or (self.start is not None and time[-1] < self.start)
        )

    def excluded(self, rows: dict[str, Array]) -> dict[str, Array]:
        """Masks of the rows left out, by reason; a row counts for the first reason only."""
        masks = {OUTSIDE: self.outside(rows["time"])}
        if self.known_by is not None:
            masks[PURGED] = rows["label_end"] > self.known_by
        if self.window_after is not None:
            masks[LOOKED_BACK] = rows["window_start"] <= self.window_after
        gone = np.zeros(len(rows["time"]), dtype=bool)
        for reason, mask in masks.items():
            masks[reason], gone = mask & ~gone, gone | mask
        return masks


@dataclass(frozen=True)
class Piece:
    """One row group of a shard, of whose rows an interval keeps `n_kept`."""

    path: str
    row_group: int
    first_row: int
    n_rows: int
    n_kept: int


class RowGroupReader:
    """Reads the asked-for columns of one row group at a time, as numpy arrays by role.

    Args:
        columns: which columns to read.
        interval: which rows to keep.
    """

    def __init__(self, columns: ShardColumns, interval: Interval) -> None:
        self.columns, self.interval = columns, interval
        self.group_values: pa.Array | None = None
        self._open: tuple[str, pq.ParquetFile] | None = None

    def file(self, path: str) -> pq.ParquetFile:
        """The open shard; only the last one used stays open."""
        if self._open is None or self._open[0] != path:
            self._open = None
            try:
                self._open = path, pq.ParquetFile(path)
            except (OSError, pa.ArrowInvalid) as error:
                raise DataError(f"{path} cannot be read as a Parquet file: {error}") from None
        return self._open[1]

    def close(self) -> None:
        """Close the open shard, so that no handle is shared with another process."""
        self._open = None

    def pieces(self, path: str, dropped: dict[str, int]) -> Iterator[Piece]:
        """The row groups of a shard with the number of rows kept in each; adds what is left out to `dropped`."""
        metadata = self.file(path).metadata
        first_row, latest = 0, None
        for index in range(metadata.num_row_groups):
            n_rows = metadata.row_group(index).num_rows
            if n_rows == 0:
                continue
            ranges = self._time_ranges(path, index, first_row)
            if latest is not None and ranges["time"][0] < latest:
                self._refuse_order(path, first_row, ranges["time"][0], latest)
            latest = ranges["time"][1]
            lost: dict[str, int] = {}
            if self.interval.misses(ranges["time"]):
                lost = {OUTSIDE: n_rows}
            elif any(mask.any() for mask in self.interval.excluded(ranges).values()):  # a bound cuts the row group
                rows = self._times_of(path, index, first_row)
                lost = {reason: int(mask.sum()) for reason, mask in self.interval.excluded(rows).items() if mask.any()}
            for reason, count in lost.items():
                dropped[reason] = dropped.get(reason, 0) + count
            yield Piece(path, index, first_row, n_rows, n_rows - sum(lost.values()))
            first_row += n_rows

    def read(self, piece: Piece, threads: bool) -> dict[str, Array]:
        """The kept rows of a row group: `x`, `y`, `time`, and whatever else `columns` names.

        Raises:
            DataError: times that go back, or a missing or infinite value in a kept row.
        """
        columns = self.columns
        table = self.file(piece.path).read_row_group(piece.row_group, columns=columns.names, use_threads=threads)
        rows = self._times(table, piece.path, piece.first_row)
        back = np.flatnonzero(rows["time"][1:] < rows["time"][:-1])
        if len(back):
            row = int(back[0])
            self._refuse_order(piece.path, piece.first_row + row + 1, rows["time"][row + 1], rows["time"][row])
        keep = ~np.any(list(self.interval.excluded(rows).values()), axis=0)
        if int(keep.sum()) != piece.n_kept:
            raise DataError(f"{piece.path} has changed since it was opened: make the data set again")
        where = np.flatnonzero(keep) + piece.first_row
        kept = {name: values[keep] for name, values in rows.items()}
        if "label_end" in kept:
            early = kept["label_end"] < kept["time"]
            _refuse(
                early, f"`{columns.label_end}` must not lie before `{columns.time}`", piece.path, where, kept["time"]
            )
        if "window_start" in kept:
            late = kept["window_start"] > kept["time"]
            _refuse(
                late, f"`{columns.window_start}` must not lie after `{columns.time}`", piece.path, where, kept["time"]
            )
        kept["y"] = self._floats(table, columns.label, piece.path, keep, where)
        if columns.weight is not None:
            kept["weight"] = self._floats(table, columns.weight, piece.path, keep, where)
            _refuse(kept["weight"] < 0, f"`{columns.weight}` must not be negative", piece.path, where, kept["weight"])
        if columns.group is not None:
            known = pc.SetLookupOptions(value_set=self.group_values)
            codes = pc.call_function("index_in", [_plain(table.column(columns.group))], known)
            kept["group"] = np.asarray(codes.to_numpy(), dtype=np.int64)[keep]
        for i, name in enumerate(columns.features):
            values = self._floats(table, name, piece.path, keep, where)
            if i == 0:
                kept["x"] = np.empty((*values.shape, len(columns.features)), dtype=np.float32)
            if values.shape != kept["x"].shape[:-1]:
                raise DataError(f"{piece.path}: `{name}` and `{columns.features[0]}` have windows of unlike length")
            kept["x"][..., i] = values
        return kept

    def read_groups(self, pieces: Sequence[Piece]) -> tuple[str, ...]:
        """Find the names of all groups, sorted; batches hold their positions. One pass over that column."""
        found: dict[str, Any] = {}
        for piece in pieces:
            table = self.file(piece.path).read_row_group(piece.row_group, columns=[self.columns.group])
            values = _plain(table.column(self.columns.group)).unique()
            if values.null_count:
                raise DataError(
                    f"{piece.path}: `{self.columns.group}` has missing values in row group {piece.row_group}"
                )
            found |= {str(value): value for value in values.to_pylist()}
            kind = values.type
            if self.group_values is not None and kind != self.group_values.type:
                raise DataError(f"{piece.path}: `{self.columns.group}` is {kind}, elsewhere {self.group_values.type}")
            self.group_values = pa.array([], type=kind)
        names = tuple(sorted(found))
        assert self.group_values is not None
        self.group_values = pa.array([found[name] for name in names], type=self.group_values.type)
        return names

    def _roles(self) -> dict[str, str]:
        """The time columns that are read, by role."""
        columns = self.columns
        roles = {"time": columns.time, "label_end": columns.label_end, "window_start": columns.window_start}
        return {role: name for role, name in roles.items() if name is not None}

    def _time_ranges(self, path: str, index: int, first_row: int) -> dict[str, Array]:
        """Smallest and largest value of each time column in a row group, from its statistics where it has them."""
        file = self.file(path)
        group = file.metadata.row_group(index)
        leaves = {group.column(i).path_in_schema: i for i in range(group.num_columns)}
        ranges: dict[str, Array] = {}
        for role, name in self._roles().items():
            found = group.column(leaves[name]).statistics
            if found is None or not found.has_min_max or found.null_count != 0:
                times = self._times_of(path, index, first_row)
                return {role: np.array([values.min(), values.max()]) for role, values in times.items()}
            kind = file.schema_arrow.field(name).type
            ranges[role] = time_values(pa.chunked_array([pa.array([found.min, found.max], type=kind)]), name, path)
        return ranges

    def _times_of(self, path: str, index: int, first_row: int) -> dict[str, Array]:
        table = self.file(path).read_row_group(index, columns=list(self._roles().values()))
        return self._times(table, path, first_row)

    def _times(self, table: pa.Table, path: str, first_row: int) -> dict[str, Array]:
        return {role: time_values(table.column(n), n, path, first_row) for role, n in self._roles().items()}

    def _floats(self, table: pa.Table, name: str, path: str, keep: Array, where: Array) -> Array:
        """A numeric column (n,), or a column of windows (n, L), as float32; finite in the kept rows."""
        column = table.column(name).combine_chunks()
        column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        length = ()
        if pa.types.is_fixed_size_list(column.type):
            length = (column.type.list_size,)
            if column.null_count:
                raise DataError(f"{path}: `{name}` has missing windows")
            column = column.flatten()
        if not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
            raise DataError(f"{path}: `{name}` must be a number or a fixed-size list of numbers, not {column.type}")
        with np.errstate(over="ignore"):  # what overflows is refused below
            values = column.to_numpy(zero_copy_only=False).astype(np.float32, copy=False).reshape(-1, *length)[keep]
        bad = ~np.isfinite(values).reshape(len(values), -1).all(1)
        _refuse(bad, f"`{name}` must be finite", path, where, values)
        return values

    def _refuse_order(self, path: str, row: int, value: Any, before: Any) -> None:
        name = self.columns.time
        kind = self.file(path).schema_arrow.field(name).type
        after, earlier = (shown_time(item, kind) for item in (value, before))
        raise DataError(
            f"{path}: `{name}` must not go back within a shard, but row {row} ({after}) follows {earlier}: "
            "sort the rows by time, or write them with `write_shards`"
        )


def find_shards(source: Source, columns: ShardColumns) -> list[str]:
    """The files of a folder, a glob, a file or a list of files, by name; all must have the asked-for columns.

    Raises:
        DataError: nothing is found, a column is missing, or has another type than in the first shard.
    """
    sources = [source] if isinstance(source, (str, Path)) else list(source)
    paths: list[str] = []
    for item in map(str, sources):
        if os.path.isdir(item):
            paths += sorted(glob.glob(os.path.join(glob.escape(item), "*.parquet")))
        elif os.path.isfile(item):
            paths.append(item)
        else:
            paths += sorted(path for path in glob.glob(item, recursive=True) if os.path.isfile(path))
    if not paths:
        raise DataError(f"no Parquet file at {', '.join(map(str, sources))}")
    first = None
    for path in paths:
        try:
            schema = pq.read_schema(path)
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError(f"{path} cannot be read as a Parquet file: {error}") from None
        for name in columns.names:
            if name not in schema.names:
                close = difflib.get_close_matches(name, schema.names, n=1)
                hint = f" (did you mean `{close[0]}`?)" if close else ""
                raise DataError(f"{path} has no column `{name}`{hint}; it has: {', '.join(schema.names)}")
            first = schema if first is None else first
            if schema.field(name).type != first.field(name).type:
                kinds = f"{schema.field(name).type}, in {paths[0]} {first.field(name).type}"
                raise DataError(f"{path}: `{name}` is {kinds}: write all shards with one schema")
    return paths


def time_values(column: pa.ChunkedArray, name: str, path: str, first_row: int = 0) -> Array:
    """A time column as int64 nanoseconds since 1970 (UTC), or as the int64 or float64 numbers it holds."""
    kind = column.type
    if column.null_count:
        missing = column.is_null().to_numpy()
        _refuse(missing, f"`{name}` must not be missing", path, np.arange(len(missing)) + first_row, missing)
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return column.cast(pa.timestamp("ns", getattr(kind, "tz", None))).cast(pa.int64()).to_numpy()
    if pa.types.is_integer(kind):
        return column.cast(pa.int64()).to_numpy()
    if pa.types.is_floating(kind):
        values = column.cast(pa.float64()).to_numpy()
        _refuse(~np.isfinite(values), f"`{name}` must be finite", path, np.arange(len(values)) + first_row, values)
        return values
    raise DataError(f"{path}: `{name}` must hold datetimes or numbers, not {kind}")


def time_bound(value: Any, kind: pa.DataType, name: str) -> float | None:
    """A bound given by the user (string, datetime, number) in the stored form of a time column of type `kind`."""
    if value is None:
        return None
    if not (pa.types.is_timestamp(kind) or pa.types.is_date(kind)):
        if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or value != value:
            raise DataError(f"`{name}` must be a number like the time column ({kind}), got {value!r}")
        return value.item() if isinstance(value, np.number) else value
    try:
        if isinstance(value, (bool, int, float, np.number)):
            raise TypeError
        stamp = pd.Timestamp(value)
        if stamp is pd.NaT:
            raise TypeError
    except (TypeError, ValueError):
        raise DataError(f"`{name}` must be a date or time like the time column ({kind}), got {value!r}") from None
    if (stamp.tz is None) != (getattr(kind, "tz", None) is None):
        raise DataError(f"`{name}` ({value}) and the time column ({kind}) must both have a time zone or neither")
    return stamp.as_unit("ns").value


def shown_time(value: Any, kind: pa.DataType) -> str:
    """A stored time for a message."""
    is_date = pa.types.is_timestamp(kind) or pa.types.is_date(kind)
    return str(pd.Timestamp(int(value))) if is_date else str(value)


def write_shards(
    data: Any, folder: str | Path, rows_per_shard: int, *, time: str = "time", rows_per_group: int = 65_536
) -> list[Path]:
    """Write a frame or a `TimeDataset` as Parquet shards in time order, for `StreamingTimeDataset`.

    A `TimeDataset` becomes the columns `time`, `label_end`, `window_start`, `group`, `weight`, `label` (those it has)
    and one per feature; windows are written out, one list of `window` values for each row and feature. Rows that are
    not in time order are sorted by time; rows of one time keep their order.

    Args:
        data: polars or pandas frame, pyarrow table, or `TimeDataset`.
        folder: is made if it does not exist; must hold no Parquet file yet.
        rows_per_shard: rows of each file but the last.
        time: name of a frame's time column.
        rows_per_group: rows of each row group, the unit of reading.

    Returns:
        The files in time order.

    Raises:
        DataError: no rows, a missing time, or shards that are already there.
    """
    for name, number in (("rows_per_shard", rows_per_shard), ("rows_per_group", rows_per_group)):
        if number < 1:
            raise DataError(f"`{name}` must be at least 1, got {number}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.glob("*.parquet")):
        raise DataError(f"{folder} already holds Parquet files: choose an empty folder, or delete them first")
    table = None if isinstance(data, TimeDataset) else _table(data)
    times = data.time if table is None else _frame_times(table, time)
    if len(times) == 0:
        raise DataError("there are no rows to write")
    order = np.argsort(times, kind="stable")
    paths = [folder / f"part-{i:05d}.parquet" for i in range(-(-len(times) // rows_per_shard))]
    for i, path in enumerate(paths):
        rows = order[i * rows_per_shard : (i + 1) * rows_per_shard]
        part = _dataset_table(data, rows) if table is None else table.take(pa.array(rows))
        # floats hardly repeat: a dictionary would cost time and space
        words: Any = [field.name for field in part.schema if not _is_number(field.type)]
        dictionary: Any = words or False
        replace_file(
            path,
            lambda beside, part=part, dictionary=dictionary: pq.write_table(
                part, beside, row_group_size=rows_per_group, use_dictionary=dictionary
            ),
        )
    return paths


def _table(frame: Any) -> pa.Table:
    if isinstance(frame, pa.Table):
        return frame
    if isinstance(frame, pd.DataFrame):
        return pa.Table.from_pandas(frame, preserve_index=False)
    if hasattr(frame, "to_arrow"):
        return frame.to_arrow()
    raise DataError(f"expected a polars or pandas frame, a pyarrow table or a TimeDataset, got {type(frame).__name__}")


def _frame_times(table: pa.Table, time: str) -> Array:
    if time not in table.column_names:
        raise DataError(f"the frame has no time column `{time}`; it has: {', '.join(table.column_names)}")
    return time_values(table.column(time), time, "the frame")


def _dataset_table(ds: TimeDataset, rows: Array) -> pa.Table:
    import torch

    x, y = ds.gather(torch.from_numpy(rows))[:2]
    columns: dict[str, Any] = {"time": ds.time[rows], "label_end": ds.label_end[rows]}
    columns["window_start"] = ds.window_start[rows]
    if ds.group is not None:
        columns["group"] = pa.DictionaryArray.from_arrays(pa.array(ds.group[rows]), pa.array(ds.group_names))
    if ds.weight is not None:
        columns["weight"] = ds.weight[torch.from_numpy(rows).to(ds.weight.device)].cpu().numpy()
    columns["label"] = y.cpu().numpy()
    for i, name in enumerate(ds.feature_names):
        if name in columns:
            raise DataError(f"the feature `{name}` has the name of another column of the shards: rename it")
        values = np.ascontiguousarray(x[..., i].cpu().numpy())
        whole = values.ndim == 2
        columns[name] = (
            pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1]) if whole else values
        )
    return pa.table(columns)


def _is_number(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_fixed_size_list(kind) else kind
    return pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_temporal(kind)


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A dictionary column as the values it stands for."""
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _refuse(bad: Array, rule: str, path: str, where: Array, values: Array) -> None:
    if bad.any():
        first = ", ".join(f"row {where[i]}: {values[i]}" for i in np.flatnonzero(bad)[:5])
        raise DataError(f"{path}: {rule}: {int(bad.sum())} of {len(bad)} rows break this; first: {first}")
