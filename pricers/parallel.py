"""Independent pieces of work on the cores of the machine, one thread each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock, local
from typing import Any

import torch

__all__ = ["all_threads", "one_thread", "side_by_side"]

_lock = Lock()
_own = local()  # `depth`: blocks of `one_thread` of this Python thread
_inside = 0  # those of all Python threads
_before = 1  # torch's number of threads before the first of them


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch works on the calling thread alone: small tensors are faster so, and much faster on a busy machine.

    Each thread keeps its number, and new ones begin with the last that was set anywhere: blocks that overlap in time
    restore what the first of them found.
    """
    global _inside, _before
    with _lock:
        if _inside == 0:
            _before = torch.get_num_threads()
        _inside += 1
    _own.depth = getattr(_own, "depth", 0) + 1
    torch.set_num_threads(1)
    try:
        yield
    finally:
        _own.depth -= 1
        with _lock:
            _inside -= 1
            torch.set_num_threads(1 if _own.depth else _before)


@contextmanager
def all_threads(n_threads: int) -> Iterator[None]:
    """Torch works on `n_threads` threads, whatever the calling one has."""
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def side_by_side(device: torch.device, n_tasks: int, n_threads: int | None = None) -> Iterator[Callable[..., Any]]:
    """A `map` over independent tasks, each on a thread that works alone; in order on a GPU.

    There are as many threads as torch would take, or `n_threads`.

    Threads begin with gradients enabled and outside of the transforms of `torch.func`: a task sets its own mode. They
    wait for one another where the operations are short; tasks should be long and made of large ones.
    """
    n_threads = min(torch.get_num_threads() if n_threads is None else n_threads, n_tasks)
    if device.type == "cuda" or n_threads < 2:
        yield map
        return
    with one_thread(), ThreadPoolExecutor(n_threads) as pool:
        yield pool.map
