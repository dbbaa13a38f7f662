"""A tour of the training engine: each part in a few lines.

    python examples/engine_tour.py [--only streams,losses]

Everything runs on a small made-up data set: 1,500 days, eight features, a label that is known the day after, and that
two of the features explain in part. Results say what the part does, not how well it predicts.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

import qfml
from qfml.data import TimeDataset
from qfml.engine import finders, overfitting
from qfml.splits import WalkForward

N_DAYS, N_FEATURES = 1500, 8
TRAIN, VAL = np.arange(1000), np.arange(1010, 1500)  # ten days between them: no label of one is known in the other
SMALL = qfml.MLP(hidden=(16, 16))
TRAINER = qfml.Trainer(optimizer=qfml.AdamW(lr=3e-3), max_epochs=8, batch_size=64)


def made_up_data(label: Callable[[np.ndarray, np.random.Generator], np.ndarray]) -> TimeDataset:
    """Features drawn at random, and a label made of them."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((N_DAYS, N_FEATURES))
    day = np.datetime64("2018-01-01") + np.arange(N_DAYS)
    return TimeDataset(X, label(X, rng), time=day, label_end=day + 1)


def noisy(X: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What two of the features explain in part."""
    return np.tanh(X[:, 0] * X[:, 1]) + 0.3 * rng.standard_normal(len(X))


DATA = made_up_data(noisy)
RETURNS = made_up_data(lambda X, rng: 0.01 * noisy(X, rng))
UP_OR_DOWN = made_up_data(lambda X, rng: (noisy(X, rng) > 0).astype(float))
TERCILES = made_up_data(lambda X, rng: np.digitize(noisy(X, rng), [-0.3, 0.3]).astype(float))


def stack() -> None:
    """Folds x seeds x rates as one stack; each member is what it would be alone."""
    folds = list(WalkForward(train_size=600, test_size=200).split(DATA))
    members = [
        qfml.Member(SMALL, train, test, seed=seed, lr=lr, patience=3)
        for train, test in folds
        for seed in (0, 1)
        for lr in (1e-3, 1e-2)
    ]
    fits = TRAINER.fit_many(members, qfml.MSE(), DATA)
    (alone,) = TRAINER.fit_many(members[5:6], qfml.MSE(), DATA)
    print(f"{len(fits)} networks; number 5 alone is the same to the last bit:", end=" ")
    print(bool(torch.equal(alone.parameters, fits[5].parameters)))


def step() -> None:
    """Schedules, clipping, averaged weights, parameter groups, formats of numbers, micro-batches."""
    trainer = replace(
        TRAINER,
        schedule=qfml.engine.Warmup(10, then=qfml.engine.Cosine()),
        clip_norm=1.0,
        averaging=qfml.engine.EMA(decay=0.95),
        parameter_groups=(qfml.ParameterGroup("*bias*", weight_decay_factor=0.0),),
        precision="bf16",
        micro_batch_size=32,
        log_every=10,
    )
    rates: list[float] = []

    class Rates(qfml.Callback):
        def log(self, member: int, step: int, values: dict[str, float]) -> None:
            rates.append(values["lr"])

    fit = trainer.fit(SMALL, qfml.MSE(), DATA, train=TRAIN, val=VAL, callbacks=[Rates()])
    print("learning rates, every tenth step:", " ".join(f"{rate:.1e}" for rate in rates))
    print(f"validation loss {fit.best_val_loss:.4f} in epoch {fit.best_epoch}")


def losses() -> None:
    """Losses of a row, of several outputs, and of the whole sample."""
    everything = replace(TRAINER, batch_size=None, micro_batch_size=256, max_epochs=20)
    for loss, ds, trainer in (
        (qfml.Huber(delta=0.5), DATA, TRAINER),
        (qfml.Quantiles(levels=(0.1, 0.5, 0.9)), DATA, TRAINER),
        (qfml.Focal(gamma=2.0), UP_OR_DOWN, TRAINER),
        (qfml.CrossEntropy(n_classes=3), TERCILES, TRAINER),
        (qfml.NegativeSharpe(cost_bps=1.0), RETURNS, everything),
        (qfml.ExpectedShortfall(cost_bps=1.0, tail=0.1), RETURNS, everything),
    ):
        fit = trainer.fit(SMALL, loss, ds, train=TRAIN, val=VAL)
        last = np.array2string(fit.predict(ds, VAL[-1:])[0], precision=4)
        print(
            f"{loss.kind:20s} validation {fit.best_val_loss:9.4f}   prediction of the last day ({loss.predicts}) {last}"
        )


def optimizers() -> None:
    """Each optimizer stacked; one of torch.optim and a module of one's own, too."""
    for kind, optimizer in qfml.engine.OPTIMIZERS.items():
        if kind == "lbfgs":
            trainer = replace(TRAINER, optimizer=optimizer(), batch_size=None)
        elif kind == "torch":
            trainer = replace(TRAINER, optimizer=optimizer(lambda parameters: torch.optim.NAdam(parameters, lr=3e-3)))
        else:
            trainer = replace(TRAINER, optimizer=optimizer(lr=3e-3))
        fit = trainer.fit(SMALL, qfml.MSE(), DATA, train=TRAIN, val=VAL)
        print(f"{kind:10s} {fit.best_val_loss:.4f}", end="   ")
    own = TRAINER.fit(
        lambda: nn.Sequential(nn.Linear(N_FEATURES, 16), nn.Tanh(), nn.Linear(16, 1)),
        qfml.MSE(),
        DATA,
        train=TRAIN,
        val=VAL,
    )
    print(f"\na module of one's own {own.best_val_loss:.4f}")


def control() -> None:
    """Early stop on any metric, a callback that stops members, new ones in their place."""
    trainer = replace(TRAINER, metrics=("rank_ic",), monitor="val_rank_ic", mode="max", patience=2, max_epochs=12)
    waiting = [qfml.Member(SMALL, TRAIN, VAL, seed=seed) for seed in (7, 8)]

    class Weak(qfml.Callback):
        def epoch(self, member: int, record: dict[str, Any], stopped: bool) -> bool:
            return record["epoch"] == 2 and record["val_rank_ic"] < 0.2

    members = [qfml.Member(SMALL, TRAIN, VAL, seed=seed) for seed in range(4)]
    fits = trainer.fit_many(
        members,
        qfml.MSE(),
        DATA,
        callbacks=[Weak()],
        refill=lambda places: [waiting.pop() for _ in range(min(places, len(waiting)))],
    )
    for place, fit in enumerate(fits):
        best = fit.history[fit.best_epoch - 1]["val_rank_ic"]
        print(f"member {place}: {fit.status} after {fit.n_epochs} epochs, best rank IC {best:.3f}")


def checkpoints() -> None:
    """A run that is stopped and resumed; one member out of the stack's file."""
    from qfml.engine.saving import load_member

    with tempfile.TemporaryDirectory() as folder:
        members = [qfml.Member(SMALL, TRAIN, VAL, seed=seed) for seed in range(3)]
        fits = TRAINER.fit_many(members, qfml.MSE(), DATA, checkpoint_dir=folder)
        again = TRAINER.fit_many(members, qfml.MSE(), DATA, checkpoint_dir=folder, resume=True)
        print("resumed at its end, same bits:", bool(torch.equal(fits[2].parameters, again[2].parameters)))
        print("member 2 in the file:", {name: tuple(value.shape) for name, value in load_member(folder, 2).items()})


def search() -> None:
    """Learning-rate range test and largest batch."""
    rates = finders.find_lr(TRAINER, SMALL, qfml.MSE(), DATA, TRAIN, n_steps=40)
    print(f"learning rate suggested: {rates.suggestion}")
    sizes = finders.find_batch_size(TRAINER, SMALL, qfml.MSE(), DATA, TRAIN, memory_bytes=2**20, n_steps=3)
    print(f"largest batch within 1 MiB: {sizes.largest}")


def overfit() -> None:
    """Gap between training and validation, uncertainty of an ensemble and of dropout."""
    long = replace(TRAINER, max_epochs=40)
    network = qfml.MLP(hidden=(32, 32), dropout=0.2)
    fits = long.fit_many([qfml.Member(network, TRAIN, VAL, seed=seed) for seed in range(4)], qfml.MSE(), DATA)
    gap = overfitting.train_validation_gap(fits[0].history)
    print(f"gap at the end {gap.final:.4f}; opened in epoch {gap.opened_at}")
    for name, found in (
        ("four seeds", overfitting.ensemble(fits, DATA, VAL)),
        ("dropout", overfitting.mc_dropout(fits[0], DATA, VAL, n_draws=50)),
    ):
        print(f"standard deviation between predictions, {name}: {float(np.sqrt(found.epistemic.mean())):.4f}")


def scikit_learn() -> None:
    """The engine in a pipeline."""
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from qfml.engine.sklearn import NeuralRegressor

    X, y = DATA.features.numpy(), DATA.y.numpy()
    model = make_pipeline(StandardScaler(), NeuralRegressor(network=SMALL, trainer=TRAINER))
    grid = GridSearchCV(model, {"neuralregressor__trainer__optimizer__lr": [1e-3, 1e-2]}, cv=2).fit(X, y)
    print("best:", grid.best_params_, f"R2 {grid.best_score_:.3f}")


PARTS: dict[str, Callable[[], None]] = {
    part.__name__: part
    for part in (stack, step, losses, optimizers, control, checkpoints, search, overfit, scikit_learn)
}


def main(words: list[str] | None = None) -> None:
    """Run the parts that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help=f"parts, by commas: {', '.join(PARTS)}")
    chosen = parser.parse_args(words).only
    for name in PARTS if chosen is None else chosen.split(","):
        if name not in PARTS:
            parser.error(f"no part {name!r}; there are {', '.join(PARTS)}")
        print(f"\n--- {name}: {PARTS[name].__doc__}")
        begin = time.perf_counter()
        PARTS[name]()
        print(f"({time.perf_counter() - begin:.1f} s)")


if __name__ == "__main__":
    main()
