"""The study: every trial in an Optuna storage on disk, which a kill at any moment leaves whole."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from qfml.errors import UserError
from qfml.tune.search import Search, seed_of
from qfml.tune.space import Space, Value

__all__ = ["Asked", "Study", "Told"]

NAME = "tune"
_SECONDS = 1.0  # after which reported values are in the file


@dataclass(frozen=True, eq=False)
class Asked:
    """A trial that is to be trained: its place among all trials, its parameters, and Optuna's handle of it."""

    place: int
    params: dict[str, Value]
    handle: Any


@dataclass(frozen=True)
class Told:
    """A trial that is over.

    Attributes:
        place: its place among all trials, from 0; it keeps it when it is asked again after a kill.
        number: its number in the storage.
        params: its parameters, as the storage has them.
        value: the objective; None if no epoch of some member had one.
        curve: the objective after each epoch, from the first.
        epochs: epochs that each of its members was trained for.
        pruned: whether successive halving dropped it.
    """

    place: int
    number: int
    params: dict[str, Value]
    value: float | None
    curve: tuple[float, ...]
    epochs: tuple[int, ...]
    pruned: bool


class Study:
    """A study in the SQLite file `path`, made or continued; optuna-dashboard reads it.

    Values are given and returned so that smaller is better if `mode` is "min", larger if it is "max". Trials that
    were in training when an earlier process was killed are asked again first, in their old places.

    Args:
        path: the file.
        spaces: what is searched, by path.
        search: how.
        mode: "min" or "max".
        seed: of the search.

    Attributes:
        n_places: how many different trials were asked, whatever became of them.
    """

    def __init__(self, path: Path, spaces: Mapping[str, Space], search: Search, *, mode: str, seed: int) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.spaces, self.search, self.seed, self.sign = spaces, search, seed, 1.0 if mode == "min" else -1.0
        self.distributions = {name: space.distribution() for name, space in spaces.items()}
        self.storage = _storage(path)
        self.study = optuna.create_study(
            storage=self.storage,
            study_name=NAME,
            direction="minimize" if mode == "min" else "maximize",
            load_if_exists=True,
            sampler=search.sampler(seed),
        )
        self.states = optuna.trial.TrialState
        self._reported: list[tuple[int, int, float]] = []  # the trial's key, epoch, value
        self._values, self._written = _values_table(self.storage), monotonic()
        self._again = self._interrupted()
        self.n_places = 1 + max((place for place in map(_place, self._trials()) if place is not None), default=-1)

    def claim(self, fingerprint: str) -> None:
        """Note what the study was begun with.

        Args:
            fingerprint: a hash of all that its trials have in common.

        Raises:
            UserError: it was begun with something else, with which its trials could not be compared.
        """
        known = self.study.user_attrs.get("fingerprint")
        if known is None:
            self.study.set_user_attr("fingerprint", fingerprint)
        elif known != fingerprint:
            raise UserError(
                "the search was begun with other data or settings, so that its trials cannot be compared with further "
                "ones: resume it with those it was begun with, or search in a new folder"
            )

    def close(self) -> None:
        """Close the file."""
        self._write()
        self.storage.remove_session()
        self.storage.engine.dispose()

    @property
    def seconds(self) -> float:
        """The time that was noted last, whichever process did; 0 at first."""
        return float(self.study.user_attrs.get("seconds", 0.0))

    def note_seconds(self, seconds: float) -> None:
        """Keep how much time the study has used so far."""
        self.study.set_user_attr("seconds", seconds)

    @property
    def n_again(self) -> int:
        """How many trials of an earlier process wait to be asked again."""
        return len(self._again)

    def ask(self, n_trials: int) -> Asked | None:
        """The next trial: one to be trained again, else a new one while there are fewer than `n_trials`."""
        if self._again:
            place, params = self._again.pop(0)
        else:
            place = self.n_places
            if place >= n_trials:
                return None
            params = self.search.point(self.spaces, place) or {}
        self.study.sampler = self.search.sampler(seed_of(self.seed, place))
        self.study.enqueue_trial(params, user_attrs={"place": place})  # its place is written before it is drawn
        trial = self.study.ask(self.distributions)
        self.n_places = max(self.n_places, place + 1)
        return Asked(place, dict(trial.params), trial)

    def report(self, asked: Asked, epoch: int, value: float) -> None:
        """The objective of a trial after an epoch, which counts from 1; it is in the file a second later."""
        self._reported.append((asked.handle._trial_id, epoch, value))  # pyright: ignore[reportPrivateUsage]
        if monotonic() - self._written > _SECONDS:
            self._write()

    def _write(self) -> None:
        """Write what was reported in one transaction: Optuna's own way has one, and three queries, for each value."""
        rows = [{"trial_id": trial, "step": epoch} | _stored(value) for trial, epoch, value in self._reported]
        if rows:
            with self.storage.engine.begin() as connection:
                connection.execute(self._values.insert(), rows)
        self._reported, self._written = [], monotonic()

    def tell(self, asked: Asked, value: float, epochs: Sequence[int], *, pruned: bool) -> None:
        """A trial is over; that of a pruned one is the value that was reported last."""
        self._write()
        asked.handle.set_user_attr("epochs", list(epochs))
        if pruned:
            self.study.tell(asked.handle, state=self.states.PRUNED)
        else:
            self.study.tell(asked.handle, value)

    def refuse(self, asked: Asked, why: str) -> None:
        """A trial cannot be trained, and is not asked again."""
        asked.handle.set_user_attr("refused", why)
        self.study.tell(asked.handle, state=self.states.FAIL)

    def told(self) -> list[Told]:
        """The trials that are over, by place."""
        over = (self.states.COMPLETE, self.states.PRUNED)
        found = [self._told(trial) for trial in self._trials() if trial.state in over]
        return sorted(found, key=lambda each: each.place)

    def best(self) -> Told | None:
        """The best of the trials that were trained to the end; the earlier one wins a tie."""
        ended = [each for each in self.told() if not each.pruned and each.value is not None]
        return min(ended, key=lambda each: (self.sign * (each.value or 0.0), each.place), default=None)

    def importance(self) -> dict[str, float] | None:
        """Share of the objective's variance that each parameter explains; None with too few trials to tell.

        References:
            Hutter, Hoos and Leyton-Brown (2014), An efficient approach for assessing hyperparameter importance.
        """
        from optuna.importance import FanovaImportanceEvaluator, get_param_importances

        values = {each.value for each in self.told() if not each.pruned and each.value is not None}
        if len(values) < 4:
            return None
        return dict(get_param_importances(self.study, evaluator=FanovaImportanceEvaluator(seed=self.seed)))

    def _trials(self) -> list[Any]:
        self._write()
        return self.study.get_trials(deepcopy=False)

    def _told(self, trial: Any) -> Told:
        curve = tuple(trial.intermediate_values[epoch] for epoch in sorted(trial.intermediate_values))
        value = trial.value if trial.value is not None and math.isfinite(trial.value) else None
        pruned = trial.state == self.states.PRUNED
        epochs = tuple(trial.user_attrs["epochs"])
        return Told(trial.user_attrs["place"], trial.number, dict(trial.params), value, curve, epochs, pruned)

    def _interrupted(self) -> list[tuple[int, dict[str, Value]]]:
        """Close what an earlier process had in training, and note it down to be asked again."""
        for trial in self._trials():
            if trial.state in (self.states.RUNNING, self.states.WAITING):
                # only a running trial can be closed, and asking makes the first that waits a running one
                number = self.study.ask().number if trial.state == self.states.WAITING else trial.number
                self.study.tell(number, state=self.states.FAIL)
        over = {each.place for each in self.told()}
        over |= {_place(trial) for trial in self._trials() if "refused" in trial.user_attrs}
        lost: dict[int, dict[str, Value]] = {}
        for trial in self._trials():
            place = _place(trial)
            if trial.state != self.states.FAIL or place is None or place in over:
                continue
            drawn = trial.params.keys() == self.spaces.keys()  # unless the kill came while it was drawn
            known = dict(trial.params) if drawn else self.search.point(self.spaces, place) or {}
            lost[place] = known or lost.get(place, {})
        return sorted(lost.items())


def _place(trial: Any) -> int | None:
    return trial.user_attrs.get("place")


def _storage(path: Path) -> Any:
    """A write-ahead log and no wait for the disk: a killed process loses nothing, a power cut the last moments."""
    from optuna.storages import RDBStorage
    from sqlalchemy import event

    storage = RDBStorage(f"sqlite:///{path.resolve()}", engine_kwargs={"connect_args": {"timeout": 60}})

    @event.listens_for(storage.engine, "connect")
    def set_mode(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    storage.engine.dispose()  # the connections that were opened before
    return storage


def _values_table(storage: Any) -> Any:
    """Optuna's table of intermediate values, as the file has it."""
    from sqlalchemy import MetaData, Table

    return Table("trial_intermediate_values", MetaData(), autoload_with=storage.engine)


def _stored(value: float) -> dict[str, Any]:
    """A value as Optuna stores it: what is not finite by its name."""
    if math.isfinite(value):
        return {"intermediate_value": value, "intermediate_value_type": "FINITE"}
    name = "NAN" if math.isnan(value) else "INF_POS" if value > 0 else "INF_NEG"
    return {"intermediate_value": None, "intermediate_value_type": name}
