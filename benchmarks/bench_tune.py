"""32 trials x 5 folds of the walk-forward config: one stack beside Optuna and skorch, trial by trial.

    python benchmarks/bench_tune.py [--out FILE.json] [--repeats N] [--threads N] [--trials N] [--epochs N]

Both search the learning rate, weight decay, dropout and width of configs/walk_forward_sp500.yaml at the same points,
on the same five purged folds of the rows before the first test, with the same winsorised and standardised features,
Huber loss, batches, clipping and early stopping, one seed. Both keep an Optuna study in SQLite with the objective after
every epoch. Data and features are made before the clock starts; each side fits the folds' transforms once. The
contenders run in turns in one process. Run it alone on an idle machine.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import skorch
import torch
from skorch.callbacks import EarlyStopping, GradientNormClipping
from skorch.dataset import Dataset
from skorch.helper import predefined_split
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from measure import Contender, default_threads, machine, race, show, versions, write

from qfml import config
from qfml.backtest.training import fit_fold_transforms
from qfml.splits.base import LookbackWarning
from qfml.tune import Random, Study, Tuner, tuning_folds
from qfml.tuning import Search

ROOT = Path(__file__).parent.parent
SPACES = {
    "network": {
        "kind": "mlp",
        "hidden": {"choice": [[16, 16], [32, 32], [64, 64]]},
        "dropout": {"uniform": [0.0, 0.5]},
    },
    "optimizer": {"kind": "adamw", "lr": {"log_uniform": [1e-4, 1e-2]}, "weight_decay": {"log_uniform": [1e-4, 1e-1]}},
}

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--out", type=Path)
parser.add_argument("--repeats", type=int, default=3)
parser.add_argument("--threads", type=int, default=default_threads())
parser.add_argument("--trials", type=int, default=32)
parser.add_argument("--epochs", type=int, default=60)
parser.add_argument("--concurrent", type=int, default=32)


def the_search(arguments: argparse.Namespace) -> Search:
    settings = config.read_yaml(ROOT / "configs" / "walk_forward_sp500.yaml")
    settings["trainer"] |= {"optimizer": SPACES["optimizer"], "max_epochs": arguments.epochs}
    settings |= {"network": SPACES["network"], "n_seeds": 1}
    plan = {"n_trials": arguments.trials, "concurrent": arguments.concurrent, "search": "random"}
    return Search.of(settings | {"tune": plan | {"split": {"kind": "purged_kfold", "n_splits": 5}}})


class Net(nn.Module):
    def __init__(self, n_features: int, hidden: list[int], dropout: float) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width, wider in zip([n_features, *hidden], hidden):
            layers += [nn.Linear(width, wider), nn.ReLU(), nn.Dropout(dropout)]
        self.layers = nn.Sequential(*layers, nn.Linear(hidden[-1], 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def one_fold(task: Any, train: tuple[np.ndarray, np.ndarray], val: tuple[np.ndarray, np.ndarray]) -> list[float]:
    """The validation loss after each epoch."""
    trainer = task.trainer
    torch.manual_seed(task.seed)
    regressor = skorch.NeuralNetRegressor(
        Net(train[0].shape[1], list(task.network.hidden), task.network.dropout),
        criterion=nn.HuberLoss,
        criterion__delta=task.loss.delta,
        optimizer=torch.optim.AdamW,
        optimizer__fused=True,
        lr=trainer.optimizer.lr,
        optimizer__weight_decay=trainer.optimizer.weight_decay,
        max_epochs=trainer.max_epochs,
        batch_size=trainer.batch_size,
        iterator_train__shuffle=True,
        train_split=predefined_split(Dataset(*val)),
        callbacks=[GradientNormClipping(trainer.clip_norm), EarlyStopping(patience=trainer.patience, load_best=True)],
        verbose=0,
    )
    regressor.fit(*train)
    return regressor.history[:, "valid_loss"]


def main() -> None:
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", LookbackWarning)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    search = the_search(arguments)
    frame, _ = search.first.data.read()
    ds = search.first.data.dataset(frame)
    folds = tuning_folds(ds, search.first.split, search.plan.split)
    y = ds.y.numpy()[:, None]

    def stacked() -> list[float]:
        with tempfile.TemporaryDirectory() as folder:
            study = Study(Path(folder) / "study.db", search.spaces, search.plan.search, mode="min", seed=0)
            Tuner(ds, folds, study, search.task, lambda *_: None, search.plan, lambda _: None).run()
            values = [told.value for told in study.told()]
            study.close()
        return values

    def trial_by_trial() -> list[float]:
        with tempfile.TemporaryDirectory() as folder:
            study = Study(Path(folder) / "study.db", search.spaces, Random(), mode="min", seed=0)
            fitted = fit_fold_transforms(ds, folds, search.first.transforms)
            x = {fold.model: fitted[fold.model].apply(ds.features)[ds.ends].numpy() for fold in folds}
            values = []
            while asked := study.ask(arguments.trials):
                task = search.task(asked.params)
                curves = []
                for fold in folds:
                    rows = [(x[fold.model][part], y[part]) for part in (fold.train, fold.test)]
                    curves.append(one_fold(task, *rows))
                best = [np.minimum.accumulate(curve) for curve in curves]
                for epoch in range(max(map(len, best))):
                    study.report(asked, epoch + 1, float(np.mean([b[min(epoch, len(b) - 1)] for b in best])))
                values.append(float(np.mean([b[-1] for b in best])))
                study.tell(asked, values[-1], [len(b) for b in best], pruned=False)
            study.close()
        return values

    contenders = {
        "qfml, one stack": Contender(stacked, arguments.trials, arguments.threads),
    } | {
        f"Optuna + skorch, {threads} thread{'s' * (threads > 1)}": Contender(trial_by_trial, arguments.trials, threads)
        for threads in sorted({arguments.threads, 1}, reverse=True)
    }
    rows, results = race(contenders, arguments.repeats)
    ours = rows["qfml, one stack"]
    for name, row in rows.items():
        values = np.array(results[name][-1])
        row["best_objective"], row["mean_objective"] = float(values.min()), float(values.mean())
        for kind in ("min", "median"):
            row[f"times_slower_{kind}"] = row[f"{kind}_seconds"] / ours[f"{kind}_seconds"]
    pair = [np.argsort(np.argsort(results[name][-1])) for name in list(contenders)[:2]]
    record = {
        "benchmark": f"{arguments.trials} trials x {len(folds)} folds of configs/walk_forward_sp500.yaml",
        "command": f"python benchmarks/bench_tune.py --repeats {arguments.repeats} --threads {arguments.threads} "
        f"--trials {arguments.trials} --epochs {arguments.epochs} --concurrent {arguments.concurrent}",
        "contenders": rows,
        "rank_correlation_of_trials": float(np.corrcoef(*pair)[0, 1]),
        "machine": machine(),
        "versions": versions("qfml", "torch", "optuna", "skorch", "numpy"),
    }
    show(record["benchmark"], rows, "times_slower_min", "best_objective", "mean_objective")
    write(record, arguments.out)


if __name__ == "__main__":
    main()
