"""Run folders as a finished walk-forward run leaves them, made of synthetic prices."""

from __future__ import annotations

import base64
import html
import json
import re
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

FOLDS, SEEDS, PERIODS_PER_YEAR, COST_BPS = 8, 4, 252.0, 1.0
CONFIG = """task: walk_forward
data:
  source: {kind: arch, name: sp500}
  features:
  - {kind: returns, horizons: [1, 5, 21]}
  - {kind: realised_vol, window: 21}
  label: {kind: forward_return, horizon: 5}
splitter: {kind: walk_forward, train_size: 5Y, test_size: 1Y, embargo: 5D}
network: {kind: mlp, hidden: [32, 32], dropout: 0.1}
n_seeds: 4
cost_bps: 1.0
"""


def iso(value: Any) -> str:
    return str(np.datetime64(value, "s"))


def sharpe(net: np.ndarray) -> float:
    return float(net.mean() / net.std(ddof=1) * np.sqrt(PERIODS_PER_YEAR)) if net.std() else 0.0


def performance(net: np.ndarray, turnover: np.ndarray) -> dict[str, float]:
    equity = np.cumprod(1 + net)
    return {
        "sharpe_ratio": sharpe(net),
        "annualised_return": float(equity[-1] ** (PERIODS_PER_YEAR / len(net)) - 1),
        "annualised_vol": float(net.std(ddof=1) * np.sqrt(PERIODS_PER_YEAR)),
        "max_drawdown": float((1 - equity / np.maximum.accumulate(np.maximum(equity, 1))).max()),
        "sortino_ratio": sharpe(net) * 1.4,
        "calmar_ratio": sharpe(net) * 0.6,
        "omega_ratio": 1 + sharpe(net) / 6,
        "expected_shortfall": float(-np.sort(net)[: max(1, len(net) // 20)].mean()),
        "hit_rate": float((net > 0).sum() / max(1, (net != 0).sum())),
        "turnover": float(turnover.mean() * PERIODS_PER_YEAR),
    }


def write_run_folder(
    path: Path,
    *,
    task: str = "regression",
    n_groups: int = 1,
    n_folds: int = FOLDS,
    n_seeds: int = SEEDS,
    seed: int = 7,
) -> Path:
    """Write a run folder by the schema: daily rows 2004-2018, five years of training before each year of test."""
    path.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    days = np.arange("2004-01-02", "2019-01-01", dtype="datetime64[D]")
    days = days[np.is_busday(days)]
    years = np.array_split(np.flatnonzero(days >= np.datetime64("2009-01-09")), n_folds)
    names = [f"A{k:02d}" for k in range(n_groups)]
    vol = 0.011 * np.exp(0.5 * np.sin(np.arange(len(days)) / 260.0))[:, None]
    market = rng.standard_normal((len(days), 1)) * vol
    returns = 0.0003 + (
        0.8 * market + 0.6 * rng.standard_normal((len(days), n_groups)) * vol if n_groups > 1 else market
    )
    signals = {f"seed_{k}": 0.05 * returns / vol + rng.standard_normal(returns.shape) for k in range(n_seeds)}
    signals["ridge"] = 0.04 * returns / vol + 0.3 * rng.standard_normal(returns.shape)
    signals["momentum"] = np.sign(np.r_[np.zeros((1, n_groups)), returns[:-1]])
    signals["network"] = np.mean([signals[f"seed_{k}"] for k in range(n_seeds)], axis=0)
    signals["buy_and_hold"] = np.ones_like(returns)
    test = np.concatenate(years)
    fold_of = np.concatenate([np.full(len(rows), k) for k, rows in enumerate(years)])

    pnl, positions, nets, trades = [], [], {}, {}
    for name, signal in signals.items():
        held = np.sign(signal[test]) if name in ("momentum", "buy_and_hold") else np.tanh(1.5 * signal[test])
        held = held / n_groups
        gross = held * returns[test]
        trade = np.abs(np.diff(held, axis=0, prepend=0.0))
        cost = trade * COST_BPS / 1e4
        nets[name], trades[name] = (gross - cost).sum(1), trade.sum(1)
        totals = {"gross": gross.sum(1), "cost": cost.sum(1), "net": nets[name], "turnover": trades[name]}
        pnl.append(
            pl.DataFrame({"time": days[test]} | totals | {"exposure": np.abs(held).sum(1)}).with_columns(
                strategy=pl.lit(name)
            )
        )
        if not name.startswith("seed_"):
            for g, group in enumerate(names):
                books = {"time": days[test], "position": held[:, g], "gross": gross[:, g], "cost": cost[:, g]}
                frame = pl.DataFrame(books | {"net": gross[:, g] - cost[:, g]})
                positions.append(frame.with_columns(strategy=pl.lit(name), group=pl.lit(group)))
    as_time = pl.col("time").cast(pl.Datetime("ns"))
    held_frame = pl.concat(positions).with_columns(as_time)
    predictions = []
    for g, group in enumerate(names):
        columns = {n: 0.002 * s[test, g] for n, s in signals.items() if n != "buy_and_hold"}
        outcome = returns[test, g] if task == "regression" else (returns[test, g] > 0).astype(float)
        if task == "classification":
            columns = {n: 1 / (1 + np.exp(-100 * v)) for n, v in columns.items()}
        frame = pl.DataFrame({"time": days[test], "fold": fold_of, "y": outcome} | columns)
        predictions.append(frame.with_columns(as_time, group=pl.lit(group)))
    drop = ["group"] if n_groups == 1 else []
    held_frame.drop(drop).write_parquet(path / "positions.parquet")
    pl.concat(predictions).drop(drop).write_parquet(path / "predictions.parquet")
    pl.concat(pnl).with_columns(as_time).write_parquet(path / "pnl.parquet")
    (path / "config.yaml").write_text(CONFIG)

    members, lines = [], []
    for fold in range(n_folds):
        for k in range(n_seeds):
            n_epochs = int(rng.integers(14, 40))
            epochs = np.arange(1, n_epochs + 1)
            train = 1.0 + 0.35 * np.exp(-epochs / 4) - 0.004 * epochs + 0.006 * rng.standard_normal(n_epochs)
            val = (
                1.03
                + 0.3 * np.exp(-epochs / 4)
                + 0.0006 * (epochs - 10) ** 2 / 10
                + 0.01 * rng.standard_normal(n_epochs)
            )
            best = int(val.argmin())
            lines += [
                {"fold": fold, "seed": k, "epoch": int(e), "train_loss": float(a), "val_loss": float(b)}
                for e, a, b in zip(epochs, train, val)
            ]
            inside = fold_of == fold
            own = {"sharpe_ratio": sharpe(nets[f"seed_{k}"][inside]), "mse": float(val[best])}
            members.append(
                {
                    "fold": fold,
                    "seed": k,
                    "status": "early_stopped" if n_epochs < 38 else "finished",
                    "n_epochs": n_epochs,
                }
                | {
                    "best_epoch": int(epochs[best]),
                    "best_val_loss": float(val[best]),
                    "final_train_loss": float(train[-1]),
                }
                | {"metrics": own}
            )
    (path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    folds = []
    for k, rows in enumerate(years):
        first = rows[0]
        cuts = {"train": (first - 1250, first - 265), "validation": (first - 260, first - 11)}
        cuts |= {"purged": (first - 10, first - 6), "embargoed": (first - 5, first - 1), "test": (rows[0], rows[-1])}
        cuts["train"] = (max(0, cuts["train"][0]), cuts["train"][1])
        size = {kind: int(b - a + 1) * n_groups for kind, (a, b) in cuts.items()}
        own = performance(nets["network"][fold_of == k], trades["network"][fold_of == k])
        folds.append(
            {"fold": k, "n_train": size["train"], "n_val": size["validation"], "n_test": size["test"]}
            | {"n_purged": size["purged"], "n_embargoed": size["embargoed"]}
            | {"blocks": [{"kind": n, "start": iso(days[a]), "end": iso(days[b])} for n, (a, b) in cuts.items()]}
            | {"metrics": {n: own[n] for n in ("sharpe_ratio", "annualised_return", "max_drawdown", "turnover")}}
        )
    strategies = {}
    for name, net in nets.items():
        if name.startswith("seed_"):
            continue
        own = performance(net, trades[name])
        half = 1.96 * np.sqrt((1 + own["sharpe_ratio"] ** 2 / 2) * PERIODS_PER_YEAR / len(net))
        bounds = {"sharpe_ratio": [own["sharpe_ratio"] - half, own["sharpe_ratio"] + half]}
        bounds["annualised_return"] = [own["annualised_return"] - 0.07, own["annualised_return"] + 0.07]
        bounds["max_drawdown"] = [own["max_drawdown"] * 0.7, own["max_drawdown"] * 1.7]
        strategies[name] = {"metrics": own, "intervals": bounds}
    if task == "regression":
        quality: dict[str, Any] = {"mse": 1.34e-4, "mae": 0.0083, "r2": -0.0031, "rank_ic": 0.0124, "hit_rate": 0.508}
        bins = [
            {"predicted": p, "observed": 0.2 * p + 3e-4, "count": 200 + 40 * i}
            for i, p in enumerate(np.linspace(-3e-3, 3e-3, 10))
        ]
    else:
        quality = {"accuracy": 0.517, "precision": 0.53, "recall": 0.61, "f1": 0.567, "roc_auc": 0.521, "brier": 0.2497}
        quality |= {"expected_calibration_error": 0.031, "confusion_matrix": [[512, 655], [486, 947]]}
        bins = [{"predicted": p, "observed": 0.5 + 0.3 * (p - 0.5), "count": 260} for p in np.linspace(0.3, 0.7, 9)]
    metrics = {
        "task": "walk_forward",
        "created": datetime(2024, 5, 17, 14, 3, 22).isoformat(),
        "config_hash": "5f2a8c0d91be7e34",
        "data_hash": "c0ffee1234567890",
        "seconds": {"data": 0.41, "training": 21.7, "total": 24.9},
        "versions": {"qfml": "0.1.0", "python": "3.11.9", "torch": "2.13.0", "numpy": "2.3.1", "polars": "1.31.0"},
        "provenance": {
            "platform": "Linux-6.1-x86_64",
            "threads": 2,
            "seeds": list(range(n_seeds)),
            "git": {"revision": "0123456789abcdef0123456789abcdef01234567", "dirty": True},
        },
        "conventions": {"periods_per_year": 252.0, "ddof": 1, "kurtosis": "raw", "cost_bps": COST_BPS, "slippage": 0.0}
        | {"execution_lag": 1, "positions": {"kind": "tanh", "scale": 1.5}},
        "data": {
            "source": "arch: S&P 500, daily",
            "n_rows": len(days) * n_groups,
            "n_samples": (len(days) - 26) * n_groups,
            "start": iso(days[0]),
            "end": iso(days[-1]),
            "n_groups": n_groups,
            "features": ["return_1", "return_5", "return_21", "realised_vol_21", "rsi_14", "volume_ratio_5_21"],
            "label": "forward_return(horizon=5)",
            "dropped": {"look-back not full": 21 * n_groups, "label not known yet": 5 * n_groups},
            "validation": [
                f"{len(days) * n_groups:,} rows; no missing or duplicate times",
                "longest gap 4 days (limit 10)",
            ],
        },
        "audit": {"ran": True, "n_times": 8, "leaks": []},
        "folds": folds,
        "members": members,
        "strategies": strategies,
        "prediction": {"network": quality, "ridge": quality, "momentum": dict(list(quality.items())[:3])},
        "calibration": {"kind": task, "bins": bins},
        "significance": {
            "probabilistic_sharpe_ratio": 0.871,
            "deflated_sharpe_ratio": 0.412,
            "n_trials": 6,
            "trial_variance": 0.00213,
            "min_track_record_length_years": 21.3,
            "min_backtest_length_years": 2.6,
            "spa_p_value": 0.381,
            "pbo": None,
            "pbo_note": "Not available: one configuration in this run, two are needed.",
            "verdict": "The network does not add anything: ridge did better after costs, and chance explains the rest.",
        },
    }
    (path / "metrics.json").write_text(json.dumps(metrics, indent=1))
    return path


@pytest.fixture(scope="session")
def _single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run_folder(tmp_path_factory.mktemp("runs") / "single")


@pytest.fixture
def run_dir(_single: Path, tmp_path: Path) -> Path:
    """A fresh copy of the run on one index, to be changed at will."""
    return Path(shutil.copytree(_single, tmp_path / "run"))


@pytest.fixture
def change(run_dir: Path) -> Callable[[Callable[[dict[str, Any]], Any]], Path]:
    """Apply a function to the content of metrics.json."""

    def apply(edit: Callable[[dict[str, Any]], Any]) -> Path:
        path = run_dir / "metrics.json"
        metrics = json.loads(path.read_text())
        edit(metrics)
        path.write_text(json.dumps(metrics))
        return run_dir

    return apply


@pytest.fixture(autouse=True)
def _without_tearsheet(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """quantstats takes seconds to import and to draw; the tests of the tear sheet ask for it by their file name."""
    if "tearsheet" not in request.path.name:
        from qfml.report import tearsheet, walk_forward

        monkeypatch.setattr(
            walk_forward, "write_tearsheet", lambda run: tearsheet.Tearsheet(None, ("No tear sheet in this test.",))
        )


class Page:
    """A written report, its markup and the figures inside."""

    def __init__(self, path: Path) -> None:
        self.markup = path.read_text(encoding="utf-8")

    def _block(self, key: str) -> Any:
        found = re.search(rf'<script type="application/json" id="{key}">(.*?)</script>', self.markup, re.DOTALL)
        assert found
        return json.loads(found[1])

    @property
    def figures(self) -> dict[str, Any]:
        arrays = {
            key: np.frombuffer(base64.b64decode(array["bdata"]), dtype=f"<{array['dtype']}")
            for key, array in self._block("arrays").items()
        }

        def filled(value: Any) -> Any:
            if isinstance(value, dict):
                return arrays[value["array"]] if "array" in value else {k: filled(v) for k, v in value.items()}
            return [filled(item) for item in value] if isinstance(value, list) else value

        return filled(self._block("figures"))

    def trace(self, chart: str, name: str, axis: str = "y") -> dict[str, Any]:
        traces = self.figures[chart]["data"]
        return next(t for t in traces if t.get("name") == name and t.get("yaxis", "y") == axis)

    @property
    def body(self) -> str:
        """The markup without scripts and style."""
        return re.sub(r"<(script|style)\b.*?</\1>", " ", self.markup, flags=re.DOTALL)

    @property
    def text(self) -> str:
        """What a reader sees outside the charts, white space collapsed."""
        return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", self.body)).split())


@pytest.fixture
def read_page() -> Callable[[Path], Page]:
    """Read a page that was written."""
    return Page


@pytest.fixture
def report() -> Callable[[Path], Page]:
    """Write the report of a run folder and read it back."""

    def write(run_dir: Path) -> Page:
        from qfml.report import write_report

        return Page(write_report(run_dir))

    return write


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Write a run folder of another kind."""
    return lambda **settings: write_run_folder(tmp_path / "made", **settings)
