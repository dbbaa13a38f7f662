"""A tour of the training engine: each part in a few lines.

    python examples/engine_tour.py [--only streams,losses]

Everything runs on a small made-up data set: 1,500 days, eight features, a label that is known the day after, and that
two of the features explain in part. Results say what the part does, not how well it predicts.
"""

from __future__ import annotations

import argparse
import signal
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import qfml
from qfml.data import StreamingTimeDataset, TimeDataset, write_shards
from qfml.engine import StreamMember, finders, overfitting
from qfml.engine.checkpoint import read_manifest
from qfml.engine.tracking import Csv, JsonLines, Tracker
from qfml.errors import Interrupted, UserError
from qfml.splits import PurgedKFold, WalkForward

N_DAYS, N_FEATURES = 1500, 8
TRAIN, VAL = np.arange(1000), np.arange(1010, 1500)  # ten days between them: no label of one is known in the other
SMALL = qfml.MLP(hidden=(16, 16))
TRAINER = qfml.Trainer(optimizer=qfml.AdamW(lr=3e-3), max_epochs=8, batch_size=64)


def made_up_data(label: Callable[[np.ndarray, np.random.Generator], np.ndarray], **more: Any) -> TimeDataset:
    """Features drawn at random, and a label made of them."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((N_DAYS, N_FEATURES))
    day = np.datetime64("2018-01-01") + np.arange(N_DAYS)
    return TimeDataset(X, label(X, rng), time=day, label_end=day + 1, **more)


def noisy(X: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What two of the features explain in part."""
    return np.tanh(X[:, 0] * X[:, 1]) + 0.3 * rng.standard_normal(len(X))


DATA = made_up_data(noisy)
RETURNS = made_up_data(lambda X, rng: 0.01 * noisy(X, rng))
UP_OR_DOWN = made_up_data(lambda X, rng: (noisy(X, rng) > 0).astype(float), weight=np.linspace(0.5, 1.0, N_DAYS))
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


def streams() -> None:
    """Parquet shards and a DataLoader, in place of rows in memory."""
    members = [StreamMember(SMALL, val=VAL, seed=seed, lr=lr) for seed in (0, 1) for lr in (1e-3, 1e-2)]
    with tempfile.TemporaryDirectory() as folder:
        write_shards(DATA, folder, rows_per_shard=400)
        shards = StreamingTimeDataset(
            folder, features=DATA.feature_names, batch_size=64, seed=0, end=DATA.time[1000], buffer_rows=500
        )
        fits = TRAINER.fit_stream(members, qfml.MSE(), shards, val=DATA)
        workers = DataLoader(shards, batch_size=None, num_workers=2)
        again = TRAINER.fit_stream(members, qfml.MSE(), workers, val=DATA)
    same = all(torch.equal(a.parameters, b.parameters) for a, b in zip(fits, again, strict=True))
    print(f"{shards.n_rows} rows of {len(members)} networks; two worker processes change no bit: {same}")
    rows = TensorDataset(DATA.features[TRAIN], DATA.y[TRAIN])
    loader = DataLoader(rows, batch_size=64, shuffle=True, generator=torch.Generator())
    (fit,) = TRAINER.fit_stream(
        members[:1], qfml.MSE(), loader, val=DATA, adapter=lambda batch: {"x": batch[0], "y": batch[1]}
    )
    print(f"a DataLoader: validation loss {fit.best_val_loss:.4f}")


def sampling() -> None:
    """Which rows an epoch takes."""
    for kind, sampler in qfml.engine.SAMPLERS.items():
        fit = replace(TRAINER, sampler=sampler(), max_epochs=3).fit(SMALL, qfml.BCE(), UP_OR_DOWN, train=TRAIN, val=VAL)
        print(f"{kind:20s} validation loss {fit.best_val_loss:.4f}")


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
    for needs_a_gpu in ({"precision": "tf32"}, {"compile": "cuda_graphs"}):
        try:
            replace(trainer, **needs_a_gpu)
        except UserError as error:
            print(error)


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


def twin() -> None:
    """Differential learning: values and slopes of a function against its values alone."""
    X = np.random.default_rng(1).standard_normal((600, 2))
    value, day = np.sin(X[:, 0]) * X[:, 1], np.arange(600)
    slopes = np.stack([np.cos(X[:, 0]) * X[:, 1], np.sin(X[:, 0])], axis=1)
    ds = TimeDataset(X, value, time=day, label_end=day + 1, label_gradient=slopes)
    train, val = np.arange(200), np.arange(201, 600)
    trainer, smooth = replace(TRAINER, max_epochs=60, batch_size=32), qfml.MLP(hidden=(16, 16), activation="silu")
    for loss in (qfml.MSE(), qfml.Twin.of(ds, train)):
        error = trainer.fit(smooth, loss, ds, train=train, val=val).predict(ds, val) - value[val]
        print(f"{loss.kind}: root mean square error of the value {np.sqrt(np.mean(error**2)):.4f}")


def optimizers() -> None:
    """Each optimizer, stacked, with a rate for each member; and one of torch.optim."""
    for kind, optimizer in qfml.engine.OPTIMIZERS.items():
        trainer = replace(TRAINER, optimizer=optimizer(), batch_size=None if kind == "lbfgs" else 64)
        rates = (0.5, 1.0) if kind == "lbfgs" else (3e-4, 3e-3)
        fits = trainer.fit_many([qfml.Member(SMALL, TRAIN, VAL, lr=lr) for lr in rates], qfml.MSE(), DATA)
        print(f"{kind:8s}", *(f"lr {lr:g}: {fit.best_val_loss:.4f}  " for lr, fit in zip(rates, fits, strict=True)))
    nadam = qfml.TorchOptimizer(lambda parameters: torch.optim.NAdam(parameters, lr=3e-3))
    fit = replace(TRAINER, optimizer=nadam).fit(SMALL, qfml.MSE(), DATA, train=TRAIN, val=VAL)
    print(f"{nadam.optimizer}: {fit.best_val_loss:.4f}")


def networks() -> None:
    """Every architecture; those of windows read the last five days."""
    windows = TimeDataset(DATA.features, DATA.y, time=DATA.time, label_end=DATA.label_end, window=5)
    settings = {"monotone_mlp": {"increasing": (0,)}, "convex_mlp": {"convex": (0,)}}
    for kind, network in qfml.networks.NETWORKS.items():
        ds = windows if kind in ("tcn", "lstm", "gru", "transformer") else DATA
        fit = replace(TRAINER, max_epochs=2).fit(
            network(**settings.get(kind, {})), qfml.MSE(), ds, train=TRAIN, val=VAL[:-10]
        )
        print(f"{kind:13s} {fit.layout.n_parameters:6d} parameters, validation loss {fit.best_val_loss:.4f}")


class Gated(nn.Module):
    """A module of one's own."""

    def __init__(self) -> None:
        super().__init__()
        self.value, self.gate = nn.Linear(N_FEATURES, 16), nn.Linear(N_FEATURES, 16)
        self.dropout, self.head = nn.Dropout(0.1), nn.Linear(16, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Outputs (rows, 1) of features (rows, F)."""
        return self.head(self.dropout(torch.tanh(self.value(x)) * torch.sigmoid(self.gate(x))))


class Recurrent(nn.Module):
    """One that cannot be stacked: torch's GRU has no batching rule."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(1, 4, batch_first=True), nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Outputs (rows, 1): the features are read one after another."""
        return self.head(self.gru(x[..., None])[0][:, -1])


def modules() -> None:
    """Modules of one's own, as a stack, or member by member where that cannot be."""
    trainer = replace(TRAINER, max_epochs=3)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for factory in (Gated, Recurrent):
            members = [qfml.Member(factory, TRAIN, VAL, seed=seed) for seed in range(3)]
            fits = trainer.fit_many(members, qfml.MSE(), DATA)
            print(factory.__name__, *(f"{fit.best_val_loss:.4f}" for fit in fits))
    print(*(warning.message for warning in told), sep="\n")
    module = fits[0].network.module(fits[0].named_parameters())
    print("the trained module is torch's own again:", isinstance(module, Recurrent) and not module.training)


def control() -> None:
    """Early stop on any metric, a callback that stops members, new ones in their place; two steps to see if it runs."""
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
    trial = replace(TRAINER, fast_dev_run=True).fit(SMALL, qfml.MSE(), DATA, train=TRAIN, val=VAL)
    print(f"two steps: {trial.status}")


class Watcher(qfml.Callback):
    """Keeps what it is told."""

    def log(self, member: int, step: int, values: dict[str, float]) -> None:
        """Statistics of a step."""
        if member == 0:
            self.values = values

    def split(self, epoch: int, seconds: Mapping[str, float], verdict: str) -> None:
        """What the time of an epoch went into; the first one is kept."""
        if epoch == 1:
            self.seconds, self.verdict = seconds, verdict

    def memory(self, bytes_by_part: Mapping[str, int]) -> None:
        """What the training holds."""
        self.bytes = bytes_by_part

    def fail(self, member: int, step: int, sentence: str) -> None:
        """Where something was not finite."""
        print(f"member {member} is lost, {sentence}")


def watching() -> None:
    """Layers, memory, the time split, a trace, and where a NaN was born."""
    watcher = Watcher()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        trainer = replace(
            TRAINER,
            log_every=20,
            watch=("layers", "activations", "memory"),
            time_split=True,
            profile=qfml.engine.Profile(str(trace), first=20, steps=2),
        )
        members = [qfml.Member(SMALL, TRAIN, VAL), qfml.Member(SMALL, TRAIN, VAL, lr=1e25)]
        fits = trainer.fit_many(members, qfml.MSE(), DATA, callbacks=[watcher])
        print(f"a trace of two steps: {trace.stat().st_size // 1024} KiB for https://ui.perfetto.dev")
    print("its neighbour ended as", fits[0].status)
    for name in ("gradient_norm/weight0", "activation_std/weight0", "dead_units/weight0", "update_ratio"):
        print(f"{name} {watcher.values[name]:.4g}", end="   ")
    print(f"\n{watcher.verdict}")
    print({part: f"{1000 * seconds:.1f} ms" for part, seconds in watcher.seconds.items()})
    print({part: f"{size / 1024:.0f} KiB" for part, size in watcher.bytes.items()})


class Ends(Tracker):
    """A tracker of one's own: how members ended."""

    def write(self, member: int, axis: str, at: int, values: Mapping[str, float | int | None]) -> None:
        """Numbers of an epoch or step: not of interest here."""

    def summary(self, member: int, values: Mapping[str, Any]) -> None:
        """One line a member."""
        print(f"member {member}: {values['status']}, best in epoch {values['best_epoch']}")


def tracking() -> None:
    """Files, and a tracker of one's own; TensorBoard, Weights & Biases and MLflow work alike."""
    members = [qfml.Member(SMALL, TRAIN, VAL, seed=seed) for seed in range(2)]
    with tempfile.TemporaryDirectory() as folder:
        lines, table = Path(folder) / "training.jsonl", Path(folder) / "training.csv"
        TRAINER.fit_many(members, qfml.MSE(), DATA, callbacks=[JsonLines(lines), Csv(table), Ends()])
        print(lines.read_text().splitlines()[0])
        print(*table.read_text().splitlines()[:2], sep="   ")


class Terminate(qfml.Callback):
    """Sends SIGTERM to its own process, as `kill` would from outside."""

    def epoch(self, member: int, record: dict[str, Any], stopped: bool) -> None:
        """In the fourth epoch."""
        if record["epoch"] == 4 and member == 0:
            signal.raise_signal(signal.SIGTERM)


def checkpoints() -> None:
    """A run that is terminated and resumed; one member out of the stack's file; what the file says of its origin."""
    members = [qfml.Member(SMALL, TRAIN, VAL, seed=seed) for seed in range(3)]
    fits = TRAINER.fit_many(members, qfml.MSE(), DATA)
    with tempfile.TemporaryDirectory() as folder:
        try:
            TRAINER.fit_many(members, qfml.MSE(), DATA, checkpoint_dir=folder, callbacks=[Terminate()])
        except Interrupted as stopped:
            print(f"{stopped}; a script would exit with {128 + stopped.signal_number}")
        again = TRAINER.fit_many(members, qfml.MSE(), DATA, checkpoint_dir=folder, resume=True)
        same = all(torch.equal(a.parameters, b.parameters) for a, b in zip(fits, again, strict=True))
        print("resumed, the same bits as uninterrupted:", same)
        member = qfml.engine.load_member(folder, 2)
        print("member 2 in the file:", {name: tuple(value.shape) for name, value in member.items()})
        manifest = read_manifest(max(Path(folder).iterdir()))
        print("it came from", {name: manifest[name] for name in ("data_hash", "seeds", "threads")})


def finding() -> None:
    """Learning-rate range test and largest batch."""
    rates = finders.find_lr(TRAINER, SMALL, qfml.MSE(), DATA, TRAIN, n_steps=40)
    print(f"learning rate suggested: {rates.suggestion}")
    sizes = finders.find_batch_size(TRAINER, SMALL, qfml.MSE(), DATA, TRAIN, memory_bytes=2**20, n_steps=3)
    print(f"largest batch within 1 MiB: {sizes.largest}")


def overfit() -> None:
    """One batch by heart, gap, learning curve, bias and variance, uncertainty of an ensemble and of dropout."""
    print("one batch:", overfitting.overfit_one_batch(TRAINER, SMALL, qfml.MSE(), DATA, TRAIN[:32]).verdict)
    curve = overfitting.learning_curve(
        TRAINER, SMALL, qfml.MSE(), DATA, PurgedKFold(3), sizes=(0.2, 0.5, 1.0), n_seeds=2, metric="r2"
    )
    print("R2 with 20 %, 50 % and all of the training rows:", *(f"{score:.3f}" for score in curve.mean()))
    parts, _ = overfitting.bias_variance_of(TRAINER, SMALL, qfml.MSE(), DATA, TRAIN, VAL, n_seeds=4)
    print(f"error {parts.error:.4f} = bias and noise {parts.bias_squared:.4f} + seeds {parts.variance_seeds:.4f}")
    long = replace(TRAINER, optimizer=qfml.AdamW(lr=1e-2), max_epochs=60)
    network = qfml.MLP(hidden=(32, 32), dropout=0.2)
    fits = long.fit_many([qfml.Member(network, TRAIN[:250], VAL, seed=seed) for seed in range(4)], qfml.MSE(), DATA)
    gap = overfitting.train_validation_gap(fits[0].history)
    print(f"250 rows, gap at the end {gap.final:.4f}; opened in epoch {gap.opened_at}")
    for name, found in (
        ("four seeds", overfitting.ensemble(fits, DATA, VAL)),
        ("dropout", overfitting.mc_dropout(fits[0], DATA, VAL, n_draws=50)),
    ):
        print(f"standard deviation between predictions, {name}: {float(np.sqrt(found.epistemic.mean())):.4f}")


def scikit_learn() -> None:
    """The engine as estimators, in a pipeline and a grid search."""
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from qfml.engine import NeuralClassifier, NeuralRegressor

    X, y = DATA.features.numpy(), DATA.y.numpy()
    model = make_pipeline(StandardScaler(), NeuralRegressor(network=SMALL, trainer=TRAINER))
    grid = GridSearchCV(model, {"neuralregressor__trainer__optimizer__lr": [1e-3, 1e-2]}, cv=2).fit(X, y)
    print("best:", grid.best_params_, f"R2 {grid.best_score_:.3f}")
    classifier = NeuralClassifier(SMALL, trainer=replace(TRAINER, patience=2), validation=0.2, n_seeds=4)
    times = {"time": DATA.time, "label_end": DATA.label_end}  # the validation rows are purged by them
    classifier.fit(X, np.where(y > 0, "up", "down"), **times)
    probability, spread = classifier.predict_proba(X[-1:], return_std=True)
    found = dict(zip(classifier.classes_.tolist(), np.round(probability[0], 3).tolist(), strict=True))
    print(f"the last day: {found}, spread over seeds {spread[0, 0]:.3f}")


def search() -> None:
    """`qfml tune`: trials x folds as one stack, halving, and the winner's backtest on rows that no trial has seen."""
    from qfml.finished import read_metrics
    from qfml.tuning import tune

    config = Path(__file__).parent.parent / "configs" / "tune_sp500.yaml"
    with tempfile.TemporaryDirectory() as folder:
        smaller = ["tune.n_trials=8", "tune.concurrent=4", "tune.search.n_startup=4", "tune.halving.first=2"]
        smaller += ["tune.halving.factor=2", "trainer.max_epochs=8", "n_seeds=1", f"ledger={folder}/ledger.jsonl"]
        found = read_metrics(tune(config, out=Path(folder) / "search", overrides=smaller, progress=False), search=True)
    winner = found["winner"]
    print("winner:", {name.rpartition(".")[2]: value for name, value in winner["params"].items()})
    states = [trial["state"] for trial in found["trials"]]
    print(f"dropped at a rung: {states.count('pruned')} of {len(states)}")
    print(f"its deflated Sharpe ratio among {found['significance']['n_trials']} trials:", end=" ")
    print(f"{found['significance']['deflated_sharpe_ratio']:.3f}; its backtest: {found['backtest']['verdict']}")


PARTS: dict[str, Callable[[], None]] = {
    part.__name__: part
    for part in (
        *(stack, streams, sampling, step, losses, twin, optimizers, networks, modules, control, watching, tracking),
        *(checkpoints, finding, overfit, scikit_learn, search),
    )
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
