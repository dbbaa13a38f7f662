"""The task `surrogate`: labels, networks that learn them, refinement, and a judgement on fresh points."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch

from qfml import config
from qfml.config import Section
from qfml.engine import Callback
from qfml.engine.provenance import provenance
from qfml.errors import ConfigError
from qfml.report.formats import model_name
from qfml.surrogate import LabelSettings, LabelTable, Problem, Surrogate, SurrogateTraining
from qfml.surrogate.fitting import check_training, fit_surrogate
from qfml.surrogate.judgement import JudgementSettings, judge
from qfml.surrogate.labels import join_labels, labels_folder, make_labels, read_labels
from qfml.surrogate.refinement import refined_points
from qfml.surrogate.shards import shard_path
from qfml.task.base import Say, as_settings, check_device, write_metrics
from qfml.task.begun import INPUTS, begun_in, claimed

MODEL = "surrogate"  # folder of the trained surrogate in that of the run
ROUNDS = "rounds"  # folder of what each round has trained, with the hash of what it was trained by


@dataclass(frozen=True)
class RefinementConfig:
    """Further labels where the first networks err, and a second training on all of them.

    Args:
        n_points: laws of each round.
        rounds: of labels and training; each begins from the labels of all rounds before.
        weighted: weight the new points so that the loss stays that of the whole box; else it looks where the error is.
    """

    n_points: int
    rounds: int = 1
    weighted: bool = False

    def __post_init__(self) -> None:
        for name in ("n_points", "rounds"):
            if getattr(self, name) < 1:
                raise ConfigError(f"`{name}` must be 1 or more, got {getattr(self, name)}")


@dataclass(frozen=True)
class SurrogateTask:
    """A surrogate pricer: the root of a config with `task: surrogate`.

    Args:
        problem: what is learned: model, instrument, market, and the box in which they vary.
        labels: how many points are labelled, by which engine, and where the files go.
        training: network, loss and trainer.
        judgement: how it is judged on fresh points.
        refinement: further labels where it errs.
        workers: processes that make labels; None takes a process for each core.
        name: names the run folder.
    """

    task: ClassVar[str] = "surrogate"
    problem: Annotated[Problem, Section(Problem)]
    labels: Annotated[LabelSettings, Section(LabelSettings)]
    training: Annotated[SurrogateTraining, Section(SurrogateTraining)] = SurrogateTraining()  # noqa: RUF009  (frozen)
    judgement: Annotated[JudgementSettings, Section(JudgementSettings)] = JudgementSettings()  # noqa: RUF009  (frozen)
    refinement: Annotated[RefinementConfig, Section(RefinementConfig)] | None = None
    workers: int | None = None
    name: str = "surrogate"

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise ConfigError(f"`workers` must be 1 or more, got {self.workers}")
        self.labels.checked(self.problem)
        self._check_judgement()
        if self.training.twin is not None and not self.labels.gradients:
            raise ConfigError(
                f"`training.twin: {self.training.twin:g}` learns from derivatives: set `labels.gradients: true`, or "
                "leave it out"
            )
        check_training(self.problem, self.training, self.labels.engine.simulated)

    def _check_judgement(self) -> None:
        """Refuse what would fail only after hours of labels and training."""
        own = self.judgement
        least = math.ceil(own.level / (1 - own.level) - 1e-9)
        if own.n_calibration < least:
            raise ConfigError(
                f"`judgement.n_calibration` must be {least:,} or more for a bound at `judgement.level: {own.level:g}`, "
                f"got {own.n_calibration:,}: raise it, or take a lower level"
            )
        try:
            LabelSettings(n_points=own.n_points, seed=own.seed, engine=own.engine, strikes_per_law=1).checked(
                self.problem
            )
        except ConfigError as error:
            raise ConfigError(f"`judgement` cannot label fresh points: {error}") from None

    def execute(self, folder: Path, *, resume: bool, callbacks: Sequence[Callback], say: Say) -> None:
        """Make labels, train, judge, and write everything but the report into `folder`."""
        begin = time.perf_counter()
        check_device(self.training.trainer.device)
        resumed = self._claim(folder)
        seconds = {"labels": 0.0, "training": 0.0}
        surrogate: Surrogate | None = None
        table: LabelTable | None = None
        rounds = 1 if self.refinement is None else 1 + self.refinement.rounds
        for number in range(rounds):
            start = time.perf_counter()
            more = self._labels(number, surrogate, table, say)
            table = more if table is None else join_labels([table, more])
            seconds["labels"] += time.perf_counter() - start
            start = time.perf_counter()
            surrogate = self._trained(folder, number, table, callbacks)
            seconds["training"] += time.perf_counter() - start
            say(f"trained on {len(table):,} labels: {_validation(surrogate)}")
        assert surrogate is not None and table is not None  # noqa: PT018  (there is one round at least)
        start = time.perf_counter()
        judgement = judge(surrogate, self.judgement)
        seconds["judgement"] = time.perf_counter() - start
        seconds["total"] = time.perf_counter() - begin
        if resumed:  # what was done before the kill has left no time
            seconds = {name if name == "judgement" else f"{name}_since_resume": s for name, s in seconds.items()}
        judgement.save(folder)
        shutil.rmtree(folder / MODEL, ignore_errors=True)
        judgement.surrogate.save(folder / MODEL)
        settings = as_settings(self)
        config_hash = config.config_hash(settings)
        made = provenance(
            seeds=[self.labels.seed, self.training.seed, self.judgement.seed],
            data_hash=table.hash,
            config_hash=config_hash,
            threads=torch.get_num_threads(),
        )
        metrics = {
            "task": self.task,
            "name": self.name,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "hash": judgement.surrogate.hash,
            "labels": self._described(table),
            "training": _training(surrogate),
            "judgement": judgement.metrics,
            "data_hash": table.hash,
            "config_hash": config_hash,
            "versions": made["versions"],
            "provenance": made,
            "seconds": seconds,
        }
        write_metrics(folder, metrics)

    def _claim(self, folder: Path) -> bool:
        """Note what the rounds are trained by; whether it was noted before.

        Raises:
            ConfigError: an earlier attempt has trained by something else, or its labels are not to be seen from here.
        """
        settings = {name: value for name, value in config.to_dict(self).items() if name in ("training", "refinement")}
        own = config.config_hash(settings | {"labels": self.labels.hash(self.problem)})
        rounds = folder / ROUNDS
        if begun_in(folder) is None and any(rounds.glob("surrogate-*")):
            raise ConfigError(f"{rounds} holds networks and {folder / INPUTS} is gone: start a new run")
        try:
            resumed = claimed(folder, {"training": own})
        except ConfigError:
            raise ConfigError(
                f"`problem`, `labels`, `training` or `refinement` in {folder / 'config.yaml'} was changed since the "
                "networks there were begun: restore the config, or start a new run with it"
            ) from None
        self._check_labels_in_sight(begun_in(folder))
        rounds.mkdir(exist_ok=True)
        return resumed

    def _check_labels_in_sight(self, begun: str | None) -> None:
        """Refuse to make all labels again because a relative `labels.folder` means another one here."""
        here = labels_folder(self.problem, self.labels)
        if begun is not None and not here.exists() and (there := Path(begun) / here).exists():
            raise ConfigError(
                f"`labels.folder: {self.labels.folder}` is that seen from {begun}, where the run was begun and "
                f"{there} holds its labels: resume it from there"
            )

    def _title(self) -> str:
        """What is learned, in words."""
        instrument = model_name(self.problem.instrument["kind"])
        article = "an" if instrument[0].lower() in "aio" else "a"  # a European one
        target = self.problem.target.replace("_", " ").capitalize()
        return f"{target} of {article} {instrument} contract under {model_name(self.problem.model['kind'])}"

    def _labels(self, number: int, surrogate: Surrogate | None, table: LabelTable | None, say: Say) -> LabelTable:
        """The labels of one round: of a Sobol sequence, then where the surrogate errs on what it learned from."""
        points, settings = None, self.labels
        if number:
            assert surrogate is not None and table is not None and self.refinement is not None  # noqa: PT018
            with torch.no_grad():
                value, _ = surrogate.unchecked(table.inputs)
            error = (value.double() - table.value).abs()
            points = refined_points(
                self.problem,
                error,
                table.inputs,
                self.refinement.n_points,
                self.labels.seed,
                value=table.value if self.problem.target == "implied_vol" else None,
                strikes_per_law=self.labels.strikes(self.problem),
                round_number=number,
                std_error=table.std_error,
                parent=surrogate.hash,
            )
            settings = replace(self.labels, n_points=self.refinement.n_points)
        start = time.perf_counter()
        make_labels(self.problem, settings, workers=self.workers, points=points)
        made = read_labels(labels_folder(self.problem, settings, points=points))
        took = time.perf_counter() - start
        what = "further labels where the error is" if number else "labels"
        say(f"{len(made):,} {what} in {took:.1f} s ({labels_folder(self.problem, settings, points=points)})")
        for reason, count in made.left_out.items():
            say(f"{count:,} points without a label: {reason}")
        if number and self.refinement is not None and not self.refinement.weighted:
            made = replace(made, weight=None)
        return made

    def _trained(self, folder: Path, number: int, table: LabelTable, callbacks: Sequence[Callback]) -> Surrogate:
        """The surrogate of one round; a round that was trained before a kill is read."""
        done = folder / ROUNDS / f"surrogate-{number}"
        if done.exists():
            return Surrogate.load(done)
        place = folder / "checkpoints" / f"round-{number}"
        begun = place.is_dir() and any(place.glob("checkpoint-*"))
        surrogate = fit_surrogate(
            self.problem,
            table,
            self.training,
            callbacks=callbacks,
            checkpoint_dir=place,
            resume=begun,
        )
        surrogate.save(done)
        return surrogate

    def _described(self, table: LabelTable) -> dict[str, Any]:
        """What was learned from."""
        noise = float(table.std_error.square().mean().sqrt())
        return {
            "problem": self._title(),
            "n_labels": len(table),
            "n_laws": int(table.law.unique().numel()),
            "engine": config.to_dict(self.labels.engine),
            "gradients": table.gradient is not None,
            "std_error_rms": noise,
            "left_out": dict(table.left_out),
            "folder": labels_folder(self.problem, self.labels).name,
            "inputs": list(self.problem.inputs),
            "units": self.problem.units,
        }


def make_part(path: str | Path, part: str, overrides: Iterable[str] = (), *, say: Say = print) -> Path:
    """Make one part of the labels of a config, such as "2/4": every fourth shard from the second on.

    Args:
        path: the config of a surrogate.
        part: number and count of the parts.
        overrides: assignments such as "labels.n_points=1000".
        say: told what happens.

    Returns:
        The folder of the labels, which all parts share.

    Raises:
        UserError: another task, or a part that is none.
    """
    settings = config.override(config.read_yaml(path), overrides)
    if settings.get("task") != SurrogateTask.task:
        raise ConfigError(f"labels are made for `task: surrogate`, got {settings.get('task')!r}")
    task = config.build(SurrogateTask, {key: value for key, value in settings.items() if key != "task"})
    number, slash, count = part.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise ConfigError(f"`part` must be a number and how many there are, such as 2/4, got {part!r}")
    own = range(int(number) - 1, task.labels.n_shards, int(count))
    start = time.perf_counter()
    make_labels(task.problem, task.labels, shards=own, workers=task.workers)
    folder = labels_folder(task.problem, task.labels)
    there = sum(shard_path(folder, shard).exists() for shard in range(task.labels.n_shards))
    say(
        f"part {part}: its {len(own)} shards took {time.perf_counter() - start:.1f} s; {there} of all "
        f"{task.labels.n_shards} are there"
    )
    return folder


def _validation(surrogate: Surrogate) -> str:
    """The error on the laws that were held out, as it is said."""
    rmse = surrogate.report["validation_rmse"]
    vol = surrogate.problem.target == "implied_vol"
    shown = ", ".join(f"{1e4 * value:.2f}" for value in rmse)
    return f"rms error on held-out laws {shown} bps of {'vol' if vol else 'spot'} (a number a seed)"


def _training(surrogate: Surrogate) -> dict[str, Any]:
    report = {name: value for name, value in surrogate.report.items() if name != "history"}
    return report | {"network": config.to_dict(surrogate.network), "n_networks": len(surrogate.fits)}
