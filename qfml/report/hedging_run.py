"""A finished hedging run as its page reads it: the figures, in basis points of the spot, and what things are called."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from qfml.errors import UserError
from qfml.report import formats
from qfml.report.folder import read_text

__all__ = ["HedgingRun", "hedging_arrays", "hedging_log", "instrument_label", "label_of"]

BPS = 1e4
ARRAYS = ("pnl", "surface_spot", "surface_policy", "surface_low", "surface_high", "map_times", "map_spot", "map_policy")
LABELS = {
    "policy": "Policy",
    "none": "No hedge",
    "black_scholes_delta": "Black-Scholes delta",
    "model_delta": "Model delta",
    "minimum_variance_delta": "Minimum-variance delta",
    "hull_white_delta": "Minimum-variance delta, fitted",
    "whalley_wilmott": "Whalley-Wilmott band",
    "leland": "Leland delta",
}


@dataclass(frozen=True)
class HedgingRun:
    """What the page is made of.

    Args:
        config: its settings, as they stand in `config.yaml`.
        metrics: `metrics.json`.
        arrays: `judgement.safetensors`.
        log: `log.jsonl`, a mapping for each member and epoch.
    """

    config: str
    metrics: dict[str, Any]
    arrays: dict[str, np.ndarray]
    log: list[dict[str, Any]]

    @property
    def found(self) -> dict[str, Any]:
        """What the judgement has found."""
        return self.metrics["judgement"]

    @property
    def cases(self) -> list[dict[str, Any]]:
        """One for each aversion and cost level; the first is that of the headline."""
        return self.found["cases"]

    @property
    def best(self) -> dict[str, Any]:
        """The policy of the first case that was best on the validation paths."""
        return self.cases[0]["policies"][self.cases[0]["best"]]

    @property
    def rival(self) -> dict[str, Any] | None:
        """The textbook hedge of the first case with the least risk; None where there is none."""
        return min(self.cases[0]["baselines"], key=lambda hedge: hedge["risk"]["value"], default=None)

    @property
    def spot(self) -> float:
        """Today's price of the first instrument."""
        return self.found["paths"]["spot"]

    @property
    def unit(self) -> str:
        """Of cash."""
        return f"bps of {self.found['paths']['instruments'][0]}"

    @property
    def of_cash(self) -> bool:
        """Whether the risk is an amount of cash; the quadratic one is its square."""
        return self.found["objective"] != "quadratic"

    @property
    def risk_unit(self) -> str:
        """Of the risk."""
        return "bps" if self.of_cash else "cash squared"

    @property
    def book(self) -> str:
        """What is owed, in words."""
        quantities = (f"{one['quantity']:g}".replace("-", formats.MINUS) for one in self.metrics["book"])
        pairs = zip(quantities, self.metrics["book"])
        return "; ".join(f"{quantity} {formats.TIMES} {_contract(one)}" for quantity, one in pairs)

    @property
    def instruments(self) -> str:
        """What is traded."""
        return ", ".join(map(instrument_label, self.found["paths"]["instruments"]))

    @property
    def aim(self) -> str:
        """What is minimised, and at what setting."""
        objective = self.metrics["training"]["objective"]
        kind = objective["kind"].replace("_", " ")
        words = {"entropic": "the entropic risk", "oce": "an optimized certainty equivalent"}.get(kind, f"the {kind}")
        dial, aversion = self.found["dial"], self.cases[0]["aversion"]
        return words if dial is None else f"{words} with {dial.replace('_', ' ')} {aversion:g}"

    @property
    def varies(self) -> str:
        """What the cases differ in first."""
        aversions = {case["aversion"] for case in self.cases}
        return (self.found["dial"] or "aversion").replace("_", " ") if len(aversions) > 1 else "cost level"

    def name_of(self, case: dict[str, Any]) -> str:
        """The case in words."""
        parts = [] if case["aversion"] is None else [f"{self.found['dial'].replace('_', ' ')} {case['aversion']:g}"]
        if len({each["cost_level"] for each in self.cases}) > 1 or not parts:
            parts.append(f"cost level {case['cost_level']:g}")
        return ", ".join(parts)

    def cash(self, value: Any, digits: int = 4) -> str:
        """An amount in basis points of the spot."""
        return formats.significant(BPS * value / self.spot, digits) if isinstance(value, float) else formats.MISSING

    def risk(self, value: Any, digits: int = 3) -> str:
        """A difference of risks in its unit."""
        return self.cash(value, digits) if self.of_cash else formats.significant(value, digits)


def label_of(name: str, inside: bool = False) -> str:
    """What a hedge is called; `inside` a sentence. One of a realised vol says so, the second of a kind has its number.

    >>> label_of("leland"), label_of("black_scholes_delta_2"), label_of("none", inside=True)
    ('Leland delta', 'Black-Scholes delta 2', 'no hedge')
    >>> label_of("leland_realised")
    'Leland delta, realised vol'
    """
    kind = max((known for known in LABELS if name == known or name.startswith(f"{known}_")), key=len, default=None)
    if kind is None:
        return name
    tails = [{"realised": ", realised vol"}.get(tail, f" {tail}") for tail in name[len(kind) :].split("_")[1:]]
    label = LABELS[kind] + "".join(tails)
    proper = label.startswith(("Black", "Whalley", "Leland"))
    return label if proper or not inside else label[0].lower() + label[1:]


def instrument_label(name: str) -> str:
    """What a hedging instrument is called: those of a model by strike and time, others as they are.

    >>> instrument_label("put 95 0.164384"), instrument_label("variance swap 1.5"), instrument_label("spot")
    ('put (strike 95, 60 days)', 'variance swap (1.5 years)', 'spot')
    """
    found = re.fullmatch(r"(call|put|variance swap)(?: ([\d.e+-]+))? ([\d.e+-]+)", name)
    if found is None:
        return name
    kind, strike, expiry = found.groups()
    try:
        return f"{kind} ({'' if strike is None else f'strike {strike}, '}{_duration(float(expiry))})"
    except ValueError:  # a column of a file that looks like one
        return name


def _duration(years: float) -> str:
    return f"{years:.4g} years" if years >= 1 else f"{365 * years:.4g} days"


def _contract(position: dict[str, Any]) -> str:
    contract = position["instrument"]
    words = [
        formats.model_name(contract["kind"]),
        *([contract["barrier_kind"]] if "barrier_kind" in contract else []),
        *([contract["option"]] if isinstance(contract.get("option"), str) else []),
    ]
    told = [
        f"{name} {contract[name]:.4g}" for name in ("strike", "barrier") if isinstance(contract.get(name), (int, float))
    ]
    if isinstance(expiry := contract.get("expiry"), (int, float)):
        told.append(f"expiry {_duration(expiry)}")
    return " ".join(words) + (f" ({', '.join(told)})" if told else "")


def hedging_arrays(folder: Path) -> dict[str, np.ndarray]:
    """`judgement.safetensors` of a run; UserError says what is wrong with it."""
    path = folder / "judgement.safetensors"
    if not path.is_file():
        raise UserError(f"the run folder {folder} has no `{path.name}`: run it again")
    try:
        arrays = safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}); run it again") from None
    missing = [f"`{name}`" for name in ARRAYS if name not in arrays]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}; it was written by another version: run it again")
    return arrays


def hedging_log(folder: Path) -> list[dict[str, Any]]:
    """`log.jsonl` of a run; UserError names the line that is damaged."""
    path = folder / "log.jsonl"
    rows = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        try:
            row = json.loads(line)
            rows.append({name: row[name] for name in ("member", "seed", "epoch", "val_loss")})
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged in line {number} ({error}); run it again") from None
    return rows
