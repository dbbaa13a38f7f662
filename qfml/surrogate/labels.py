"""Labelled points: made shard by shard, each a pure function of its number, and read back as one table."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pricers.noise import address
from pricers.parallel import one_thread
from qfml.config import build, config_hash, to_dict
from qfml.engine.provenance import environment
from qfml.errors import ConfigError, DataError
from qfml.surrogate.exact_labels import Targets, target_gradients, target_values
from qfml.surrogate.points import Points, placed, sobol_points
from qfml.surrogate.problem import Problem
from qfml.surrogate.settings import LabelSettings
from qfml.surrogate.shards import Shard, read_shard, shard_path, write_shard, write_text

__all__ = ["LabelTable", "labels_folder", "make_labels", "make_shard", "read_labels", "split_by_law"]

NO_STRIKE = "no strike of that delta: its time value does not tell a vol"
NO_VOL = "no implied vol: the time value does not tell one"
NOT_TOLD = "the numerical error of the vol is above 1 basis point"
NO_GRADIENT = "a derivative is not finite"
LARGEST_VOL_ERROR = 1e-4


@dataclass(frozen=True, eq=False)
class LabelTable:
    """Labelled points, as float64 tensors.

    Args:
        names: of the inputs.
        inputs: natural units, shape `(N, d)`.
        value: in the unit of the target.
        std_error: the same; 0 of exact labels.
        gradient: d value / d inputs, `(N, d)`, or None.
        gradient_std_error: the same; None of exact labels and without gradients.
        law: rows that share one draw of everything but strike and expiry, int64: never split between sets.
        problem: what was labelled.
        hash: of all that determined the labels.
        left_out: how many points have no label, by reason.
    """

    names: tuple[str, ...]
    inputs: Tensor
    value: Tensor
    std_error: Tensor
    gradient: Tensor | None
    gradient_std_error: Tensor | None
    law: Tensor
    problem: Problem
    hash: str
    left_out: dict[str, int]

    def __len__(self) -> int:
        return len(self.value)

    def rows(self, chosen: Any) -> LabelTable:
        """The table of some rows: their numbers, or a mask."""
        index = torch.as_tensor(chosen)
        parts = (self.inputs, self.value, self.std_error, self.gradient, self.gradient_std_error, self.law)
        picked = [None if part is None else part[index] for part in parts]
        return LabelTable(self.names, *picked, problem=self.problem, hash=self.hash, left_out=self.left_out)  # pyright: ignore[reportArgumentType]


def labels_folder(problem: Problem, labels: LabelSettings, folder: Path | str | None = None) -> Path:
    """Where the labels of these settings lie: `labels-HASH` in `folder`, or in that of the settings."""
    return Path(labels.folder if folder is None else folder) / f"labels-{labels.hash(problem)}"


def make_labels(
    problem: Problem,
    labels: LabelSettings,
    folder: Path | str | None = None,
    shards: Iterable[int] | None = None,
    workers: int | None = None,
) -> list[Path]:
    """Make what is missing of the labels; what is there is checked and kept.

    Args:
        problem: what is labelled.
        labels: how.
        folder: where `labels-HASH` is, or is made; None takes that of the settings.
        shards: numbers of the shards to be made, so that machines which share a folder can split the work; None: all.
        workers: processes; None: as many as there are cores.

    Returns:
        The files of the shards asked for.

    Raises:
        ConfigError: the problem cannot be labelled so, or a shard that does not exist.
        DataError: a file of other labels lies in the folder.
    """
    labels.checked(problem)
    place = labels_folder(problem, labels, folder)
    numbers = _numbers(labels, shards)
    place.mkdir(parents=True, exist_ok=True)
    settings = {"problem": to_dict(problem), "labels": to_dict(labels)}
    write_text(json.dumps(settings, indent=1), place / "settings.json")
    missing = [number for number in numbers if not _is_made(place, number, labels.hash(problem))]
    with one_thread():
        for number in missing:
            write_shard(make_shard(problem, labels, number), shard_path(place, number))
    return [shard_path(place, number) for number in numbers]


def _numbers(labels: LabelSettings, shards: Iterable[int] | None) -> list[int]:
    numbers = list(range(labels.n_shards)) if shards is None else sorted(set(shards))
    for number in numbers:
        if not 0 <= number < labels.n_shards:
            raise ConfigError(f"`shards` must lie in 0 to {labels.n_shards - 1}, got {number}")
    return numbers


def _is_made(place: Path, number: int, expected: str) -> bool:
    """Whether the shard is there and whole; what is damaged is made again, with a word."""
    path = shard_path(place, number)
    if not path.exists():
        return False
    try:
        about = read_shard(path).about
    except DataError as error:
        warnings.warn(f"{error}: it is made again", UserWarning, stacklevel=3)
        return False
    if about["hash"] != expected or about["shard"] != number:
        raise DataError(
            f"{path} holds shard {about['shard']} of the labels {about['hash']}, not shard {number} of {expected}: "
            "move it away, or take another folder"
        )
    return True


def make_shard(problem: Problem, labels: LabelSettings, number: int) -> Shard:
    """The labels of one shard: a pure function of problem, settings and number."""
    start, stop = labels.laws(number)
    points = sobol_points(
        problem,
        start,
        stop,
        labels.seed,
        strikes_per_law=labels.strikes(problem),
        expiries_per_law=labels.expiries_per_law,
    )
    about = {"hash": labels.hash(problem), "shard": number, "laws": [start, stop]}
    return labelled(problem, labels, points, about)


def labelled(problem: Problem, labels: LabelSettings, points: Points, about: dict[str, Any]) -> Shard:
    """The labels of points, with their provenance."""
    spots = placed(problem, points, torch.device(labels.device))
    shape = spots.missing.shape
    inputs = torch.stack([column.expand(shape) for column in spots.columns.values()], dim=-1)
    law = spots.law.unsqueeze(-1).expand(shape)
    if labels.engine.simulated:
        made = _simulated(problem, labels, inputs.reshape(-1, inputs.shape[-1]), int(points.law[0]) if len(law) else 0)
    else:
        made = _exact(problem, labels, spots.columns, shape)
    value, std_error, gradient, gradient_std_error, faults, note = made
    left_out: dict[str, int] = {}
    kept = torch.ones(shape.numel(), dtype=torch.bool, device=inputs.device)
    for reason, mask in {NO_STRIKE: spots.missing.reshape(-1), **faults}.items():
        count = int((mask & kept).sum())
        kept &= ~mask
        if count:
            left_out[reason] = count

    def column(table: Tensor | None) -> Any:
        return None if table is None else table[kept].cpu().numpy()

    about = {
        **about,
        "problem_hash": config_hash(problem),
        "problem": to_dict(problem),
        "labels": {k: v for k, v in to_dict(labels).items() if k != "folder"},
        "inputs": list(problem.inputs),
        "units": problem.units,
        "target_unit": problem.target_unit,
        "left_out": left_out,
        "note": note,
        "versions": environment(1)["versions"],
    }
    return Shard(
        inputs=inputs.reshape(-1, inputs.shape[-1])[kept].cpu().numpy(),
        value=column(value),
        std_error=column(std_error),
        gradient=column(gradient),
        gradient_std_error=column(gradient_std_error),
        law=column(law.reshape(-1)),
        about=about,
    )


def _exact(problem: Problem, labels: LabelSettings, columns: dict[str, Tensor], shape: torch.Size) -> Any:
    engine = labels.engine.engine()
    with torch.no_grad():
        found: Targets = target_values(problem, columns, engine)
    value, bound = (table.expand(shape).reshape(-1) for table in (found.value, found.error_bound))
    faults: dict[str, Tensor] = {}
    if problem.target == "implied_vol":
        faults = {NO_VOL: value.isnan(), NOT_TOLD: ~(bound <= LARGEST_VOL_ERROR)}
    gradient = None
    if labels.gradients:
        gradient = target_gradients(problem, columns, engine).reshape(-1, len(problem.inputs))
        faults[NO_GRADIENT] = ~gradient.isfinite().all(dim=-1)
    return value, torch.zeros_like(value), gradient, None, faults, found.note


def _simulated(problem: Problem, labels: LabelSettings, inputs: Tensor, first_law: int) -> Any:
    from qfml.surrogate.simulated_labels import simulated_labels  # loaded where labels are simulated

    engine: Any = labels.engine
    per_law = labels.strikes(problem) * labels.expiries_per_law
    made = simulated_labels(
        problem,
        inputs,
        engine.n_paths,
        engine.n_steps,
        address(labels.seed, "label noise"),
        labels.gradients,
        first_row=first_law * per_law,
    )
    return made.value, made.std_error, made.gradient, made.gradient_std_error, {}, "simulated"


def read_labels(folder: Path | str) -> LabelTable:
    """All shards of a folder as one table, in the order of their numbers.

    Args:
        folder: `labels-HASH`, as `make_labels` made it.

    Raises:
        DataError: no shard, a damaged or foreign one, or one that is missing.
    """
    place = Path(folder)
    paths = sorted(place.glob("part-*.parquet"))
    if not paths:
        raise DataError(f"there are no labels in {place}; make them with `make_labels`")
    shards = [read_shard(path) for path in paths]
    first = shards[0].about
    for path, shard in zip(paths, shards, strict=True):
        if shard.about["hash"] != first["hash"] or path != shard_path(place, shard.about["shard"]):
            raise DataError(
                f"{path} holds shard {shard.about['shard']} of the labels {shard.about['hash']}, beside those of "
                f"{first['hash']}: move it away"
            )
    problem = build(Problem, first["problem"])
    labels = build(LabelSettings, first["labels"])
    if len(shards) != labels.n_shards:
        there = {shard.about["shard"] for shard in shards}
        gone = next(number for number in range(labels.n_shards) if number not in there)
        raise DataError(
            f"{place} has {len(shards)} of {labels.n_shards} shards, {shard_path(place, gone).name} is missing: "
            "make_labels makes the rest"
        )
    left_out: dict[str, int] = {}
    for shard in shards:
        for reason, count in shard.about["left_out"].items():
            left_out[reason] = left_out.get(reason, 0) + count
    return LabelTable(
        tuple(first["inputs"]),
        *(_joined([getattr(shard, part) for shard in shards]) for part in ("inputs", "value", "std_error")),
        *(_joined([getattr(shard, part) for shard in shards]) for part in ("gradient", "gradient_std_error", "law")),
        problem=problem,
        hash=first["hash"],
        left_out=left_out,
    )


def _joined(parts: Sequence[np.ndarray | None]) -> Any:
    arrays = [part for part in parts if part is not None]
    return torch.from_numpy(np.concatenate(arrays)) if arrays else None


def split_by_law(
    table: LabelTable, shares: tuple[float, ...] = (0.8, 0.1, 0.1), seed: int = 0
) -> tuple[np.ndarray, ...]:
    """Rows of each set, by law: the rows of a law stay together, and a law stays in its set as others are added.

    Args:
        table: the labels.
        shares: of the sets, on average; they add up to 1.
        seed: of the draw that decides for each law.

    Returns:
        Row numbers of each set, ascending.

    Raises:
        ConfigError: shares that are negative or do not add up to 1.
    """
    if min(shares) < 0 or abs(sum(shares) - 1.0) > 1e-9:
        raise ConfigError(f"`shares` must be 0 or more and add up to 1, got {shares}")
    uniform = law_uniforms(table.law.numpy(), seed)
    edges = np.cumsum(shares)[:-1]
    chosen = np.searchsorted(edges, uniform, side="right")
    return tuple(np.flatnonzero(chosen == i) for i in range(len(shares)))


def law_uniforms(law: np.ndarray, seed: int) -> np.ndarray:
    """A number in [0, 1) for each law, by its address (Steele, Lea and Flood 2014, SplitMix64)."""
    with np.errstate(over="ignore"):  # the arithmetic is modulo 2^64
        z = law.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(address(seed, "laws of a set"))
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) / 2.0**53
