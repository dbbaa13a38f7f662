"""A prediction needs the columns of the features, not those that only the label reads."""

import numpy as np

import qfml
from qfml.data import ArchSource

HAR = {"kind": "har", "periods_per_year": 252}
LABEL = {"kind": "realised_vol_ahead", "horizon": 5, "periods_per_year": 252, "estimator": "parkinson"}  # high, low


def test_predict_from_close_alone_where_the_label_reads_high_and_low(tmp_path):
    config = {
        "task": "walk_forward",
        "data": {
            "source": {"kind": "arch", "name": "sp500"},
            "missing": {"kind": "error"},
            "start": "2014-01-01",
            "audit": False,
            "features": [HAR],
            "label": LABEL,
        },
        "split": {"kind": "walk_forward", "train_size": "3Y", "test_size": "1Y"},
        "network": {"kind": "mlp", "hidden": [4]},
        "loss": {"kind": "mse"},
        "trainer": {"max_epochs": 1, "batch_size": 128},
        "backtest": {"positions": {"kind": "predicted_vol_target"}, "cost_bps": 1.0, "n_bootstrap": 0},
        "ledger": str(tmp_path / "ledger.jsonl"),
    }
    run = qfml.run(config, out=tmp_path / "run", progress=False, say=lambda line: None)
    source, days = ArchSource("sp500"), {"start": "2018-01-01", "end": "2018-12-31"}
    alone = qfml.predict(run, source.read(["close"], **days))
    assert np.isfinite(alone["prediction"][0])
    assert alone.equals(qfml.predict(run, source.read(["close", "high", "low"], **days)))
