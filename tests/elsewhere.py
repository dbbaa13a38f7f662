"""A second device without one: tensors that say they are elsewhere, and refuse to meet those that are here.

On a machine without a GPU no test sees that a calculation mixes tensors of two devices. Here the device `ELSEWHERE` is
pretended: its tensors hold CPU memory, compute there, and report the device "meta". An operation that mixes them with
tensors of the CPU fails as it would on a GPU; scalars may meet, indices may come from the CPU, and copies go across.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

ELSEWHERE = "meta"  # the one device besides the CPU that every build of torch knows
GO_ACROSS = {"copy_", "_to_copy"}
TAKE_INDICES = {"index", "index_put", "index_put_", "_index_put_impl_"}
FROM_DATA = {torch.tensor, torch.as_tensor, torch.Tensor.new_tensor}


class There(torch.Tensor):
    """A tensor elsewhere."""

    here: torch.Tensor

    @staticmethod
    def __new__(cls, here: torch.Tensor) -> "There":
        offset, strides = here.storage_offset(), here.stride()
        made = torch.Tensor._make_wrapper_subclass(
            cls, here.size(), strides=strides, storage_offset=offset, dtype=here.dtype, device=ELSEWHERE
        )
        made.here = here
        return made

    def __repr__(self) -> str:
        return f"There({self.here})"

    def tolist(self) -> Any:
        return self.here.tolist()

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(function, args, kwargs or {})


def run(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operation, where its tensors are."""
    name = function.overloadpacket.__name__
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, There)]
    if there and name not in GO_ACROSS | TAKE_INDICES:
        here = [tensor for tensor in tensors if not isinstance(tensor, There) and tensor.ndim]
        if here:
            shapes = [tuple(tensor.shape) for tensor in here]
            raise RuntimeError(f"{name} mixes tensors of two devices; on the CPU are those of shape {shapes}")
    device = kwargs.get("device")
    stays = bool(there) if device is None else torch.device(device).type == ELSEWHERE
    if name == "copy_":
        stays = isinstance(args[0], There)
    inner_args, inner = tree_map(lambda leaf: leaf.here if isinstance(leaf, There) else leaf, (args, kwargs))
    made = function(*inner_args, **inner | ({} if device is None else {"device": "cpu"}))
    if torch.Tag.inplace_view in function.tags and isinstance(args[0], There):
        with no_dispatch():  # the shape of the one that reports has changed too
            function(*args, **kwargs)
    if not stays:
        return made
    known = {id(tensor.here): tensor for tensor in there}  # an operation in place gives back what it was given

    def reported(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        return known[id(leaf)] if id(leaf) in known else There(leaf)

    return tree_map(reported, made)


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(function, args, kwargs or {})


class _Factories(TorchFunctionMode):
    """Tensors of given numbers are made on the CPU and moved, as the numbers would be lost on the way."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        if function not in FROM_DATA:
            return function(*args, **given)
        device = given.pop("device", None)
        if function is torch.Tensor.new_tensor:
            like, args = args[0], args[1:]
            device, function = device or like.device, torch.tensor
            given.setdefault("dtype", like.dtype)
        made = function(*args, **given)
        return made if device is None else made.to(device)


class _Generator(torch.Generator):
    def __new__(cls, device: Any = "cpu") -> Any:
        return super().__new__(cls)


class _Autocast(torch.autocast):
    def __new__(cls, device: str, *args: Any, **kwargs: Any) -> Any:
        return contextlib.nullcontext() if device == ELSEWHERE else torch.amp.autocast(device, *args, **kwargs)


@contextlib.contextmanager
def pretended(patch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of the device, which exists as long as the context does."""
    enabled, dtype = torch.is_autocast_enabled, torch.get_autocast_dtype
    patch.setattr(torch, "Generator", _Generator)
    patch.setattr(torch, "autocast", _Autocast)
    patch.setattr(torch, "is_autocast_enabled", lambda device="cpu": device != ELSEWHERE and enabled(device))
    patch.setattr(torch, "get_autocast_dtype", lambda device: dtype("cpu" if device == ELSEWHERE else device))
    with _Factories(), _Operations():
        yield ELSEWHERE
