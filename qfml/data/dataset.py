"""`TimeDataset`: samples that know when they were decided, how far they look back and when their label is known."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from qfml.errors import DataError

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class TimeDataset(torch.utils.data.Dataset):  # pyright: ignore[reportMissingTypeArgument]
    """Samples with `window_start <= time < label_end`, ready to be split, purged, gathered and trained on.

    Features lie once in a resident tensor; a window is gathered from it by index and never stored. Labels are known
    over the half-open interval `(time, label_end]`; features use information of the closed interval
    `[window_start, time]`.

    Args:
        X: features, shape (N, F), or (N, L, F) for windows that are already cut.
        y: labels, shape (N,).
        time: decision time of each sample: datetimes, or numbers. Never defaulted.
        label_end: the moment at which the label is known, at or after `time`.
        window_start: the earliest information that the features use; `time` itself if omitted.
        group: the asset (or any entity) of each sample in a panel.
        weight: non-negative sample weights, shape (N,).
        returns: simple return of the sample's asset from its `time` to the asset's next sample, per period, decimal:
            what a position held over that period earns; `nan` where it is not known.
        feature_names: one name per feature.
        window: cut windows of this many rows from a (N, F) matrix: the sample of a row sees that row and the
            `window - 1` rows of its group before it. Rows without a full window are no samples; `dropped` counts them.
        label_gradient: derivative of each label in the sample's features, in units of the label over the feature's,
            shape (N, F), or (N, L, F) for windows, cut or to be cut; what the loss `Twin` learns from.
        label_gradient_weight: what the squared error of each of those derivatives counts, >= 0, in the same shape, such
            as one over the variance of a simulated derivative; 1 if omitted.

    Raises:
        DataError: lengths that differ, NaN or infinity, a label that ends before its decision, a window that starts
            after it, or two samples with the same (time, group).

    Example:
        >>> import numpy as np
        >>> days = np.arange("2020-01-01", "2020-01-11", dtype="datetime64[D]")
        >>> ds = TimeDataset(np.ones((10, 3)), np.zeros(10), time=days, label_end=days + 1, window=4)
        >>> len(ds), ds.dropped
        (7, {'window not yet full': 3})
        >>> x, y = ds.gather(torch.tensor([0, 6]))
        >>> tuple(x.shape), str(ds.window_start[0])[:10], str(ds.time[0])[:10]
        ((2, 4, 3), '2020-01-01', '2020-01-04')
    """

    features: Tensor
    ends: Tensor
    y: Tensor
    time: Array
    label_end: Array
    window_start: Array
    group: Array | None
    group_names: tuple[str, ...]
    weight: Tensor | None
    returns: Array | None
    feature_names: tuple[str, ...]
    window: int | None
    dropped: dict[str, int] = field(default_factory=dict)
    label_gradient: Tensor | None = None
    label_gradient_weight: Tensor | None = None

    def __init__(
        self,
        X: Any,
        y: Any,
        *,
        time: Any,
        label_end: Any,
        window_start: Any = None,
        group: Any = None,
        weight: Any = None,
        returns: Any = None,
        feature_names: Sequence[str] | None = None,
        window: int | None = None,
        label_gradient: Any = None,
        label_gradient_weight: Any = None,
    ) -> None:
        matrix = _float32(X, "X")
        if matrix.ndim not in (2, 3):
            raise DataError(f"`X` must have shape (N, F) or (N, L, F), got {tuple(matrix.shape)}")
        if matrix.ndim == 3 and window is not None:
            raise DataError("`window` cuts windows from a (N, F) matrix, but `X` already holds windows (N, L, F)")
        if matrix.ndim == 3 and window_start is None:
            raise DataError("`X` holds windows that look back: pass `window_start`, the earliest time each one uses")
        n = matrix.shape[0]
        names = _names(feature_names, matrix.shape[-1])
        times = _times(time, "time", n)
        starts = times if window_start is None else _times(window_start, "window_start", n, like=times)
        codes, group_names = _codes(group, n)
        ends = torch.arange(n)
        dropped: dict[str, int] = {}
        length = window
        if label_gradient_weight is not None and label_gradient is None:
            raise DataError("`label_gradient_weight` weighs derivatives, and there is no `label_gradient`: pass it too")
        if matrix.ndim == 3:
            length = matrix.shape[1]
            matrix, ends = matrix.reshape(n * length, -1), (ends + 1) * length - 1
        slopes = (n, *([] if length is None else [length]), matrix.shape[-1])
        _fill(
            self,
            features=matrix,
            ends=ends,
            y=_column(y, "y", n),
            time=times,
            label_end=_times(label_end, "label_end", n, like=times),
            window_start=starts,
            group=codes,
            group_names=group_names,
            weight=None if weight is None else _column(weight, "weight", n),
            returns=None if returns is None else _returns(returns, n),
            feature_names=names,
            window=length,
            dropped=dropped,
            label_gradient=_slopes(label_gradient, "label_gradient", slopes),
            label_gradient_weight=_slopes(label_gradient_weight, "label_gradient_weight", slopes, least=0.0),
        )
        _check(self)
        if window is not None:
            _cut_windows(self, window)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, row: int) -> tuple[Tensor, ...]:
        return self.gather(torch.tensor(row))

    def __getitems__(self, rows: Sequence[int]) -> list[tuple[Tensor, ...]]:
        """A whole batch in one gather; torch's DataLoader calls this instead of `__getitem__` row by row."""
        columns = self.gather(torch.as_tensor(rows))
        return list(zip(*columns))

    def gather(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Features and labels (and weights, if any) of the samples `rows`, an int64 tensor of any shape (*S).

        Returns:
            `x` of shape (*S, F) or (*S, L, F), `y` of shape (*S), and `weight` of shape (*S) if the data have weights.
        """
        rows = rows.to(self.ends.device)
        x = gather_windows(self.features, self.ends[rows], self.window)
        return (x, self.y[rows]) if self.weight is None else (x, self.y[rows], self.weight[rows])

    def feature_rows(self, rows: Any) -> Tensor:
        """The rows of `features` that the samples `rows` see, each once: what a scaler is fitted on."""
        ends = self.ends[torch.as_tensor(rows)]
        covered = torch.zeros(len(self.features) + 1, dtype=torch.int64, device=ends.device)
        one = torch.ones_like(ends)
        covered.index_add_(0, ends + 1 - (self.window or 1), one).index_add_(0, ends + 1, -one)
        return self.features[covered.cumsum(0)[:-1] > 0]

    def to(self, device: torch.device | str) -> TimeDataset:
        """The same data with its tensors on `device`; times stay in numpy."""
        moved = {name: getattr(self, name).to(device) for name in ("features", "ends", "y")}
        optional = {name: getattr(self, name) for name in ("weight", "label_gradient", "label_gradient_weight")}
        moved |= {name: None if value is None else value.to(device) for name, value in optional.items()}
        return replaced(self, **moved)

    @property
    def n_features(self) -> int:
        """Number of features, F."""
        return self.features.shape[1]

    @property
    def data_hash(self) -> str:
        """16 hex digits that change when any feature, label, time, group, weight or return does."""
        digest = hashlib.sha256(repr((self.feature_names, self.window, self.group_names)).encode())
        arrays = [self.features, self.ends, self.y, self.weight, self.time, self.label_end, self.window_start]
        for array in (*arrays, self.group, self.returns, self.label_gradient, self.label_gradient_weight):
            if array is not None:
                values = array.cpu().numpy() if isinstance(array, Tensor) else array
                digest.update(values.dtype.str.encode())
                digest.update(np.ascontiguousarray(values).view(np.uint8).data)
        return digest.hexdigest()[:16]

    @classmethod
    def from_frame(
        cls,
        frame: Any,
        *,
        features: Sequence[Any],
        label: Any,
        time: str = "time",
        group: str | None = None,
        price: str = "close",
        window: int | None = None,
        weight: Any = None,
    ) -> TimeDataset:
        """Build features, labels and periods' returns from prices; look-back and label end are derived, not typed.

        Args:
            frame: polars or pandas frame of one row per (group, time).
            features: steps of `qfml.data.FEATURES`, or names of columns already known at `time`.
            label: a step of `qfml.data.LABELS`.
            time: name of the time column.
            group: name of the asset column of a panel.
            price: column whose simple return from row to row a position earns.
            window: cut windows of this many rows.
            weight: a step of `qfml.data.WEIGHTS`.

        Returns:
            The samples sorted by (group, time). `dropped` counts the rows that are no samples and why.
        """
        from qfml.data.build import build_dataset

        return build_dataset(
            frame, features=features, label=label, time=time, group=group, price=price, window=window, weight=weight
        )


def gather_windows(features: Tensor, ends: Tensor, window: int | None, out: Tensor | None = None) -> Tensor:
    """Rows `ends` (*S) of `features` (R, F) as (*S, F); or, with a window L, the L rows up to each as (*S, L, F).

    They are written to `out`, if it is given.
    """
    if window is not None:
        ends = ends[..., None] + torch.arange(1 - window, 1, device=ends.device)
    flat = None if out is None else out.view(-1, features.shape[1])
    return torch.index_select(features, 0, ends.reshape(-1), out=flat).view(*ends.shape, features.shape[1])


def select_samples(ds: TimeDataset, keep: Array, reason: str) -> TimeDataset:
    """The samples where `keep` is true; what goes is counted in `dropped` under `reason`."""
    rows = np.flatnonzero(keep)
    if len(rows) == 0:
        raise DataError(f"no sample is left: every row was dropped ({reason})")
    taken = {name: _rows(getattr(ds, name), rows) for name in _PER_SAMPLE}
    lost = {reason: len(keep) - len(rows)} if len(rows) < len(keep) else {}
    return replaced(ds, **taken, dropped={**ds.dropped, **lost})


_PER_SAMPLE = (
    *("ends", "y", "time", "label_end", "window_start", "group", "weight", "returns"),
    *("label_gradient", "label_gradient_weight"),
)


def _rows(column: Any, rows: Array) -> Any:
    if column is None:
        return None
    return column[torch.from_numpy(rows)] if isinstance(column, Tensor) else column[rows]


def _cut_windows(ds: TimeDataset, window: int) -> None:
    """Turn each row with `window - 1` rows of its group before it into the end of a window, in place of `__init__`."""
    if window < 1:
        raise DataError(f"`window` must be at least 1 row, got {window}")
    n = len(ds)
    codes = np.zeros(n, dtype=np.int64) if ds.group is None else ds.group
    same = codes[1:] == codes[:-1]
    if not bool(np.all(~same | (ds.time[1:] > ds.time[:-1]))) or len(np.unique(codes)) != 1 + int((~same).sum()):
        raise DataError("rows must be sorted by (group, time) to cut windows: sort the data first")
    position = np.arange(n) - np.maximum.accumulate(np.where(np.r_[True, ~same], np.arange(n), 0))
    earliest = ds.window_start.copy()
    for back in range(1, window):
        np.minimum(earliest[back:], ds.window_start[:-back], out=earliest[back:], where=position[back:] >= back)
    whole = replaced(ds, window=window, window_start=earliest)
    cut = select_samples(whole, position >= window - 1, "window not yet full")
    _fill(ds, **{name: getattr(cut, name) for name in ds.__dataclass_fields__})


def replaced(ds: TimeDataset, **changes: Any) -> TimeDataset:
    """A copy with some attributes changed; nothing is checked again."""
    copy = object.__new__(TimeDataset)
    _fill(copy, **{name: getattr(ds, name) for name in ds.__dataclass_fields__} | changes)
    return copy


def _fill(ds: TimeDataset, **values: Any) -> None:
    for name, value in values.items():
        object.__setattr__(ds, name, value)


def _check(ds: TimeDataset) -> None:
    _refuse(~torch.isfinite(ds.features).all(1).numpy(), "`X` must be finite", ds.features)
    _refuse(~torch.isfinite(ds.y).numpy(), "`y` must be finite", ds.y)
    _refuse(ds.label_end < ds.time, "`label_end` must not lie before `time`", ds.label_end)
    _refuse(ds.window_start > ds.time, "`window_start` must not lie after `time`", ds.window_start)
    if ds.weight is not None:
        _refuse(~(torch.isfinite(ds.weight) & (ds.weight >= 0)).numpy(), "`weight` must be finite and >= 0", ds.weight)
    if ds.returns is not None:
        _refuse(np.isinf(ds.returns) | (ds.returns < -1), "`returns` must be simple returns >= -1", ds.returns)
    codes = np.zeros(len(ds), dtype=np.int64) if ds.group is None else ds.group
    order = np.lexsort((ds.time, codes))
    twice = np.zeros(len(ds), dtype=bool)
    twice[order[1:]] = (ds.time[order[1:]] == ds.time[order[:-1]]) & (codes[order[1:]] == codes[order[:-1]])
    hint = "; pass `group=` if the data are a panel" if ds.group is None else ""
    _refuse(twice, f"two samples share the same (time, group){hint}", ds.time)


def _refuse(bad: Array, rule: str, values: Any) -> None:
    if bad.any():
        rows = np.flatnonzero(bad)[:5]
        shown = ", ".join(f"row {row}: {np.asarray(values[row])}" for row in rows)
        raise DataError(f"{rule}: {int(bad.sum())} of {len(bad)} rows break this; first: {shown}")


def _float32(values: Any, name: str) -> Tensor:
    tensor = values.detach() if isinstance(values, Tensor) else _tensor(np.asarray(values), name)
    if tensor.is_complex():
        raise DataError(f"`{name}` must be real, got dtype {tensor.dtype}")
    if tensor.ndim == 0 or tensor.shape[0] == 0:
        raise DataError(f"`{name}` has no rows")
    return tensor.to(torch.float32)


def _tensor(array: Array, name: str) -> Tensor:
    """A numpy array as a tensor, without a copy where torch can take the array as it is."""
    if array.dtype.kind not in "biufc":
        raise DataError(f"`{name}` must be numeric, got dtype {array.dtype}")
    # torch takes no other byte order, no backward strides, and cannot promise to leave a read-only array alone
    if not array.dtype.isnative or not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.astype(array.dtype.newbyteorder("="))
    return torch.from_numpy(array)


def _column(values: Any, name: str, n: int) -> Tensor:
    column = _float32(values, name)
    if column.shape != (n,):
        raise DataError(f"`{name}` must have shape ({n},) like `X`'s rows, got {tuple(column.shape)}")
    return column


def _slopes(values: Any, name: str, shape: tuple[int, ...], least: float = -math.inf) -> Tensor | None:
    """One number for each feature that a sample sees."""
    if values is None:
        return None
    slopes = _float32(values, name)
    if slopes.shape != shape:
        raise DataError(f"`{name}` must have shape {shape}, that of the samples, got {tuple(slopes.shape)}")
    rule = f"`{name}` must be finite" + ("" if least == -math.inf else f" and >= {least:g}")
    _refuse(~(torch.isfinite(slopes) & (slopes >= least)).flatten(1).all(1).numpy(), rule, slopes)
    return slopes


def _same(values: Array, name: str, n: int) -> Array:
    if values.shape != (n,):
        raise DataError(f"`{name}` must have shape ({n},) like `X`'s rows, got {values.shape}")
    return values


def _returns(values: Any, n: int) -> Array:
    try:
        returns = np.array(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise DataError(f"`returns` must be numeric, got dtype {np.asarray(values).dtype}") from None
    return _same(returns, "returns", n)


def _times(values: Any, name: str, n: int, like: Array | None = None) -> Array:
    if getattr(getattr(values, "dt", values), "tz", None) is not None:  # a pandas index or series with a time zone
        values = pd.DatetimeIndex(values).tz_convert("UTC").tz_localize(None)
    times = _same(np.asarray(values), name, n)
    if times.dtype.kind == "O":
        times = _from_objects(times, name)
    if times.dtype.kind == "M":
        times = _nanoseconds(times, name)
    elif times.dtype.kind not in "iuf":
        raise DataError(f"`{name}` must hold datetimes or numbers, got dtype {times.dtype}")
    if like is not None and (times.dtype.kind == "M") != (like.dtype.kind == "M"):
        raise DataError(f"`{name}` has dtype {times.dtype}, `time` has {like.dtype}: all times must be of one kind")
    missing = np.isnat(times) if times.dtype.kind == "M" else ~np.isfinite(times)
    _refuse(missing, f"`{name}` must not be missing", times)
    return times


def _from_objects(times: Array, name: str) -> Array:
    """Python's and pandas' datetimes as numpy's, which have no time zone: those that have one become UTC."""
    known = times[pd.notna(times)]
    zoned = {getattr(one, "tzinfo", None) is not None for one in known}
    if len(zoned) > 1 or not all(isinstance(one, (date, np.datetime64)) for one in known):
        shown = ", ".join(repr(one) for one in known[:3])
        raise DataError(f"`{name}` must hold numbers, or datetimes all with or all without a time zone, got {shown}")
    try:
        return pd.DatetimeIndex(pd.to_datetime(times, utc=True)).tz_localize(None).to_numpy()
    except ValueError as error:
        raise DataError(f"`{name}` does not fit into nanoseconds: {error}") from None


def _nanoseconds(times: Array, name: str) -> Array:
    exact = times.astype("datetime64[ns]")
    lost = ~np.isnat(times) & (exact.astype(times.dtype) != times)
    _refuse(lost, f"`{name}` must lie between 1677-09-22 and 2262-04-11, what nanoseconds can hold", times)
    return exact


def _codes(group: Any, n: int) -> tuple[Array | None, tuple[str, ...]]:
    if group is None:
        return None, ()
    entities = _same(np.asarray(group), "group", n)
    _refuse(np.asarray(pd.isna(entities)), "`group` must not be missing", entities)
    codes, distinct = pd.factorize(entities)
    names, place = np.unique(np.asarray(distinct).astype(str), return_inverse=True)
    return place[codes].astype(np.int64), tuple(str(name) for name in names)


def _names(names: Sequence[str] | None, n_features: int) -> tuple[str, ...]:
    if names is None:
        return tuple(f"x{i}" for i in range(n_features))
    if len(names) != n_features or len(set(names)) != n_features:
        raise DataError(f"`feature_names` must be {n_features} distinct names, got {list(names)}")
    return tuple(names)
