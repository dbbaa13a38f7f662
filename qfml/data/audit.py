"""The leak audit: a feature that is honest does not change when the future is taken away."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from qfml.errors import ConfigError, DataError

__all__ = ["Leak", "LeakageAudit", "audit_leakage"]

Build = Callable[[pl.DataFrame], pl.DataFrame]

#: Values are the same if they differ by no more than this share of themselves or of the column's deviation: what the
#: order of a summation may change, and far below what one more observation does to any statistic.
TOLERANCE = 1e-9


@dataclass(frozen=True)
class Leak:
    """A feature that knew the future.

    Attributes:
        feature: its column.
        first_time: the earliest time at which a value changed.
        n_changed: how many rows changed at least once.
    """

    feature: str
    first_time: Any
    n_changed: int


@dataclass(frozen=True)
class LeakageAudit:
    """What the audit found.

    Attributes:
        leaks: one entry for each feature that leaks, in the order of the columns.
        n_times: at how many times the future was cut off.
        checked: the columns that were compared.
        unchecked: those of them that were null at every such time, so that nothing can be said of them.
    """

    leaks: tuple[Leak, ...]
    n_times: int
    checked: tuple[str, ...]
    unchecked: tuple[str, ...] = ()

    @property
    def clean(self) -> bool:
        """Whether no leak was found."""
        return not self.leaks

    def __str__(self) -> str:
        head = f"{len(self.checked)} features recomputed without their future at {self.n_times} times: "
        if self.clean:
            return head + "no value changed"
        return head + "; ".join(
            f"`{leak.feature}` leaks ({leak.n_changed} rows changed, the first at {leak.first_time})"
            for leak in self.leaks
        )


def audit_leakage(
    build: Build,
    frame: pl.DataFrame,
    *,
    time: str = "time",
    group: str | None = None,
    n_times: int = 8,
    seed: int = 0,
) -> LeakageAudit:
    """Recompute features with the future cut off at sampled times, and name those whose past values change.

    At each sampled time all later rows are removed, of every asset, and `build` runs on what is left. A value, a null
    or a row up to that time that differs from the run on all data could only have come from later rows. Catches
    statistics of the full sample, centred windows, shifts from the future and backward fills. It cannot catch data that
    were themselves published later than their time stamp (`join_asof` has a lag for that). `build` must be
    deterministic.

    Args:
        build: makes feature columns from a frame of prices; may drop rows, must keep `time` (and `group`). Every column
            that it adds or changes is audited.
        frame: one row per (group, time).
        time: name of the time column.
        group: name of the asset column, None for a single series.
        n_times: times at which the future is cut off: spread over the sample, one drawn from each of `n_times`
            stretches. For each source column with nulls one more is taken at a null, where a backward fill shows.
        seed: of the draws.

    Returns:
        The leaks, each with its feature and the first time at which a value changed.

    Raises:
        DataError: `build` loses the key columns or makes two rows with the same key, or the frame has fewer than two
            times.

    Example:
        >>> frame = pl.DataFrame({"time": range(50), "close": [float(i % 7) for i in range(50)]})
        >>> centred = lambda prices: prices.with_columns(z=pl.col("close") - pl.col("close").mean())
        >>> audit = audit_leakage(centred, frame)
        >>> [(leak.feature, leak.first_time) for leak in audit.leaks]
        [('z', 0)]
    """
    if n_times < 1:
        raise ConfigError(f"`n_times` must be at least 1, got {n_times}")
    keys = [time] if group is None else [group, time]
    full = _keyed(build(frame), keys)
    names = tuple(name for name in full.columns if name not in keys and not _untouched(name, full, frame, keys))
    cuts = _cut_times(frame, full, names, time=time, group=group, n_times=n_times, seed=seed)
    scales = {name: _scale(full[name]) for name in names}

    changed: dict[str, list[pl.DataFrame]] = {name: [] for name in names}
    seen: set[str] = set()
    for cut in cuts:
        before = full.filter(pl.col(time) <= cut)
        again = _keyed(build(frame.filter(pl.col(time) <= cut)), keys)
        paired = _paired(before, again, names, keys)
        edge = before.filter(pl.col(time) == before[time].max())
        for name in names:
            differs = _differs(paired[name], paired[f"{name}\0"], scales[name])
            if differs.any():
                changed[name].append(paired.filter(differs).select(keys))
            if edge[name].null_count() < edge.height:
                seen.add(name)

    leaks = []
    for name in names:
        if changed[name]:
            rows = pl.concat(changed[name]).unique()
            leaks.append(Leak(name, rows[time].min(), rows.height))
    leaking = {leak.feature for leak in leaks}
    unchecked = tuple(name for name in names if name not in seen and name not in leaking)
    return LeakageAudit(tuple(leaks), len(cuts), names, unchecked)


def _keyed(built: pl.DataFrame, keys: Sequence[str]) -> pl.DataFrame:
    missing = [key for key in keys if key not in built.columns]
    if missing:
        raise DataError(
            f"`build` must keep the columns {', '.join(f'`{key}`' for key in keys)}; it lost `{missing[0]}`"
        )
    if built.select(keys).is_duplicated().any():
        raise DataError(f"`build` made two rows with the same ({', '.join(keys)}); name the asset column as `group`")
    return built


def _untouched(name: str, full: pl.DataFrame, frame: pl.DataFrame, keys: Sequence[str]) -> bool:
    """Whether a column of the result is simply a column of the source."""
    if name not in frame.columns:
        return False
    if full.height == frame.height and full[name].equals(frame[name]):
        return True
    source = full.select(keys).join(frame.select(*keys, name), on=keys, how="left", maintain_order="left")
    return full[name].equals(source[name])


def _cut_times(
    frame: pl.DataFrame,
    full: pl.DataFrame,
    names: Sequence[str],
    *,
    time: str,
    group: str | None,
    n_times: int,
    seed: int,
) -> list[Any]:
    """Times after which the future is cut off: never the last one, where there is no future to cut."""
    times = frame[time].unique().sort()
    if len(times) < 2:
        raise DataError(f"the audit needs at least two distinct values of `{time}`, got {len(times)}")
    rng = np.random.default_rng(seed)
    # within the warm-up there is nothing to compare; but one late column must not hide the others' history
    starts = [full.filter(pl.col(name).is_not_null())[time].min() for name in names]
    known = max((int((times < start).sum()) for start in starts if start is not None), default=0)
    first = min(known, (len(times) - 1) // 2)
    edges = np.linspace(first, len(times) - 1, n_times + 1)
    chosen = {min(int(at), len(times) - 2) for at in rng.uniform(edges[:-1], edges[1:])}
    for name in frame.columns:
        gaps = frame.filter(pl.col(name).is_null())[time].unique().sort()
        gaps = gaps.filter(gaps < times[-1])
        if len(gaps):
            chosen.add(int((times < gaps[int(rng.integers(len(gaps)))]).sum()))
    return [times[at] for at in sorted(chosen)]


def _paired(before: pl.DataFrame, again: pl.DataFrame, names: Sequence[str], keys: Sequence[str]) -> pl.DataFrame:
    """The two runs side by side, the second with a null byte after its names; a row that one of them lacks is null."""
    lost = [name for name in names if name not in again.columns]
    again = again.with_columns(pl.lit(None).alias(name) for name in lost)
    second = again.select(*keys, *(pl.col(name).alias(f"{name}\0") for name in names))
    first = before.select(*keys, *names)
    if first.select(keys).equals(second.select(keys)):
        return first.with_columns(second.drop(keys))
    return first.join(second, on=keys, how="full", coalesce=True)


def _differs(first: pl.Series, second: pl.Series, scale: float) -> pl.Series:
    """Whether values differ beyond rounding; null equals null only, NaN equals NaN only."""
    if not (first.dtype.is_numeric() and second.dtype.is_numeric()):
        return first.ne_missing(second.cast(first.dtype, strict=False))
    a, b = (s.cast(pl.Float64).fill_null(float("nan")).to_numpy() for s in (first, second))
    kind = [np.where(s.is_null().to_numpy(), 2, np.isnan(v)) for s, v in ((first, a), (second, b))]
    same = (a == b) | np.isclose(a, b, rtol=TOLERANCE, atol=TOLERANCE * scale)
    return pl.Series(np.where((kind[0] == 0) & (kind[1] == 0), ~same, kind[0] != kind[1]))


def _scale(values: pl.Series) -> float:
    """Standard deviation of a numeric column's finite values, 0 where there is none."""
    if not values.dtype.is_numeric():
        return 0.0
    finite = values.cast(pl.Float64).drop_nulls().to_numpy()
    finite = finite[np.isfinite(finite)]
    return float(finite.std()) if len(finite) else 0.0
