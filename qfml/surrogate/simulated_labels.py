"""Labels by simulation: values and gradients with their standard errors, the noise of each row its own."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

import pricers as pr
from pricers.noise import address
from pricers.parallel import side_by_side
from pricers.parameters import whole
from qfml.errors import DataError
from qfml.surrogate import rough_bergomi_labels as rough_bergomi
from qfml.surrogate.path_labels import FEWEST_PATHS, block_rows, label_block, refusal

__all__ = ["SimulatedLabels", "not_simulated", "simulated_labels"]

MOST_PATHS = 2**22


class SimulatedLabels(NamedTuple):
    """What a batch of labels is made of; float64, in the unit of the target.

    Args:
        value: shape `(N,)`.
        std_error: of the value, from the scatter of its mirrored pairs of paths; shape `(N,)`.
        gradient: derivatives by the inputs, shape `(N, d)`; None where they were not asked for.
        gradient_std_error: theirs, from the scatter of up to 32 groups of paths, so that it is itself known to some
            15 %; same shape.
    """

    value: Tensor
    std_error: Tensor
    gradient: Tensor | None
    gradient_std_error: Tensor | None


@runtime_checkable
class LabelProblem(Protocol):
    """What labels need of a `Problem`."""

    @property
    def model(self) -> Mapping[str, Any]:
        """Kind of the model and its fixed parameters."""
        ...

    @property
    def target(self) -> str:
        """Unit of the labels: "implied_vol", "price" or "time_value"."""
        ...

    def triple(self, inputs: Tensor) -> tuple[pr.Instrument, pr.Model, pr.Market]:
        """Instrument, model and market, batches of as many elements as there are rows, with a graph to `inputs`."""
        ...


def simulated_labels(
    problem: LabelProblem,
    inputs: Tensor,
    n_paths: int,
    n_steps: int,
    seed: int,
    gradients: bool,
    first_row: int = 0,
    law: Tensor | None = None,
) -> SimulatedLabels:
    """Price each row of inputs by a simulation of its own.

    Row `first_row + i` gets the same label whatever other rows are in the call, for its noise depends on the seed, the
    number of the row and `n_paths` alone. Blocks of rows run side by side on the cores that torch may use.

    Implied vols under rough Bergomi are the exception: neighbouring rows of one law (one set of model parameters, and
    one number in `law` if it is given) share one simulation, addressed by the first of them. A call must not begin
    within a law.

    Args:
        problem: what is priced, with a target "price" (in units of the spot), or "implied_vol" under rough Bergomi.
        inputs: points of the box in natural units, float64, shape `(N, d)`.
        n_paths: paths of each label, half of them mirror images of the other half: a power of two, 16 or more.
        n_steps: time steps of the variance to the last contract date, spread evenly over the intervals between dates;
            of rough Bergomi to the first expiry of a law, and from each to the next, an even number.
        seed: any integer.
        gradients: whether derivatives of the value by all inputs are made too, pathwise, by one sweep backwards. There
            are none under rough Bergomi: a sweep serves one strike, where the simulation serves all of a law.
        first_row: number of the first row, 0 or more.
        law: number of each row's law, shape `(N,)`; None: neighbouring rows of equal parameters are of one.

    Returns:
        Value, standard error, gradient and its standard error.

    Raises:
        DataError: inputs that are no finite `(N, d)` float64 table, numbers of paths or steps out of their bounds, a
            problem that is not simulated here.

    References:
        Huge and Savine (2020), Differential machine learning; Glasserman and Staum (2001), Conditioning on one-step
        survival for barrier option simulations.
    """
    _check(inputs, n_paths, n_steps, seed, first_row)
    triple = problem.triple(inputs[:1]) if len(inputs) else None
    reason = not_simulated(problem.target, triple, n_paths, n_steps, gradients)
    if reason is not None:
        raise DataError(reason)
    if problem.target == "implied_vol":
        return _implied_vols(problem, inputs, n_paths, n_steps, seed, first_row, law)
    size = block_rows(n_paths, inputs.device)
    ends = range(size * (first_row // size + 1), first_row + len(inputs), size)
    edges = [first_row, *ends, first_row + len(inputs)] if len(inputs) else [first_row]

    def one(start_and_end: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        start, end = start_and_end
        block = start // size
        rows = slice(start - block * size, end - block * size)
        chosen = inputs[start - first_row : end - first_row]
        return label_block(problem, chosen, n_paths, n_steps, seed, block, rows, gradients)

    pieces = list(pairwise(edges))
    with side_by_side(inputs.device, len(pieces)) as run:
        found = list(run(one, pieces))
    empty = inputs.new_empty(0)
    value, std_error = (torch.cat([part[k] for part in found]) if found else empty for k in (0, 1))
    if not gradients:
        return SimulatedLabels(value, std_error, None, None)
    slopes = [[part[k] for part in found] for k in (2, 3)]
    gradient, its_error = (
        torch.cat([part for part in column if part is not None]) if column else inputs.new_empty(0, inputs.shape[-1])
        for column in slopes
    )
    return SimulatedLabels(value, std_error, gradient, its_error)


def not_simulated(
    target: str, triple: tuple[pr.Instrument, pr.Model, pr.Market] | None, n_paths: int, n_steps: int, gradients: bool
) -> str | None:
    """Why a problem has no labels by simulation, in a sentence; None if it has, as far as `triple` is given."""
    if n_paths < FEWEST_PATHS:
        return f"`n_paths` of simulated labels must be {FEWEST_PATHS} or more, got {n_paths}"
    if n_paths > MOST_PATHS:
        return f"`n_paths` of simulated labels must be {MOST_PATHS:,} or less, got {n_paths:,}: take fewer"
    if target == "price":
        reason = None if triple is None else refusal(*triple)
        return None if reason is None else f"this problem has no labels by simulation: {reason}; use an exact engine"
    if target != "implied_vol":
        return (
            f"`target` of simulated labels must be 'price', or 'implied_vol' under rough Bergomi, got {target!r}: a "
            "network on prices gives it by its formula"
        )
    reason = None if triple is None else rough_bergomi.refusal(*triple[:2])
    if reason is not None:
        return f"this problem has no labels by simulation: {reason}; use an exact engine"
    if gradients:
        return (
            "implied vols under rough Bergomi are labelled without gradients: one simulation serves all strikes of a "
            "law, a sweep backwards only one; spend the time on more laws, with `gradients: false`"
        )
    if n_steps % 2:
        return f"`n_steps` must be even under rough Bergomi, got {n_steps}: every other node makes a second sum"
    return None


def _implied_vols(
    problem: LabelProblem,
    inputs: Tensor,
    n_paths: int,
    n_steps: int,
    seed: int,
    first_row: int,
    law: Tensor | None,
) -> SimulatedLabels:
    if not len(inputs):
        return SimulatedLabels(inputs.new_empty(0), inputs.new_empty(0), None, None)
    instrument, model, market = problem.triple(inputs)
    assert isinstance(model, pr.RoughBergomi)
    laws = rough_bergomi.laws_of(model, len(inputs), law)

    def one(rows: tuple[int, int]) -> tuple[Tensor, Tensor]:
        words = address("rough laws", seed, first_row + rows[0])
        return rough_bergomi.rough_bergomi_labels(instrument, model, market, rows, n_paths, n_steps, words)

    with side_by_side(inputs.device, len(laws)) as run:
        found = list(run(one, laws))
    return SimulatedLabels(torch.cat([vol for vol, _ in found]), torch.cat([error for _, error in found]), None, None)


def _check(inputs: Any, n_paths: Any, n_steps: Any, seed: Any, first_row: Any) -> None:
    if not isinstance(inputs, Tensor) or inputs.ndim != 2 or inputs.dtype != torch.float64:
        what = f"{inputs.dtype} of shape {tuple(inputs.shape)}" if isinstance(inputs, Tensor) else type(inputs).__name__
        raise DataError(f"`inputs` must be a float64 tensor of shape (rows, inputs), got {what}")
    finite = inputs.detach().isfinite().all(-1)
    if not bool(finite.all()):
        first = int((~finite).nonzero()[0])
        raise DataError(f"`inputs` must be finite, got {inputs[first].tolist()} in row {first}")
    try:
        whole("n_paths", n_paths, at_least=FEWEST_PATHS, at_most=MOST_PATHS)
        whole("n_steps", n_steps, at_least=1)
        whole("seed", seed)
        whole("first_row", first_row, at_least=0)
    except ValueError as error:
        raise DataError(str(error)) from error
    if n_paths & (n_paths - 1):
        raise DataError(f"`n_paths` must be a power of two, got {n_paths}; take {1 << n_paths.bit_length()}")
