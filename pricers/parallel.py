"""Independent pieces of work on the cores of the machine, one thread each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

__all__ = ["differentiated", "side_by_side"]


@contextmanager
def side_by_side(device: torch.device, n_tasks: int) -> Iterator[Callable[..., Any]]:
    """A `map` over independent tasks: one thread for each core, each working alone; in order on a GPU.

    Threads begin with gradients enabled and outside of the transforms of `torch.func`: a task sets its own mode, and
    what is `differentiated` stays on the thread of the caller.
    """
    n_threads = min(torch.get_num_threads(), n_tasks)
    if device.type == "cuda" or n_threads < 2:
        yield map
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(n_threads) as pool:
            yield pool.map
    finally:
        torch.set_num_threads(before)


def differentiated(tensor: Tensor) -> bool:
    """Whether derivatives go through this tensor, in reverse or forward mode or by `torch.func`."""
    # there is no public word for it
    wrapped: Callable[[Tensor], bool] = torch._C._functorch.is_functorch_wrapped_tensor  # pyright: ignore[reportAttributeAccessIssue]
    return wrapped(tensor) or tensor.requires_grad or unpack_dual(tensor).tangent is not None
