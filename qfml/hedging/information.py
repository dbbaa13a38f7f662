r"""What a policy may see at each trading date: features by name, all of order one, none of them from the future.

With $\sigma$ the unit of volatility of the market, $T$ the horizon and $K$ the strike of the book:

| name | feature at $t$ |
|---|---|
| `log_moneyness` | $\log(K / F_t) / (\sigma \sqrt T)$, $F_t$ the forward to the horizon |
| `time_to_horizon` | $(T - t) / T$ |
| `call_delta` | Black and Scholes's delta of one call of strike $K$ to the horizon, with the vol $\sigma$ |
| `book_delta` | that of all European options of the book, owed less held, over the book's size; 0 when expired |
| `vol` | $\sqrt{v_t} / \sigma$, $v_t$ the instantaneous variance; under SABR its volatility over today's |
| `variance` | $v_t / \sigma^2$ |
| `realised_vol` | root mean square of the past log returns, per year, over $\sigma$ |
| `prices` | prices of the hedging instruments but the spot, each over its typical size |
| `running_average`, `running_extremum` | $\log(\cdot / K) / (\sigma \sqrt T)$, of a contract of the book |
| `alive` | 1 until the barrier is touched |
| `realised_variance` | so far, over $\sigma^2$ |
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from qfml.errors import ConfigError
from qfml.hedging.book_delta import Options

__all__ = ["FEATURES", "NEEDED", "Seen", "features"]


@dataclass(frozen=True, eq=False)
class Seen:
    """Paths on the trading dates, of which features are made.

    Args:
        times: trading dates in years, shape `(L,)`.
        forward: of the spot to the horizon, shape `(B, L)`.
        reference: strike of the book, or today's forward where it has none.
        vol: the unit of volatility, per year.
        prices: of the hedging instruments but the spot, over their typical sizes, by name; each `(B, L)`.
        observables: of the book, by name; each `(B, L)`.
        variance: instantaneous, per year, `(B, L)`; None where it cannot be seen.
        relative_vol: volatility over today's, `(B, L)`; None where the variance is known, or nothing is.
        realised_vol: of past returns, per year, `(B, L)`; None where the market has no returns before its dates.
        date: number of the one trading date of each path, `(B,)`, where L is 1; None: all dates.
        options: of the book, where its delta is seen.
    """

    times: Tensor
    forward: Tensor
    reference: float | Tensor
    vol: float | Tensor
    prices: Mapping[str, Tensor] = field(default_factory=dict)
    observables: Mapping[str, Tensor] = field(default_factory=dict)
    variance: Tensor | None = None
    relative_vol: Tensor | None = None
    realised_vol: Tensor | None = None
    date: Tensor | None = None
    options: Options | None = None

    @property
    def deviation(self) -> Tensor:
        """The unit of log prices."""
        return self.vol * self.times[-1].sqrt()

    @property
    def now(self) -> Tensor:
        """Years of the dates, `(L,)`, or `(B, 1)` at one date of each path."""
        return self.times if self.date is None else self.times[self.date, None]

    @property
    def left(self) -> Tensor:
        """Years to the horizon, of the same shape."""
        return self.times[-1] - self.now


def features(names: tuple[str, ...], seen: Seen) -> tuple[Tensor, tuple[str, ...]]:
    """The features of these names, float32, shape `(B, L, F)`, and what each is called.

    Raises:
        ConfigError: a name that is not known, or that cannot be seen on this market with this book.

    Example:
        >>> times = torch.tensor([0.0, 0.25], dtype=torch.float64)
        >>> made, called = features(("time_to_horizon",), Seen(times, torch.ones(1, 2), 1.0, 0.2))
        >>> made[0, :, 0].tolist(), called
        ([1.0, 0.0], ('time_to_horizon',))
    """
    if twice := [name for place, name in enumerate(names) if name in names[:place]]:
        raise ConfigError(f"`information` names {twice[0]!r} twice: a policy sees it once, leave the other out")
    columns: dict[str, Tensor] = {}
    for name in names:
        columns |= _named(name, seen)
    shape = seen.forward.shape
    stacked = torch.stack([column.to(torch.float32).expand(shape) for column in columns.values()], dim=-1)
    return stacked, tuple(columns)


def _named(name: str, seen: Seen) -> dict[str, Tensor]:
    if name == "prices":
        if not seen.prices:
            raise ConfigError("`information` names 'prices', but the spot is the only hedging instrument; leave it out")
        return dict(seen.prices)
    if name in seen.observables:
        return {name: _observable(name, seen)}
    if name not in FEATURES:
        known = (*FEATURES, "prices", *seen.observables)
        close = difflib.get_close_matches(name, known, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ConfigError(f"`information` names {name!r}, which is not known{hint}; known here: {', '.join(known)}")
    column = FEATURES[name](seen)
    if column is None:
        raise ConfigError(
            f"`information` names {name!r}, which cannot be seen on this market: {UNSEEN[name]}; leave it out"
        )
    return {name: column}


def _observable(name: str, seen: Seen) -> Tensor:
    value = seen.observables[name]
    if name.startswith(("running_average", "running_extremum")):
        return torch.log(value / seen.reference) / seen.deviation
    return value / seen.vol**2 if name.startswith("realised_variance") else value


def _log_moneyness(seen: Seen) -> Tensor:
    return torch.log(seen.reference / seen.forward) / seen.deviation


def _time_to_horizon(seen: Seen) -> Tensor:
    return seen.left / seen.times[-1]


def _call_delta(seen: Seen) -> Tensor:
    deviation = seen.vol * seen.left.sqrt().clamp_min(1e-12)
    d1 = torch.log(seen.forward / seen.reference) / deviation + 0.5 * deviation
    return torch.special.ndtr(d1.to(torch.float32))  # ONNX runtimes have no error function of float64


def _book_delta(seen: Seen) -> Tensor | None:
    return None if seen.options is None else seen.options.delta(seen.forward, seen.now, seen.vol)


def _vol(seen: Seen) -> Tensor | None:
    return seen.relative_vol if seen.variance is None else seen.variance.sqrt() / seen.vol


def _variance(seen: Seen) -> Tensor | None:
    return None if seen.variance is None else seen.variance / seen.vol**2


def _realised_vol(seen: Seen) -> Tensor | None:
    return None if seen.realised_vol is None else seen.realised_vol / seen.vol


FEATURES: dict[str, Callable[[Seen], Tensor | None]] = {
    "log_moneyness": _log_moneyness,
    "time_to_horizon": _time_to_horizon,
    "call_delta": _call_delta,
    "book_delta": _book_delta,
    "vol": _vol,
    "variance": _variance,
    "realised_vol": _realised_vol,
}
NEEDED: dict[str, str | None] = {  # what must be observed on a date to know each; of "vol" what tells it differs
    "log_moneyness": "spot",
    "time_to_horizon": None,
    "call_delta": "spot",
    "book_delta": "spot",
    "vol": "variance",
    "variance": "variance",
    "realised_vol": "realised_vol",
}
UNSEEN = {
    "book_delta": "it tells nothing of the options of the book",
    "vol": "the instantaneous volatility of recorded prices is not observed; 'realised_vol' is",
    "variance": "the instantaneous variance is not observed; 'realised_vol' is on recorded prices, 'vol' under SABR",
    "realised_vol": "there are no returns before the first trading date; give a `window`, or take 'vol' under a model",
}
