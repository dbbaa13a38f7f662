"""Memory: what a training holds, and what to lower when there is not enough."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from qfml.errors import UserError

_NO_MEMORY = ("not enough memory", "DefaultCPUAllocator", "out of memory")  # how torch says it where it has no class


def memory_report(
    tensors: Mapping[str, Tensor], gradient: Tensor, batch: Sequence[Any], data: Sequence[Any], device: torch.device
) -> dict[str, int]:
    """Bytes that a training holds, by part.

    Args:
        tensors: of a block, by name; those of the optimizer begin with "optimizer.".
        gradient: (M, P).
        batch: what one step is computed from.
        data: features, labels and weights of all rows.
        device: where the training runs.

    Returns:
        "parameters", "gradient", "optimizer", "other_state" (best and average weights, sums), "batch", "data", and
        "peak": the most that the device, or on a CPU the whole process, has held so far.
    """
    state = {name: _bytes([value]) for name, value in tensors.items()}
    optimizer = sum(size for name, size in state.items() if name.startswith("optimizer."))
    parameters = state["parameters"]
    return {
        "parameters": parameters,
        "gradient": _bytes([gradient]),
        "optimizer": optimizer,
        "other_state": sum(state.values()) - optimizer - parameters,
        "batch": _bytes(batch),
        "data": _bytes(data),
        "peak": peak(device),
    }


def peak(device: torch.device) -> int:
    """The most bytes that the device has held, or on a CPU the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most  # macOS counts bytes, Linux kilobytes


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is not enough memory, on a GPU or on a CPU."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _NO_MEMORY)


@contextmanager
def explained(settings: Mapping[str, Any]) -> Iterator[None]:
    """Say what to lower where there is not enough memory.

    Args:
        settings: what decides how much is needed, by name, with its present value.

    Raises:
        UserError: in place of torch's own error, which is its cause.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        now = {name: "not set" if value is None else value for name, value in settings.items()}
        present = ", ".join(f"`{name}` (now {value})" for name, value in now.items())
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"not enough memory for this training: lower one of {present}. `micro_batch_size` and `member_block` "
            f"change no result. What failed: {first}"
        ) from error


def _bytes(values: Sequence[Any]) -> int:
    """Bytes of all tensors among `values`, each piece of memory counted once."""
    found: dict[int, int] = {}
    for value in values:
        if isinstance(value, Tensor):
            size = value.numel() * value.element_size()
            found[value.data_ptr()] = max(size, found.get(value.data_ptr(), 0))
    return sum(found.values())
