"""Whether what a checkpoint says of a block can be true: checked before any of it is used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from qfml.errors import CheckpointError

if TYPE_CHECKING:
    from qfml.engine.block import Block  # it calls this module

_STATUSES = ("finished", "early_stopped", "stopped", "max_time", "nan")


def check_restorable(block: Block, tensors: Mapping[str, Tensor], counters: Any) -> None:
    """Refuse tensors and counters that are not those of a block like `block`.

    A hash tells of damage; it does not tell of a file that was made up, or of another version's. What passes here
    cannot lead out of an array, and no value is stretched over members that it is not of.

    Raises:
        CheckpointError: a name, type, shape or number that is not possible; the message says which.
    """
    _names(counters, block.counters(), "counters", more=("ids", "shapes"))
    n_members = len(block.everyone)
    going = counters["members"]
    _require(_whole_numbers(going, 0, n_members - 1), "members", going)
    _require(going == sorted(set(going)), "members", going)
    _require(isinstance(counters["fits"], dict), "fits", counters["fits"])
    stopped = [str(place) for place in range(n_members) if place not in going]
    _require(sorted(counters["fits"]) == sorted(stopped), "fits", sorted(counters["fits"]))
    _check_histories(counters["histories"], n_members)
    for place, fit in counters["fits"].items():
        _names(fit, {"status": "", "best_epoch": 0}, f"fits.{place}")
        _require(fit["status"] in _STATUSES, f"fits.{place}.status", fit["status"])
        n_epochs = len(counters["histories"][int(place)])
        _require(_whole_numbers([fit["best_epoch"]], 0, n_epochs), f"fits.{place}.best_epoch", fit["best_epoch"])
        _check_tensor(tensors, f"fit.{place}", block.parameters[0])
    for name, value in block.tensor.items():
        _check_tensor(tensors, name, value[:0].new_empty((len(going), *value.shape[1:])))
    _names(counters["arrays"], block.array, "arrays")
    for name, value in block.array.items():
        _check_array(counters["arrays"][name], value[going], f"arrays.{name}")
    failures = counters["failures"]
    known = isinstance(failures, list) and all(_is_failure(one, n_members) for one in failures)
    _require(known, "failures", failures)
    _check_clock(block, counters, going)


def _check_histories(histories: Any, n_members: int) -> None:
    _require(isinstance(histories, list) and len(histories) == n_members, "histories", type(histories).__name__)
    for place, history in enumerate(histories):
        _require(isinstance(history, list), f"histories.{place}", history)
        for number, record in enumerate(history):
            found = isinstance(record, dict) and record.get("epoch") == number + 1 and "train_loss" in record
            _require(found, f"histories.{place}.{number}", record)


def _check_clock(block: Block, counters: Any, going: list[int]) -> None:
    clock, most = counters["clock"], 2**62
    _names(clock, block.clock.state(), "clock")
    for name, values in clock.items():
        _require(_whole_numbers(values, 0, most) and len(values) == len(going), f"clock.{name}", values)
    epochs = [len(counters["histories"][place]) for place in going]
    _require(clock["epoch"] == epochs, "clock.epoch", clock["epoch"])
    lengths = block.clock.steps_per_epoch[going].tolist()
    _require(all(step < n for step, n in zip(clock["step"], lengths)), "clock.step", clock["step"])
    _require(all(a <= b for a, b in zip(clock["step"], clock["n_steps"])), "clock.n_steps", clock["n_steps"])


def _check_tensor(tensors: Mapping[str, Tensor], name: str, like: Tensor) -> None:
    _require(name in tensors, name, "nothing")
    found = tensors[name]
    right = found.shape == like.shape and found.dtype == like.dtype
    _require(right, name, f"{found.dtype} {list(found.shape)}, not {like.dtype} {list(like.shape)}")


def _check_array(found: Any, like: np.ndarray, name: str) -> None:
    """Numbers in lists, as deep and as long as `like`; whole ones where it holds whole ones."""
    try:
        array = np.array(found, dtype=like.dtype) if like.size else np.zeros(like.shape)
    except (TypeError, ValueError, OverflowError):
        raise CheckpointError(f"the checkpoint is not ours: `{name}` holds {_shown(found)}") from None
    _require(isinstance(found, list) and array.shape == like.shape, name, found)
    if like.dtype.kind in "iu" and like.size:
        _require(np.array(found).dtype.kind in "iu", name, found)


def _is_failure(found: Any, n_members: int) -> bool:
    typed = isinstance(found, list) and [type(part) for part in found] == [int, int, str]
    return typed and 0 <= found[0] < n_members


def _whole_numbers(found: Any, least: int, most: int) -> bool:
    return isinstance(found, list) and all(type(value) is int and least <= value <= most for value in found)


def _names(found: Any, like: Mapping[str, Any], name: str, more: tuple[str, ...] = ()) -> None:
    _require(isinstance(found, dict), name, found)
    _require(set(found) - set(more) == set(like), name, sorted(map(str, found)))


def _require(holds: bool, name: str, found: Any) -> None:
    if not holds:
        raise CheckpointError(f"the checkpoint is not ours: `{name}` holds {_shown(found)}")


def _shown(found: Any) -> str:
    text = repr(found)
    return text if len(text) <= 80 else f"{text[:77]}..."
