"""Dropout for a user's module: each row's masks are a function of eight random bytes of that row."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qfml.errors import UserError
from qfml.networks.base import Dropout

KEY_BYTES = 8  # of a row: two numbers of 32 bits
_BITS = 0xFFFFFFFF


class RowDropout(nn.Module):
    """Stands in for `torch.nn.Dropout`: the same law, its masks a hash of (row's keys, layer, call, unit).

    Without a random state, it runs under `vmap`, and a row keeps its masks in any stack and any micro-batch.

    Args:
        p: probability of dropping a unit.
        place: number of the layer in the module; layers have different masks.
    """

    keys: Tensor

    def __init__(self, p: float, place: int) -> None:
        super().__init__()
        self.p, self.place, self.calls, self.active = p, place, 0, False
        self.register_buffer("keys", torch.zeros(0, 2, dtype=torch.int64), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """`x` (B, ...) with units switched off where it is active, the others scaled by 1 / (1 - p)."""
        if not self.active:
            return x
        if x.ndim == 0 or len(x) != len(self.keys):
            raise UserError(
                f"torch.nn.Dropout must be given rows first, (rows, ...): for {len(self.keys)} rows it got a tensor of "
                f"shape {tuple(x.shape)}"
            )
        self.calls += 1
        units = torch.arange(x[0].numel(), device=x.device).view(x.shape[1:])
        low, high = (part.view(-1, *(1,) * (x.ndim - 1)) for part in self.keys.unbind(1))
        low = _mixed((low + 0x9E3779B9 * (64 * self.place + self.calls)) & _BITS)
        number = _mixed((_mixed(units ^ low) + high) & _BITS)
        kept = number >= round(self.p * 2**32)
        return torch.where(kept, x / (1 - self.p), 0.0) if self.p < 1 else torch.zeros_like(x)


def _mixed(number: Tensor) -> Tensor:
    """The finalizer of MurmurHash3 (Appleby 2011) on 32-bit numbers held in int64."""
    number = number ^ (number >> 16)
    number = (number * 0x85EBCA6B) & _BITS
    number = number ^ (number >> 13)
    number = (number * 0xC2B2AE35) & _BITS
    return number ^ (number >> 16)


def dropout_keys(dropout: Dropout) -> Tensor:
    """Two 32-bit numbers a row, (M, B, 2) int64, of the row's next random bytes."""
    own = dropout.random_bytes[:, :, dropout.used : dropout.used + KEY_BYTES].to(torch.int64)
    dropout.used += KEY_BYTES
    places = 256 ** torch.arange(KEY_BYTES // 2, device=own.device)
    return (own.unflatten(2, (2, KEY_BYTES // 2)) * places).sum(-1)


def replace_dropout(module: nn.Module) -> dict[str, RowDropout]:
    """Put a `RowDropout` in the place of every active `torch.nn.Dropout`; returns them by their path."""
    made: dict[int, RowDropout] = {}
    paths: dict[str, RowDropout] = {}
    for path, layer in list(module.named_modules(remove_duplicate=False)):
        if type(layer) is not nn.Dropout or layer.p == 0:
            continue
        if not path:
            raise UserError("the module is a dropout layer alone: there is nothing to train")
        if id(layer) not in made:
            made[id(layer)] = paths[path] = RowDropout(layer.p, len(made))
        parent, _, name = path.rpartition(".")
        setattr(module.get_submodule(parent), name, made[id(layer)])
    return paths
