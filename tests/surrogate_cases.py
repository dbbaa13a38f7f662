"""Small problems and tables that the tests of surrogates share."""

import math

import torch

import qfml
from qfml.engine import AdamW, OneCycle, Trainer
from qfml.surrogate import LabelTable, Problem, Range, SurrogateTraining

HESTON_BOX = {
    "v0": Range(0.02, 0.2, "log"),
    "kappa": Range(0.5, 4.0),
    "theta": Range(0.02, 0.2, "log"),
    "sigma": Range(0.1, 0.8),
    "rho": Range(-0.9, 0.0),
    "expiry": Range(0.25, 2.0, "log"),
    "delta": Range(0.1, 0.9),
}
VOLS = Problem(model={"kind": "heston"}, instrument={"kind": "european"}, box=HESTON_BOX, target="implied_vol")
CALLS = Problem(
    model={"kind": "black_scholes"},
    instrument={"kind": "european"},
    market={"spot": 1.0, "rate": 0.03, "dividend_yield": 0.01},
    box={"vol": Range(0.1, 0.4), "expiry": Range(0.5, 2.0), "strike": Range(0.8, 1.2)},
    target="price",
)


def rows_of(problem, n, seed=0, reach=1.5):
    """Rows of inputs even in the box; log-moneyness within `reach` reference standard deviations."""
    generator = torch.Generator().manual_seed(seed)
    columns = {}
    for axis, limits in zip(problem.coordinates, problem.box.values(), strict=True):
        share = torch.rand(n, generator=generator, dtype=torch.float64)
        if axis.input == "log_moneyness":
            columns[axis.input] = (2 * share - 1) * reach
        elif limits.scale == "log":
            columns[axis.input] = limits.low * torch.exp(share * math.log(limits.high / limits.low))
        else:
            columns[axis.input] = limits.low + share * (limits.high - limits.low)
    rows = torch.stack(list(columns.values()), 1)
    if "log_moneyness" in columns:
        place = problem.inputs.index("log_moneyness")
        rows[:, place] *= problem.reference_vol(rows) * problem.expiry(columns).sqrt()
    return rows


def table_of(problem, inputs, value, std_error=None, gradient=None, law=None):
    return LabelTable(
        problem.inputs,
        inputs,
        value,
        torch.zeros_like(value) if std_error is None else std_error,
        gradient,
        None,
        torch.arange(len(value)) if law is None else law,
        problem=problem,
        hash="hand-made",
        left_out={},
    )


def quick(epochs=20, hidden=(16, 16), batch_size=128, **settings):
    trainer = Trainer(
        max_epochs=epochs, batch_size=batch_size, optimizer=AdamW(lr=2e-2, weight_decay=0.0), schedule=OneCycle()
    )
    network = qfml.MLP(hidden=hidden, activation="silu")
    return SurrogateTraining(**{"trainer": trainer, "network": network, "n_seeds": 1} | settings)
