"""Numbers as a reader expects them: sensible digits, units, a true minus sign, and "n/a" where there is none."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any

from qfml.report.markup import Html, el, join

__all__ = [
    "bps",
    "count",
    "day",
    "interval",
    "label_of",
    "metric_label",
    "metric_value",
    "percent",
    "probability",
    "ratio",
    "significant",
    "sort_strategies",
    "span",
    "times",
    "years",
]

MISSING = "n/a"
MINUS, TIMES, DASH = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}", "\N{EN DASH}"

STRATEGY_LABELS = {
    "network": "Network",
    "buy_and_hold": "Buy and hold",
    "ridge": "Ridge",
    "momentum": "Momentum",
    "har": "HAR",
}


def _number(value: Any) -> float | None:
    """The value as a finite or infinite float; None where it is absent, NaN or not a number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
        return None
    return float(value)


def _signed(value: float, written: str) -> str:
    # a rounded zero carries no sign
    is_zero = not any(digit in written for digit in "123456789")
    return f"{MINUS}{written}" if value < 0 and not is_zero else written


def _written(value: Any, write: Callable[[float], str], unit: str = "") -> str:
    number = _number(value)
    if number is None:
        return MISSING
    return _signed(number, "∞" if math.isinf(number) else write(abs(number))) + unit


def ratio(value: Any) -> str:
    """Two decimals: Sharpe ratios and their like."""
    return _written(value, lambda x: f"{x:.2f}")


def percent(value: Any) -> str:
    """A fraction as a percentage with about three digits.

    Examples:
        >>> percent(0.1234), percent(-0.01234), percent(0.00012)
        ('12.3%', '−1.23%', '0.012%')
    """
    return _written(value, lambda x: f"{100 * x:,.{1 if x >= 0.0995 else 2 if x >= 0.00095 else 3}f}", "%")


def probability(value: Any) -> str:
    """Three decimals; very small ones as a bound."""
    number = _number(value)
    return "< 0.001" if number is not None and 0 < number < 0.0005 else _written(value, lambda x: f"{x:.3f}")


def count(value: Any) -> str:
    """A whole number with thousands separated."""
    return _written(value, lambda x: f"{x:,.0f}")


def significant(value: Any, digits: int = 4) -> str:
    """A number of unknown scale with `digits` significant digits."""

    def write(x: float) -> str:
        if x and not 1e-4 <= x < 1e7:
            return f"{x:.{digits - 1}e}"
        decimals = max(0, digits - 1 - math.floor(math.log10(x))) if x else 0
        return f"{x:,.{decimals}f}"

    return _written(value, write)


def years(value: Any) -> str:
    """A duration in years."""
    return _written(value, lambda x: f"{x:,.1f}" if x < 1000 else f"{x:,.0f}", " years")


def times(value: Any) -> str:
    """A multiple of the capital."""
    return _written(value, lambda x: f"{x:,.1f}" if x >= 9.95 else f"{x:.2f}", TIMES)


def bps(value: Any) -> str:
    """A cost that is given in basis points."""
    return _written(value, lambda x: f"{x:.2f}".removesuffix("0").removesuffix(".0"), " bps")


def interval(bounds: Any, write: Callable[[Any], str]) -> str:
    """`[low, high]`, or nothing where no interval was stated."""
    if not isinstance(bounds, (list, tuple)) or len(bounds) != 2:
        return ""
    return f"[{write(bounds[0])}, {write(bounds[1])}]"


# What each metric is called and how it is written; what is not listed keeps its own name and four digits.
METRICS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "sharpe_ratio": ("Sharpe ratio", ratio),
    "sortino_ratio": ("Sortino ratio", ratio),
    "calmar_ratio": ("Calmar ratio", ratio),
    "omega_ratio": ("Omega ratio", ratio),
    "annualised_return": ("Annual return", percent),
    "annualised_vol": ("Annual vol", percent),
    "mean_return": ("Mean return", percent),
    "total_return": ("Total return", percent),
    "max_drawdown": ("Max drawdown", percent),
    "value_at_risk": ("Value at risk", percent),
    "expected_shortfall": ("Expected shortfall", percent),
    "hit_rate": ("Hit rate", percent),
    "turnover": ("Turnover per year", times),
    "exposure": ("Mean exposure", ratio),
    "cost": ("Cost", percent),
    "annualised_cost": ("Cost per year", percent),
    "mse": ("MSE", significant),
    "rmse": ("RMSE", significant),
    "mae": ("MAE", significant),
    "r2": ("R²", significant),
    "r2_score": ("R²", significant),
    "r_squared": ("R²", significant),
    "rank_ic": ("Rank IC", probability),
    "ic": ("IC", probability),
    "cross_sectional_rank_ic": ("Cross-sectional rank IC", probability),
    "accuracy": ("Accuracy", percent),
    "balanced_accuracy": ("Balanced accuracy", percent),
    "precision": ("Precision", percent),
    "recall": ("Recall", percent),
    "f1": ("F1", probability),
    "f1_score": ("F1", probability),
    "roc_auc": ("ROC-AUC", probability),
    "brier": ("Brier score", probability),
    "brier_score": ("Brier score", probability),
    "log_loss": ("Log loss", probability),
    "ece": ("Expected calibration error", probability),
    "expected_calibration_error": ("Expected calibration error", probability),
    "n_periods": ("Periods", count),
    "n_obs": ("Observations", count),
    "skew": ("Skew", ratio),
    "kurtosis": ("Kurtosis (raw)", ratio),
}


def metric_label(name: str) -> str:
    """The name of a metric for a column head."""
    return METRICS[name][0] if name in METRICS else name.replace("_", " ").capitalize()


def metric_value(name: str, value: Any) -> str:
    """The value of a metric in its own unit."""
    return METRICS[name][1](value) if name in METRICS else significant(value)


def label_of(strategy: str) -> str:
    """The name of a strategy for a reader."""
    return STRATEGY_LABELS.get(strategy) or strategy.replace("_", " ").capitalize()


def sort_strategies(names: Iterable[str]) -> list[str]:
    """The network first, then the baselines in a fixed order, then anything else by name."""
    order = list(STRATEGY_LABELS)
    return sorted(names, key=lambda name: (order.index(name) if name in order else len(order), name))


def model_name(kind: str) -> str:
    """The name of a model or an instrument as it is written in a sentence.

    >>> model_name("rough_bergomi"), model_name("heston"), model_name("local_vol"), model_name("european")
    ('rough Bergomi', 'Heston', 'local vol', 'European')
    """
    words = kind.split("_")
    return " ".join(_PROPER.get(word, word) for word in words)


_PROPER = {name.lower(): name for name in ("Bates", "Bergomi", "Black", "Heston", "Merton", "SABR", "Scholes")}
_PROPER |= {name.lower(): name for name in ("SVI", "SSVI", "American", "Asian", "Bermudan", "European")}


def day(value: Any) -> str:
    """A moment without the parts that say nothing: the date alone where the time is midnight."""
    try:
        moment = datetime.fromisoformat(str(value))
    except ValueError:
        return str(value)
    is_midnight = (moment.hour, moment.minute, moment.second) == (0, 0, 0)
    return moment.strftime("%Y-%m-%d" if is_midnight else "%Y-%m-%d %H:%M")


def span(start: Any, end: Any) -> Html:
    """From one moment to another; a line may end between the two, not within one."""
    return join([el("span", day(start), class_="nb"), f" {DASH} ", el("span", day(end), class_="nb")])
