"""Labelled points: made shard by shard, each a pure function of its number, and read back as one table."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pricers.noise import address
from pricers.parallel import one_thread
from qfml.config import build, config_hash, to_dict
from qfml.engine.provenance import environment
from qfml.errors import ConfigError, DataError, UserError
from qfml.files import replace_text
from qfml.surrogate.exact_labels import LARGEST_VOL_ERROR, Targets, target_gradients, target_values
from qfml.surrogate.points import GivenPoints, Points, placed, sobol_points
from qfml.surrogate.problem import Problem
from qfml.surrogate.settings import LabelSettings
from qfml.surrogate.shards import Shard, read_shard, shard_path, write_shard
from qfml.surrogate.workers import make_by_processes, n_cores, own_kinds

__all__ = [
    "LabelTable",
    "join_labels",
    "labels_folder",
    "make_labels",
    "make_shard",
    "read_labels",
    "read_settings",
    "split_by_law",
]

NO_STRIKE = "no strike of that delta: its time value does not tell a vol"
NO_VOL = "no implied vol: the time value does not tell one"
NOT_TOLD = "the numerical error of the vol is above 1 basis point"
NO_VALUE = "the value or its standard error is not finite"
NO_GRADIENT = "a derivative is not finite"
WORTH_PROCESSES = 20.0  # seconds of work from which on processes are started unasked
PARTS = ("inputs", "value", "std_error", "gradient", "gradient_std_error", "law", "weight")
SETTINGS, POINTS = "settings.json", "points.safetensors"


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
        weight: importance weights of refined points: with them means are those of the whole box; None: all 1.
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
    weight: Tensor | None = None

    def __len__(self) -> int:
        return len(self.value)

    def rows(self, chosen: Any) -> LabelTable:
        """The table of some rows: their numbers, or a mask."""
        index = torch.as_tensor(chosen)
        picked: dict[str, Any] = {name: getattr(self, name) for name in PARTS}
        return replace(self, **{name: None if part is None else part[index] for name, part in picked.items()})


def labels_folder(
    problem: Problem, labels: LabelSettings, folder: Path | str | None = None, points: GivenPoints | None = None
) -> Path:
    """Where the labels of these settings lie: `labels-HASH` in `folder`, or in that of the settings."""
    return (
        Path(labels.folder if folder is None else folder) / f"labels-{_hash(problem, _fitting(labels, points), points)}"
    )


def make_labels(
    problem: Problem,
    labels: LabelSettings,
    folder: Path | str | None = None,
    shards: Iterable[int] | None = None,
    workers: int | None = None,
    points: GivenPoints | None = None,
) -> list[Path]:
    """Make what is missing of the labels; what is there is checked and kept.

    It may be killed at any moment: a file is whole or not there, and the next call makes the rest.

    Args:
        problem: what is labelled.
        labels: how.
        folder: where `labels-HASH` is, or is made; None takes that of the settings.
        shards: numbers of the shards to be made, so that machines which share a folder can split the work; None: all.
        workers: processes, which do not change the labels; None: as many as there are cores, where that pays.
        points: where, if not at the points of a Sobol sequence; their number replaces `n_points` and the numbers of
            strikes and expiries.

    Returns:
        The files of the shards asked for.

    Raises:
        ConfigError: the problem cannot be labelled so, or a shard that does not exist.
        DataError: a file of other labels lies in the folder.
        UserError: a law cannot be priced, or a process that makes labels died.
    """
    labels = _fitting(labels, points).checked(problem)
    if workers is not None and workers < 1:
        raise ConfigError(f"`workers` must be 1 or more, got {workers}")
    place, expected = labels_folder(problem, labels, folder, points), _hash(problem, labels, points)
    numbers = _numbers(labels, shards)
    place.mkdir(parents=True, exist_ok=True)
    write_settings(place, problem, labels, points)
    missing = [number for number in numbers if not _is_made(place, number, expected)]
    alone = own_kinds(problem)
    if workers is not None and workers > 1 and alone:
        raise ConfigError(f"`{alone}` is known to this process only, for it is none of `pricers`: use workers=1")
    if workers is None and not alone and labels.device == "cpu":
        # processes start in seconds: the first shard tells whether they pay
        missing, seconds = missing[1:], _timed(problem, labels, place, missing[:1], points)
        workers = min(n_cores(), len(missing)) if seconds * len(missing) > WORTH_PROCESSES else 1
    if workers is not None and workers > 1 and missing:
        make_by_processes(place, missing, min(workers, len(missing)))
    else:
        _timed(problem, labels, place, missing, points)
    return [shard_path(place, number) for number in numbers]


def _timed(
    problem: Problem, labels: LabelSettings, place: Path, numbers: list[int], points: GivenPoints | None
) -> float:
    """Make shards in this process; the seconds it took."""
    start = time.perf_counter()
    with one_thread():
        for number in numbers:
            make_file(problem, labels, place, number, points)
    return time.perf_counter() - start


def make_file(
    problem: Problem, labels: LabelSettings, place: Path, number: int, points: GivenPoints | None = None
) -> None:
    """Make one shard and write its file.

    Raises:
        UserError: a law cannot be priced, in the words of the pricer.
    """
    try:
        shard = make_shard(problem, labels, number, points)
    except UserError:
        raise
    except ValueError as error:  # what `pricers` refuses
        raise UserError(f"shard {number} of {place} cannot be made: {error}") from error
    write_shard(shard, shard_path(place, number))


def _fitting(labels: LabelSettings, points: GivenPoints | None) -> LabelSettings:
    if points is None:
        return labels
    n_laws, n_strikes = points.points.strikes.shape
    return replace(labels, n_points=n_laws, strikes_per_law=max(1, n_strikes), expiries_per_law=1)


def _hash(problem: Problem, labels: LabelSettings, points: GivenPoints | None) -> str:
    return labels.hash(problem, "" if points is None else points.hash)


def write_settings(place: Path, problem: Problem, labels: LabelSettings, points: GivenPoints | None) -> None:
    """What a worker, or a person, needs to know of the labels of a folder."""
    settings = {"problem": to_dict(problem), "labels": to_dict(labels) | {"folder": ""}}
    replace_text(place / SETTINGS, json.dumps(settings, indent=1))
    if points is not None:
        points.save(place / POINTS)


def read_settings(place: Path) -> tuple[Problem, LabelSettings, GivenPoints | None]:
    """What `write_settings` wrote.

    Raises:
        DataError: there is nothing, or something else.
    """
    try:
        settings = json.loads((place / SETTINGS).read_text(encoding="utf-8"))
        problem, labels = build(Problem, settings["problem"]), build(LabelSettings, settings["labels"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{place / SETTINGS} does not say how labels are made: {error}") from error
    points = GivenPoints.load(place / POINTS) if (place / POINTS).exists() else None
    return problem, labels, points


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


def make_shard(problem: Problem, labels: LabelSettings, number: int, given: GivenPoints | None = None) -> Shard:
    """The labels of one shard: a pure function of problem, settings, points and number."""
    start, stop = labels.laws(number)
    if given is None:
        points = sobol_points(
            problem,
            start,
            stop,
            labels.seed,
            strikes_per_law=labels.strikes(problem),
            expiries_per_law=labels.expiries_per_law,
        )
    else:
        points = given.points.part(start, stop)
    about: dict[str, Any] = {"hash": _hash(problem, labels, given), "shard": number, "laws": [start, stop]}
    about |= {} if given is None else {"points": given.hash, "round": given.round, "parent": given.parent}
    weight = None if given is None else given.weight[start:stop].reshape(-1)
    return labelled(problem, labels, points, about, weight)


def labelled(
    problem: Problem, labels: LabelSettings, points: Points, about: dict[str, Any], weight: Tensor | None = None
) -> Shard:
    """The labels of points, with their provenance."""
    spots = placed(problem, points, torch.device(labels.device))
    shape = spots.missing.shape
    inputs = torch.stack([column.expand(shape) for column in spots.columns.values()], dim=-1)
    law = spots.law.unsqueeze(-1).expand(shape)
    if labels.engine.simulated:
        made = _simulated(problem, labels, inputs.reshape(-1, inputs.shape[-1]), law.reshape(-1), about)
    else:
        made = _exact(problem, labels, spots.columns, shape)
    value, std_error, gradient, gradient_std_error, faults, note = made
    left_out: dict[str, int] = {}
    kept = torch.ones(shape.numel(), dtype=torch.bool, device=inputs.device)
    faults = {NO_STRIKE: spots.missing.reshape(-1), **faults, **_not_finite(value, std_error, gradient)}
    for reason, mask in faults.items():
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
        weight=column(torch.ones_like(value) if weight is None else weight.to(value)),
        about=about,
    )


def _not_finite(value: Tensor, std_error: Tensor, gradient: Tensor | None) -> dict[str, Tensor]:
    found = {NO_VALUE: ~(value.isfinite() & std_error.isfinite())}
    return found if gradient is None else found | {NO_GRADIENT: ~gradient.isfinite().all(dim=-1)}


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
    return value, torch.zeros_like(value), gradient, None, faults, found.note


def _simulated(problem: Problem, labels: LabelSettings, inputs: Tensor, law: Tensor, about: dict[str, Any]) -> Any:
    from qfml.surrogate.simulated_labels import simulated_labels  # loaded where labels are simulated

    engine: Any = labels.engine
    per_law = labels.strikes(problem) * labels.expiries_per_law
    made = simulated_labels(
        problem,
        inputs,
        engine.n_paths,
        engine.n_steps,
        address(labels.seed, "label noise", about.get("points", "")),
        labels.gradients,
        first_row=about["laws"][0] * per_law,
        law=law,
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
        alike = all(shard.about[key] == first[key] for key in ("hash", "inputs"))
        if not alike or path != shard_path(place, shard.about["shard"]):
            raise DataError(
                f"{path} holds shard {shard.about['shard']} of the labels {shard.about['hash']}, beside those of "
                f"{first['hash']} with the inputs {', '.join(first['inputs'])}: move it away"
            )
    problem = build(Problem, first["problem"])
    if list(problem.inputs) != first["inputs"]:
        raise DataError(f"{place}: the box is that of {', '.join(problem.inputs)}, not of {', '.join(first['inputs'])}")
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
    parts: dict[str, Any] = {name: _joined([getattr(shard, name) for shard in shards]) for name in PARTS}
    parts["weight"] = parts["weight"] if "points" in first else None
    return LabelTable(tuple(first["inputs"]), **parts, problem=problem, hash=first["hash"], left_out=left_out)


def _joined(parts: Sequence[np.ndarray | None]) -> Any:
    arrays = [part for part in parts if part is not None]
    return torch.from_numpy(np.concatenate(arrays)) if arrays else None


def join_labels(tables: Sequence[LabelTable]) -> LabelTable:
    """The rows of several tables of one problem, such as those of rounds of refinement.

    Raises:
        DataError: no table, several problems, or gradients in some only.
    """
    if not tables:
        raise DataError("`tables` must hold at least one table of labels, got none")
    first = tables[0]
    for table in tables[1:]:
        if table.problem != first.problem or table.names != first.names:  # equal boxes may differ in their order
            raise DataError(
                f"the labels {first.hash} and {table.hash} are of two problems: they have no common network"
            )
    parts: dict[str, Any] = {}
    for name in PARTS:
        columns = [getattr(table, name) for table in tables]
        if name == "weight" and any(column is not None for column in columns):
            columns = [torch.ones_like(t.value) if t.weight is None else t.weight for t in tables]
        if any(column is None for column in columns) and not all(column is None for column in columns):
            raise DataError(
                f"some of the tables have no `{name}`: make all labels with the same `gradients` and engine"
            )
        parts[name] = None if columns[0] is None else torch.cat(columns)
    left_out = {reason: 0 for table in tables for reason in table.left_out}
    for table in tables:
        for reason, count in table.left_out.items():
            left_out[reason] += count
    joint = tables[0].hash if len(tables) == 1 else config_hash([table.hash for table in tables])
    return LabelTable(first.names, **parts, problem=first.problem, hash=joint, left_out=left_out)


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
