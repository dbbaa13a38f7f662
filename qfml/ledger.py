"""The trial ledger: every configuration ever tried on a data set, one JSON line for each run.

The best of many trials looks good by luck alone; how good is a matter of how many there were. The ledger counts them,
so that the deflated Sharpe ratio need not trust anyone's memory. Lines are appended under a lock and synced to the
disk. What a crash leaves of a line is kept, reported and not counted; it never harms the lines around it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import statistics
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from qfml.errors import DataError

__all__ = ["DamagedLine", "Ledger", "LedgerEntry", "LedgerWarning", "Trials", "trial_hash"]

_NUMBERS = ("sharpe", "n_obs", "skew", "kurtosis", "periods_per_year")
_HASHES = ("data_hash", "trial_hash", "config_hash")
_UNDEFINED = ("sharpe", "skew", "kurtosis")  # nan for constant returns; null in the file, since JSON has no nan


class LedgerWarning(UserWarning):
    """The ledger holds a line that cannot be read."""


@dataclass(frozen=True)
class LedgerEntry:
    """One run: what it was, on which data, and the moments of its out-of-sample returns.

    Attributes:
        timestamp: when it was recorded, ISO 8601 in UTC.
        data_hash: hash of the data set.
        trial_hash: hash of the configuration without seed and output options (`trial_hash`).
        config_hash: hash of the whole configuration.
        sharpe: Sharpe ratio per period; nan if the returns were constant.
        n_obs: number of returns.
        skew: skewness of the returns.
        kurtosis: raw kurtosis of the returns, 3 if normal.
        periods_per_year: periods per year of the returns.
        label: a name for people; it has no part in counting.
    """

    timestamp: str
    data_hash: str
    trial_hash: str
    config_hash: str
    sharpe: float
    n_obs: int
    skew: float
    kurtosis: float
    periods_per_year: float
    label: str


@dataclass(frozen=True)
class DamagedLine:
    """A line of the ledger that is not an entry: its number from 1, its text, and what is wrong with it."""

    line: int
    text: str
    reason: str


@dataclass(frozen=True)
class Trials:
    """The distinct trials on one data set.

    Attributes:
        entries: the latest entry of each trial, in the order in which the trials first appeared. The latest and not a
            mean over reruns: the variance wanted is that of single results, as they were looked at, and a rerun after
            a correction replaces what it corrects.
        n_runs: number of entries on the data set, reruns and other seeds included.
        damaged: lines that could not be read, of any data set; the trial each held is not in `entries`.
    """

    entries: tuple[LedgerEntry, ...]
    n_runs: int
    damaged: tuple[DamagedLine, ...]

    @property
    def n_trials(self) -> int:
        """Number of distinct trials, those without a Sharpe ratio included: they were tried."""
        return len(self.entries)

    @property
    def variance(self) -> float:
        """Variance (ddof 1) of the Sharpe ratio per period across trials, at the frequency of the latest trial.

        A trial of another frequency is brought to it by the square root of time. Trials without a Sharpe ratio are
        left out; nan if fewer than two are left.
        """
        defined = [entry for entry in self.entries if not math.isnan(entry.sharpe)]
        if len(defined) < 2:
            return math.nan
        latest = max(self.entries, key=lambda entry: entry.timestamp)
        annual = [entry.sharpe * math.sqrt(entry.periods_per_year) for entry in defined]
        return statistics.variance(annual) / latest.periods_per_year


def trial_hash(settings: Mapping[str, Any], ignore: Collection[str] = ()) -> str:
    """Hash of what makes a configuration a trial of its own: all settings but seeds and output options.

    Args:
        settings: the whole configuration as plain JSON types (`qfml.config.to_dict`).
        ignore: top-level keys that do not touch the result, such as those of the report. Keys named `seed` or `seeds`
            are left out at every depth: another seed is another draw of the same trial.

    Returns:
        The first 16 hex digits of the SHA-256 of the canonical JSON.

    Raises:
        DataError: a key of `ignore` that the settings do not have, which would be a slip of the pen, or settings that
            are not plain JSON types.

    Example:
        >>> trial_hash({"lr": 0.1, "trainer": {"seed": 1}}) == trial_hash({"lr": 0.1, "trainer": {"seed": 2}})
        True
        >>> trial_hash({"lr": 0.1, "trainer": {"seed": 1}}) == trial_hash({"lr": 0.2, "trainer": {"seed": 1}})
        False
    """
    unknown = [key for key in ignore if key not in settings]
    if unknown:
        raise DataError(f"`ignore` names {unknown}, which the settings do not have; they have {list(settings)}")
    kept = {key: value for key, value in settings.items() if key not in ignore}
    try:
        canonical = json.dumps(_without_seeds(kept), sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DataError(f"`settings` must be made of plain JSON types: {error}") from None
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


class Ledger:
    """The ledger in the file `path`; it is created by the first `record`.

    Any number of processes may record and read at a time.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     ledger = Ledger(f"{folder}/ledger.jsonl")
        ...     for trial, sharpe in [("a", 0.1), ("b", 0.2), ("a", 0.3)]:
        ...         _ = ledger.record(data_hash="sp500", trial_hash=trial, config_hash=trial, sharpe=sharpe, n_obs=500,
        ...                           skew=0.0, kurtosis=3.0, periods_per_year=252)
        ...     trials = ledger.trials("sp500")
        >>> trials.n_trials, trials.n_runs, round(trials.variance, 6)
        (2, 3, 0.005)
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def record(
        self,
        *,
        data_hash: str,
        trial_hash: str,
        config_hash: str,
        sharpe: float,
        n_obs: int,
        skew: float,
        kurtosis: float,
        periods_per_year: float,
        label: str = "",
    ) -> LedgerEntry:
        """Append one run and wait until it is on the disk.

        Args:
            data_hash: hash of the data set.
            trial_hash: hash of the configuration without seed and output options.
            config_hash: hash of the whole configuration.
            sharpe: Sharpe ratio per period of the out-of-sample returns, nan if undefined.
            n_obs: number of returns.
            skew: skewness of the returns, nan if undefined.
            kurtosis: raw kurtosis of the returns, nan if undefined.
            periods_per_year: periods per year of the returns.
            label: a name for people.

        Returns:
            The entry as it was written.

        Raises:
            DataError: an empty hash, an infinite number, or fewer than one return.
            OSError: the file cannot be written (a full disk); then the file is as it was before.
        """
        entry = LedgerEntry(
            timestamp=datetime.now(UTC).isoformat(timespec="microseconds"),
            data_hash=data_hash,
            trial_hash=trial_hash,
            config_hash=config_hash,
            sharpe=float(sharpe),
            n_obs=int(n_obs),
            skew=float(skew),
            kurtosis=float(kurtosis),
            periods_per_year=float(periods_per_year),
            label=str(label),
        )
        _check(entry)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, fcntl.LOCK_EX) as file:
            is_new = os.fstat(file).st_size == 0
            _append_line(file, _to_json(entry))
        if is_new:
            _sync_folder(self.path.parent)
        return entry

    def entries(self) -> tuple[list[LedgerEntry], list[DamagedLine]]:
        """Read all entries in the order of the file, and the lines that are not entries; none if there is no file."""
        if not self.path.exists():
            return [], []
        with _locked(self.path, os.O_RDONLY, fcntl.LOCK_SH) as file:
            lines = _read_all(file).split(b"\n")
        entries: list[LedgerEntry] = []
        damaged: list[DamagedLine] = []
        for number, line in enumerate(lines, start=1):
            text = line.decode(errors="replace")
            if not text.strip():
                continue
            try:
                entries.append(_from_json(text))
            except (ValueError, TypeError, KeyError) as error:
                damaged.append(DamagedLine(number, text, f"{type(error).__name__}: {error}"))
        return entries, damaged

    def trials(self, data_hash: str) -> Trials:
        """Collect the distinct trials on one data set.

        Args:
            data_hash: hash of the data set.

        Returns:
            The trials; lines that cannot be read come with them, and a `LedgerWarning` names the first.
        """
        entries, damaged = self.entries()
        if damaged:
            first = damaged[0]
            warnings.warn(
                f"{self.path} has {len(damaged)} lines that are not entries, the first in line {first.line} "
                f"({first.reason}): {first.text[:60]!r}. A run was probably killed while it was writing; its trial is "
                "not counted. Run it again and delete the line.",
                LedgerWarning,
                stacklevel=2,
            )
        runs = [entry for entry in entries if entry.data_hash == data_hash]
        latest = {entry.trial_hash: entry for entry in runs}  # a dict keeps the place of the first, the last value wins
        return Trials(tuple(latest.values()), len(runs), tuple(damaged))


def _check(entry: LedgerEntry) -> None:
    for name in _HASHES:
        if not getattr(entry, name):
            raise DataError(f"`{name}` must not be empty")
    for name in _NUMBERS:
        value = getattr(entry, name)
        if math.isinf(value) or (math.isnan(value) and name not in _UNDEFINED):
            raise DataError(f"`{name}` must be a finite number, got {value}")
    if entry.n_obs < 1 or entry.periods_per_year <= 0:
        raise DataError(
            f"`n_obs` and `periods_per_year` must be positive, got {entry.n_obs} and {entry.periods_per_year}"
        )


def _to_json(entry: LedgerEntry) -> bytes:
    row = asdict(entry)
    for name in _UNDEFINED:
        row[name] = None if math.isnan(row[name]) else row[name]
    return json.dumps(row, allow_nan=False).encode()  # ASCII without line breaks: one entry is one line


def _from_json(text: str) -> LedgerEntry:
    row = json.loads(text)
    if not isinstance(row, dict):
        raise TypeError("not a JSON object")
    known = {field.name: row[field.name] for field in fields(LedgerEntry)}
    for name in _UNDEFINED:
        known[name] = math.nan if known[name] is None else known[name]
    for name in _NUMBERS:
        known[name] = (int if name == "n_obs" else float)(known[name])
    entry = LedgerEntry(**known)
    _check(entry)
    return entry


def _without_seeds(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_seeds(item) for key, item in value.items() if key not in ("seed", "seeds")}
    if isinstance(value, (list, tuple)):
        return [_without_seeds(item) for item in value]
    return value


@contextmanager
def _locked(path: Path, flags: int, lock: int) -> Iterator[int]:
    """Open `path` and hold its lock; closing the file gives the lock back, and so does a kill."""
    file = os.open(path, flags, 0o644)
    try:
        fcntl.flock(file, lock)
        yield file
    finally:
        os.close(file)


def _append_line(file: int, line: bytes) -> None:
    """Append one line; a torn last line gets its line break first, so that it spoils only itself."""
    size = os.fstat(file).st_size
    torn = size > 0 and os.pread(file, 1, size - 1) != b"\n"
    data = (b"\n" if torn else b"") + line + b"\n"
    try:
        while data:
            data = data[os.write(file, data) :]
        os.fsync(file)
    except OSError:
        os.ftruncate(file, size)  # a full disk: take back what was written of the line
        raise


def _read_all(file: int) -> bytes:
    chunks = []
    while chunk := os.read(file, 1 << 20):
        chunks.append(chunk)
    return b"".join(chunks)


def _sync_folder(folder: Path) -> None:
    """Make the name of a new file last too."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
