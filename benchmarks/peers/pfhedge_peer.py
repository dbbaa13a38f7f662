"""pfhedge, in an environment of its own: reads one JSON request a line, answers with one JSON object a line.

Requests: {"task": "heston", "threads", "seed", "n_paths", "n_steps", "expiry", "spot", "parameters", "strike"},
{"task": "formula", "threads", "name", "points", "copies", "n_shown"}, {"task": "hedging", "threads", "seed", "n_paths",
"n_steps", "epochs", "risk_aversion", "cost", "lr", "n_judged"}, {"task": "versions"}. `"peak": true` adds by how
much the process grew.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pfhedge
import torch
from pfhedge.instruments import BrownianStock, EuropeanOption
from pfhedge.nn import EntropicRiskMeasure, Hedger, MultiLayerPerceptron
from pfhedge.nn.functional import bs_european_binary_price, bs_european_price, bs_lookback_price
from pfhedge.stochastic import generate_heston


def peak_kib() -> int:
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1])


def heston(request: dict) -> dict:
    """Mean and variance of what a call pays, without rates, in float32 as pfhedge simulates by default."""
    torch.manual_seed(request["seed"])
    spot, parameters = request["spot"], dict(request["parameters"])
    v0, n_steps = parameters.pop("v0"), request["n_steps"]
    begin = time.perf_counter()
    paths = generate_heston(
        request["n_paths"],
        n_steps + 1,  # it counts points
        init_state=(spot, v0),
        dt=request["expiry"] / n_steps,
        dtype=torch.float32,
        **parameters,
    )
    last = paths.spot[:, -1].double()
    paid = (last - request["strike"]).clamp(min=0.0)
    mean = float(paid.mean())
    seconds = time.perf_counter() - begin
    return {"seconds": seconds, "mean": mean, "variance": float(paid.var())}


def formula(request: dict) -> dict:
    """Time of one closed form at the points, repeated, and its first values, for the comparison."""
    points = {name: torch.tensor(values, dtype=torch.float64) for name, values in request["points"].items()}
    repeated = {name: values.repeat(request["copies"]) for name, values in points.items()}
    begin = time.perf_counter()
    values = FORMULAS[request["name"]](**repeated)
    return {"seconds": time.perf_counter() - begin, "values": values[: request["n_shown"]].tolist()}


FORMULAS = {
    "European": lambda log_moneyness, expiry, vol, maximum: bs_european_price(log_moneyness, expiry, vol, strike=100.0),
    "Digital": lambda log_moneyness, expiry, vol, maximum: bs_european_binary_price(log_moneyness, expiry, vol),
    "Lookback": lambda log_moneyness, expiry, vol, maximum: bs_lookback_price(
        log_moneyness, maximum, expiry, vol, strike=100.0
    ),
}


def hedging(request: dict) -> dict:
    """A short call at the money, spot 1, vol .2, daily steps, hedged by 4 layers of 32: seconds of the fit, price."""
    torch.manual_seed(request["seed"])
    stock = BrownianStock(sigma=0.2, cost=request["cost"], dt=1 / 365)
    derivative = EuropeanOption(stock, maturity=request["n_steps"] / 365)
    hedger = Hedger(
        MultiLayerPerceptron(n_layers=4, n_units=32),
        ["log_moneyness", "expiry_time", "volatility", "prev_hedge"],
        criterion=EntropicRiskMeasure(a=request["risk_aversion"]),
    )
    settings = {"n_paths": request["n_paths"], "verbose": False, "validation": False}
    hedger.fit(derivative, n_epochs=1, **settings)  # its lazy layers take their shapes
    begin = time.perf_counter()
    optimizer = torch.optim.Adam(hedger.parameters(), lr=request["lr"])
    hedger.fit(derivative, n_epochs=request["epochs"], optimizer=optimizer, **settings)
    seconds = time.perf_counter() - begin
    if not request["n_judged"]:
        return {"seconds": seconds}
    risks = []
    for _ in range(request["n_judged"]):
        with torch.no_grad():
            pnl = hedger.compute_pnl(derivative, n_paths=2**16).double()
        risks.append(torch.exp(-request["risk_aversion"] * pnl))
    losses = torch.cat(risks)
    price = losses.mean().log() / request["risk_aversion"]
    error = losses.std() / losses.mean() / request["risk_aversion"] / len(losses) ** 0.5
    return {"seconds": seconds, "price": float(price), "std_error": float(error)}


def answer(request: dict) -> dict:
    if request["task"] == "versions":
        return {"pfhedge": pfhedge.__version__, "torch": torch.__version__}
    torch.set_num_threads(request["threads"])
    work = {"heston": heston, "formula": formula, "hedging": hedging}[request["task"]]
    if not request.get("peak"):
        return work(request)
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")
    before = peak_kib()
    return work(request) | {"peak_kib": peak_kib() - before}


def main() -> None:
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
