r"""Standard normals by address: pseudo-random, antithetic, or scrambled Sobol points through a Brownian bridge.

Paths come in fixed blocks of `BLOCK`. What a path gets depends on the seed, its block and the number of normals, not
on how many blocks are simulated at once, by how many threads, or in which slices.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

__all__ = [
    "BLOCK",
    "NOISES",
    "TILE",
    "Antithetic",
    "Noise",
    "Normals",
    "Pseudo",
    "Sobol",
    "address",
    "bridge",
    "uniforms",
]

BLOCK = 16_384  # paths of one generator: with their state they fit into a core's cache
CUDA_BLOCK = 1_048_576  # the same on a GPU, where small kernels cost more than memory
TILE = 1_024  # chunks of paths begin at multiples of this; antithetic pairs lie within a tile
SOBOL_DIMENSIONS = 21_201  # direction numbers of Joe and Kuo, as shipped with torch
SOBOL_BITS = 30


def address(*words: int | str) -> int:
    """A seed that depends on all words: the same on each machine, unrelated for neighbours."""
    digest = hashlib.blake2b(repr(words).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def block_size(device: torch.device) -> int:
    """Paths of one generator on this kind of device."""
    return CUDA_BLOCK if device.type == "cuda" else BLOCK


class Normals(ABC):
    """The normals of a chunk of paths: one step after the other."""

    @abstractmethod
    def step(self, index: int) -> Tensor:
        """Normals of step `index`, shape `n_normals width`, good until the next call; steps are asked for in order."""

    def whole(self, n_steps: int) -> Tensor:
        """A copy of the normals of all steps, shape `n_steps n_normals width`."""
        return torch.stack([self.step(index).clone() for index in range(n_steps)])


@dataclass(frozen=True)
class Noise(ABC):
    """A kind of noise.

    Args:
        seed: any integer; the same seed gives the same paths.
    """

    kind: ClassVar[str]
    seed: int

    @abstractmethod
    def normals(self, repeat: int, start: int, width: int, dt: Tensor, n_normals: int) -> Normals:
        """Normals of the paths from `start` to `start + width`.

        Args:
            repeat: which independent repeat; 0 where `n_repeats` is 1.
            start: first path, a multiple of `TILE`.
            width: number of paths; does not cross the end of a block unless it begins at one.
            dt: lengths of the steps, years; shape `(n_steps,)`. Gives dtype and device.
            n_normals: normals for each path and step.
        """

    @abstractmethod
    def extra(self, repeat: int, start: int, width: int, dt: Tensor, n_normals: int, n_rows: int) -> Tensor:
        """More normals of the same paths, independent of those of the steps; shape `n_rows width`.

        The arguments are those of `normals`, and the number of rows.
        """

    @property
    def n_repeats(self) -> int:
        """Independent repeats whose scatter gives the standard error; 1 where the paths themselves are the sample."""
        return 1

    @property
    def pairs(self) -> bool:
        """Whether the two halves of each tile mirror each other, so that a pair is one draw."""
        return False


class _Drawn(Normals):
    """Rows of a buffer, filled block by block, each from its own generator."""

    def __init__(self, words: tuple[int | str, ...], start: int, width: int, n_normals: int, like: Tensor) -> None:
        size = block_size(like.device)
        first, inside = divmod(start, size)
        n_blocks = -(-(inside + width) // size)
        self._window = slice(inside, inside + width)
        # a whole block is drawn, even of a short last one: a path does not depend on how many come after it
        self._buffer = torch.empty(n_normals, n_blocks * size, dtype=like.dtype, device=like.device)
        generators = [
            torch.Generator(device=like.device).manual_seed(address(*words, first + block)) for block in range(n_blocks)
        ]
        self._parts = [
            (row[block * size : (block + 1) * size], generator)
            for row in self._buffer
            for block, generator in enumerate(generators)
        ]
        self._drawn = self._buffer[:, self._window]

    def step(self, index: int) -> Tensor:
        for part, generator in self._parts:
            part.normal_(generator=generator)
        return self._drawn


class Pseudo(Noise):
    """Independent pseudo-random normals."""

    kind: ClassVar[str] = "pseudo"

    def normals(self, repeat: int, start: int, width: int, dt: Tensor, n_normals: int) -> Normals:
        return _Drawn(("pseudo", self.seed), start, width, n_normals, dt)

    def extra(self, repeat: int, start: int, width: int, dt: Tensor, n_normals: int, n_rows: int) -> Tensor:
        return _Drawn(("pseudo extra", self.seed), start, width, n_rows, dt).step(0)


class _Mirrored(Normals):
    """Each tile holds half a tile of normals and their negatives."""

    def __init__(self, drawn: Normals, width: int) -> None:
        self._drawn = drawn
        self._whole = width // TILE * TILE // 2  # normals of the whole tiles; the last one may be short

    def step(self, index: int) -> Tensor:
        normals = self._drawn.step(index)
        n_normals = normals.shape[0]
        tiles = normals[:, : self._whole].reshape(n_normals, self._whole // (TILE // 2), TILE // 2)
        mirrored = torch.cat([tiles, -tiles], dim=-1).flatten(1)
        last = normals[:, self._whole :]
        return torch.cat([mirrored, last, -last], dim=-1) if last.shape[1] else mirrored


class Antithetic(Noise):
    """Each path has a mirror image: the second half of a tile has the negatives of the first."""

    kind: ClassVar[str] = "antithetic"

    def normals(self, repeat: int, start: int, width: int, dt: Tensor, n_normals: int) -> Normals:
        drawn = _Drawn(("antithetic", self.seed), start // 2, width // 2, n_normals, dt)
        return _Mirrored(drawn, width)

    def extra(self, repeat: int, start: int, width: int, dt: Tensor, n_normals: int, n_rows: int) -> Tensor:
        drawn = _Drawn(("antithetic extra", self.seed), start // 2, width // 2, n_rows, dt)
        return _Mirrored(drawn, width).step(0)

    @property
    def pairs(self) -> bool:
        return True


@dataclass(frozen=True)
class Sobol(Noise):
    """Sobol points, scrambled anew for each repeat: the scatter of the repeats is an honest standard error.

    The dimensions are steps x normals. A Brownian bridge gives the leading ones to the coarse shape of the path. Beyond
    the 21,201 dimensions that torch knows, the rest of the path is pseudo-random.

    Args:
        repeats: number of independent scrambles.

    References:
        Joe and Kuo (2008), Constructing Sobol sequences with better two-dimensional projections. Matousek (1998), On
        the L2-discrepancy for anchored boxes: the linear scramble. Glasserman (2004), sections 3.1 and 5.4.
    """

    kind: ClassVar[str] = "sobol"
    repeats: int = 16

    @property
    def n_repeats(self) -> int:
        return self.repeats

    def normals(self, repeat: int, start: int, width: int, dt: Tensor, n_normals: int) -> Normals:
        n_steps = dt.shape[0]
        rows = self._rows(repeat, start, width, dt, slice(0, n_steps * n_normals))
        return Stored(bridge(rows.reshape(n_steps, n_normals, width), dt.detach()))

    def extra(self, repeat: int, start: int, width: int, dt: Tensor, n_normals: int, n_rows: int) -> Tensor:
        first = dt.shape[0] * n_normals
        return self._rows(repeat, start, width, dt, slice(first, first + n_rows))

    def _rows(self, repeat: int, start: int, width: int, dt: Tensor, dimensions: slice) -> Tensor:
        """Normals of these dimensions, shape `n_dimensions width`."""
        n_rows = dimensions.stop - dimensions.start
        n_sobol = max(0, min(dimensions.stop, SOBOL_DIMENSIONS) - dimensions.start)
        rows = dt.detach().new_empty(n_rows, width)
        if n_sobol:
            seed = address("sobol", self.seed, repeat)
            last = dimensions.start + n_sobol
            sobol_normals(seed, start, slice(dimensions.start, last), rows[:n_sobol])
        if n_rows > n_sobol:
            words = ("sobol rest", self.seed, repeat, dimensions.start)
            rows[n_sobol:] = _Drawn(words, start, width, n_rows - n_sobol, rows).step(0)
        return rows


class Stored(Normals):
    """Normals that were all made before: shape `n_steps n_normals width`."""

    def __init__(self, normals: Tensor) -> None:
        self._normals = normals

    def step(self, index: int) -> Tensor:
        return self._normals[index]


NOISES: dict[str, type[Noise]] = {cls.kind: cls for cls in (Pseudo, Antithetic, Sobol)}


def uniforms(seed: int, repeat: int, start: int, width: int, n_rows: int, like: Tensor) -> Tensor:
    """Independent uniforms in (0, 1) beside the normals of the same paths, shape `width n_rows`."""
    drawn = _Drawn(("uniform", seed, repeat), start, width, n_rows, like).step(0)
    return torch.special.ndtr(drawn).T


@lru_cache(maxsize=256)
def _scramble(n_dimensions: int, seed: int) -> tuple[Tensor, Tensor]:
    """Scrambled direction numbers `n_dimensions bits`, and the digital shift of each dimension."""

    def scrambled() -> tuple[Tensor, Tensor]:
        engine = torch.quasirandom.SobolEngine(n_dimensions, scramble=True, seed=seed)
        return engine.sobolstate.to(torch.int32), engine.shift.to(torch.int32)

    # a thread is outside of the transforms of torch.func, under which torch cannot build its engine
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(scrambled).result()


def sobol_integers(seed: int, start: int, width: int, dimensions: slice) -> tuple[Tensor, Tensor]:
    """Scrambled Sobol points `start` to `start + width` as integers below $2^{30}$, in two halves to be combined.

    Point i is the exclusive or of the direction numbers at the bits of i, so that an aligned block holds all
    combinations of a high and a low part; it has the same points as in the usual Gray-code order.

    Returns:
        High parts `n_dimensions n_high 1` and low parts `n_dimensions 1 n_low`; their exclusive or, flattened, begins
        with the points.
    """
    # torch draws the scramble of all dimensions at once: powers of two, so that parts of a path mostly share it
    directions, first = _scramble(min(1 << (dimensions.stop - 1).bit_length(), SOBOL_DIMENSIONS), seed)
    directions, first = directions[dimensions], first[dimensions]
    n_bits = max(1, (width - 1).bit_length())
    if start % 2**n_bits:
        raise ValueError(f"a block of Sobol points must start at a multiple of {2**n_bits}, got {start}")
    for bit in range(n_bits, SOBOL_BITS):
        if start >> bit & 1:
            first = first ^ directions[:, bit]
    n_low = n_bits // 2
    low = _combinations(directions[:, :n_low])
    high = _combinations(directions[:, n_low:n_bits]) ^ first.unsqueeze(-1)
    return high.unsqueeze(-1), low.unsqueeze(-2)


def _combinations(directions: Tensor) -> Tensor:
    """Exclusive or of each subset of the columns, in binary order: `n_dimensions 2^bits`."""
    found = directions.new_zeros(directions.shape[0], 1)
    for column in directions.unbind(-1):
        found = torch.cat([found, found ^ column.unsqueeze(-1)], dim=-1)
    return found


def sobol_normals(seed: int, start: int, dimensions: slice, out: Tensor) -> None:
    """Fill `out`, `n_dimensions width`, with normals of scrambled Sobol points, each in the middle of its cell.

    Dimension by dimension, so that all intermediate results stay in the cache.
    """
    width = out.shape[-1]
    high, low = (part.to(out.device) for part in sobol_integers(seed, start, width, dimensions))
    for row, one, other in zip(out, high, low, strict=True):
        points = (one ^ other).reshape(-1)[:width].double()
        # 2 u - 1 is exact, so that the tails keep their digits
        points.add_(0.5).mul_(2.0 ** (1 - SOBOL_BITS)).sub_(1.0).erfinv_().mul_(math.sqrt(2.0))
        row.copy_(points)


def bridge(normals: Tensor, dt: Tensor) -> Tensor:
    """Normals of the increments of Brownian motions whose coarse shape is made by the leading normals.

    Args:
        normals: independent standard normals, most important first; shape `(n_steps, ..., width)`.
        dt: lengths of the steps; shape `(n_steps,)`.

    Returns:
        Independent standard normals, one for each step: an orthogonal transform of the input along the first axis.

    References:
        Glasserman (2004), section 3.1.
    """
    n_steps = dt.shape[0]
    times: list[float] = torch.cat([dt.new_zeros(1), dt]).cumsum(0).tolist()
    brownian = torch.empty(n_steps + 1, *normals.shape[1:], dtype=normals.dtype, device=normals.device)
    brownian[0] = 0.0
    brownian[n_steps] = normals[0] * times[n_steps] ** 0.5
    used = 1
    gaps = [(0, n_steps)]
    while gaps:
        finer: list[tuple[int, int]] = []
        for left, right in gaps:
            if right - left < 2:
                continue
            middle = _middle(times, left, right)
            span = times[right] - times[left]
            share = (times[middle] - times[left]) / span
            scale = (share * (times[right] - times[middle])) ** 0.5
            torch.lerp(brownian[left], brownian[right], share, out=brownian[middle])
            brownian[middle].add_(normals[used], alpha=scale)
            used += 1
            finer += [(left, middle), (middle, right)]
        gaps = finer
    shape = (-1,) + (1,) * (normals.ndim - 1)
    return brownian.diff(dim=0) / dt.sqrt().to(normals.dtype).reshape(shape)


def _middle(times: list[float], left: int, right: int) -> int:
    """The node nearest to the middle in time, strictly between."""
    aim = 0.5 * (times[left] + times[right])
    return min(range(left + 1, right), key=lambda node: abs(times[node] - aim))
