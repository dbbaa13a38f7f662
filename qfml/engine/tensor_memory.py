"""Memory that torch tensors hold while a piece of code runs, measured allocation by allocation."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class TensorMemory(TorchDispatchMode):
    """Counts the bytes of all tensors that are created while it is entered, and remembers the peak.

    A storage counts once, however many views share it, from the operation that returns it until it is freed.
    What a kernel allocates and frees within one operation is not seen.

    Args:
        limit: bytes; an operation that takes the count above raises `torch.OutOfMemoryError`, as a GPU would.

    Example:
        >>> with TensorMemory() as memory:
        ...     a = torch.zeros(1000)
        ...     b = a[:10] + torch.ones(10)
        >>> memory.peak, memory.held
        (4080, 4040)
    """

    def __init__(self, limit: int | None = None) -> None:
        super().__init__()
        self.limit = limit
        self.held = self.peak = 0
        self._size: dict[int, int] = {}  # of each storage that was created in here

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = _storages((args, kwargs))
        outside = {id(storage) for storage in given} - self._size.keys()
        result = func(*args, **(kwargs or {}))
        for storage in _storages(result):
            if id(storage) not in outside:
                self._count(storage)
        self.peak = max(self.peak, self.held)
        if self.limit is not None and self.held > self.limit:
            raise torch.OutOfMemoryError(f"tensors hold {self.held} bytes, the limit is {self.limit}")
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key not in self._size:
            self._size[key] = 0
            weakref.finalize(storage, self._forget, key).atexit = False
        self.held += size - self._size[key]  # an operation may enlarge a storage that is there
        self._size[key] = size

    def _forget(self, key: int) -> None:
        self.held -= self._size.pop(key)


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
