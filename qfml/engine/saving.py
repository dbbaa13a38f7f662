"""Checkpoints beside the training: the training thread copies, a thread in the background writes; and one member's row.

Each checkpoint holds, for every member, its present and its best parameters, so that the last one holds the best of all
that was trained, however few are kept.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from qfml.engine.checkpoint import read_checkpoint, write_checkpoint
from qfml.engine.stack import Layout
from qfml.errors import CheckpointError, UserError

_SHARE = 20  # a checkpoint comes no sooner than after this many times what the last one cost


class Saver:
    """Writes the checkpoints of one run, one at a time.

    What a checkpoint costs is the time that the training waited for its copy plus the time of the writing thread: on a
    machine with few cores the training pays for both.

    Args:
        folder: where the checkpoints go.
        least_seconds: the least time between two of them.
        keep: how many are kept.
        damaged: numbers of checkpoints that were found damaged; removed with the first that is written.
    """

    def __init__(self, folder: Path, least_seconds: float, keep: int, damaged: list[int] | None = None) -> None:
        self.folder, self.least_seconds, self.keep = folder, least_seconds, keep
        self.damaged = [] if damaged is None else damaged
        self.interval = least_seconds
        self.ended = time.monotonic()
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing: Future[tuple[Path, float]] | None = None
        self._waited = 0.0

    @property
    def due(self) -> bool:
        """Whether it is time for the next checkpoint."""
        return self._writing is None and time.monotonic() - self.ended > self.interval

    def begin(self, tensors: Mapping[str, Tensor], state: dict[str, Any], record: Mapping[str, Any]) -> None:
        """Copy `tensors` and begin to write; `state` and `record` must not change any more."""
        assert self._writing is None
        begin = time.monotonic()
        copies = {name: value.detach().to("cpu", copy=True) for name, value in tensors.items()}
        self._waited = time.monotonic() - begin
        self._writing = self._pool.submit(self._write, copies, state, record)

    def _write(
        self, tensors: dict[str, Tensor], state: dict[str, Any], record: Mapping[str, Any]
    ) -> tuple[Path, float]:
        begin = time.monotonic()
        columns, state = pack_histories(state)
        damaged, self.damaged = self.damaged, []
        written = write_checkpoint(
            self.folder, {**tensors, **columns}, state, self.keep, record=record, damaged=damaged
        )
        return written, time.monotonic() - begin

    def written(self, wait: bool = False) -> Path | None:
        """The checkpoint that was written since the last call, if one was; a failed one raises its error here."""
        writing = self._writing
        if writing is None or not (wait or writing.done()):
            return None
        try:
            path, seconds = writing.result()
        finally:
            self._writing, self.ended = None, time.monotonic()
        self.interval = max(self.least_seconds, _SHARE * (self._waited + seconds))
        return path

    def __enter__(self) -> Saver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True)  # what is being written is still written


def pack_histories(state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The numbers of long histories as tensors: as text they would be the larger part of a checkpoint.

    Returns:
        A tensor for each column that holds floats alone, by name; and the state with columns in place of records.
    """
    tensors: dict[str, Tensor] = {}
    blocks = []
    for i, block in enumerate(state["blocks"]):
        records = [record for history in block["histories"] for record in history]
        names = list(records[0]) if records else []
        if all(list(record) == names for record in records):
            columns = {name: [record[name] for record in records] for name in names}
            floats = [name for name, column in columns.items() if all(type(value) is float for value in column)]
            tensors |= {f"{i}.history.{name}": torch.tensor(columns[name], dtype=torch.float64) for name in floats}
            lengths = [len(history) for history in block["histories"]]
            columns |= dict.fromkeys(floats)
            block = {name: value for name, value in block.items() if name != "histories"}
            block |= {"lengths": lengths, "columns": columns}
        blocks.append(block)
    return tensors, state | {"blocks": blocks}


def unpack_histories(tensors: dict[str, Tensor], state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The inverse of `pack_histories`, on all tensors of a checkpoint."""
    left = dict(tensors)
    try:
        blocks = []
        for i, block in enumerate(state["blocks"]):
            if "lengths" in block:
                block = dict(block)
                lengths, columns = block.pop("lengths"), dict(block.pop("columns"))
                for name, column in columns.items():
                    if column is None:
                        columns[name] = left.pop(f"{i}.history.{name}").tolist()
                if any(type(n) is not int or n < 0 for n in lengths):
                    raise ValueError("lengths of histories")
                if any(len(column) != sum(lengths) for column in columns.values()) or (sum(lengths) and not columns):
                    raise ValueError("histories of other lengths")
                records = [dict(zip(columns, values)) for values in zip(*columns.values())]
                ends = [sum(lengths[: m + 1]) for m in range(len(lengths))]
                block["histories"] = [records[end - n : end] for end, n in zip(ends, lengths)]
            blocks.append(block)
        return left, state | {"blocks": blocks}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"the histories of the checkpoint are not ours: {type(error).__name__}: {error}"
        ) from None


def load_member(folder: str | Path, member: int, which: str = "best") -> dict[str, Tensor]:
    """The parameters of one member out of the newest whole checkpoint, without the data or the settings of the run.

    Args:
        folder: `checkpoint_dir` of the run.
        member: its number, as in the members that were trained.
        which: "best": those of its best epoch so far; "last": where it stands, as long as it is training.

    Returns:
        Each parameter by name.

    Raises:
        CheckpointError: there is no whole checkpoint, the member had not begun, or it has no such parameters.
    """
    if which not in ("best", "last"):
        raise UserError(f'`which` must be "best" or "last", got {which!r}')
    tensors, state = read_checkpoint(Path(folder))
    try:
        block, place = _find(state["blocks"], member)
        counters = state["blocks"][block]
        layout = Layout(tuple((name, tuple(shape)) for name, shape in counters["shapes"]))
        if str(place) in counters["fits"]:
            kept = counters["fits"][str(place)]["best_epoch"] > 0
            row = tensors[f"{block}.fit.{place}"]
            found = "best" if kept else "last"
        else:
            at = counters["members"].index(place)
            kept = counters["arrays"]["best_epoch"][at] > 0
            row = tensors[f"{block}.{'best' if which == 'best' else 'parameters'}"][at]
            found = which if kept or which == "last" else "last"
        parameters = {name: value[0].clone() for name, value in layout.views(row[None]).items()}
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        if isinstance(error, UserError):
            raise
        raise CheckpointError(f"the checkpoint in {folder} is not ours: {type(error).__name__}: {error}") from None
    if found != which:
        reason = "it has stopped, and only its best are kept" if found == "best" else "it has ended no finite epoch"
        raise CheckpointError(f'member {member} has no {which} parameters: {reason}; take `which="{found}"`')
    return parameters


def _find(blocks: list[dict[str, Any]], member: int) -> tuple[int, int]:
    """The block of a member and its place there."""
    for number, block in enumerate(blocks):
        if member in block["ids"]:
            return number, block["ids"].index(member)
    begun = sorted(place for block in blocks for place in block["ids"])
    raise CheckpointError(f"member {member} is not in the checkpoint; these had begun: {begun}")
