"""Closed forms on several lognormal assets: Margrabe's exchange, Stulz's best or worst of two, geometric basket."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pricers.black.price import black_call_put
from pricers.estimate import Estimate
from pricers.instruments.base import call_sign
from pricers.instruments.basket import Basket
from pricers.market import Market
from pricers.models.black_scholes import BlackScholes
from pricers.normal import normal_cdf
from pricers.parameters import broadcast_shape
from pricers.quadrature import gauss_legendre

__all__ = [
    "FORMULAS",
    "best_of_two_price",
    "bivariate_normal_cdf",
    "exchange_price",
    "geometric_basket_price",
]

HIGH_CORRELATION = 0.925  # from here on Genz expands around correlation 1
N_NODES = 20  # Gauss-Legendre; enough for 1e-15 up to HIGH_CORRELATION


def exchange_price(received: Tensor, given: Tensor, std: Tensor) -> Tensor:
    r"""Undiscounted price $E(X - Y)^+ = F_X \Phi(d) - F_Y \Phi(d - s)$ of the option to exchange lognormal Y for X.

    $d = \log(F_X / F_Y) / s + s / 2$. A constant Y is a strike, and the formula Black's.

    Args:
        received: forward $F_X$ of what is received, above 0.
        given: forward $F_Y$ of what is given up, above 0.
        std: $s$, standard deviation of $\log(X / Y)$, 0 or more.

    Returns:
        The broadcast shape of the arguments.

    References:
        Margrabe (1978), The value of an option to exchange one asset for another, eq. 7.

    >>> one = torch.tensor(1.0, dtype=torch.float64)
    >>> round(exchange_price(one, one, 0.2 * one).item(), 10)
    0.0796556746
    """
    return black_call_put(received, given, std)[0]


def bivariate_normal_cdf(x: Tensor, y: Tensor, correlation: Tensor) -> Tensor:
    r"""Probability $P(X \le x, Y \le y)$ of two standard normals, to about 1e-15; differentiable in all arguments.

    $$\Phi(x)\Phi(y) + \frac{1}{2\pi} \int_0^{\arcsin \rho}
      \exp\Big(-\frac{x^2 + y^2 - 2 x y \sin t}{2 \cos^2 t}\Big)\,dt$$

    by Gauss-Legendre, and by an expansion around $|\rho| = 1$ where the correlation is high.

    Args:
        x: upper bound of the first, finite.
        y: upper bound of the second, finite.
        correlation: in (-1, 1).

    Returns:
        The broadcast shape of the arguments.

    References:
        Drezner and Wesolowsky (1990), On the computation of the bivariate normal integral.
        Genz (2004), Numerical computation of rectangular bivariate and trivariate normal and t probabilities.

    >>> zero = torch.tensor(0.0, dtype=torch.float64)
    >>> round(bivariate_normal_cdf(zero, zero, zero + 0.5).item(), 12)
    0.333333333333
    """
    high = correlation.abs() >= HIGH_CORRELATION
    # Both branches are differentiated: each gets an argument that it is made for.
    moderate = _by_arcsine(x, y, torch.where(high, 0.5, correlation))
    return torch.where(high, _around_one(x, y, torch.where(high, correlation, 0.95)), moderate)


def _by_arcsine(x: Tensor, y: Tensor, correlation: Tensor) -> Tensor:
    """Genz (2004), eq. 3."""
    nodes, weights = gauss_legendre(N_NODES, x)
    half = 0.5 * correlation.asin()
    sine = (half.unsqueeze(-1) * (nodes + 1.0)).sin()
    squares, product = 0.5 * (x**2 + y**2), x * y
    exponent = (sine * product.unsqueeze(-1) - squares.unsqueeze(-1)) / (1.0 - sine**2)
    integral = half * (exponent.exp() * weights).sum(-1)
    return integral / (2.0 * math.pi) + normal_cdf(x) * normal_cdf(y)


def _around_one(x: Tensor, y: Tensor, correlation: Tensor) -> Tensor:
    """Genz (2004), eq. 6: the distance to correlation +-1, its leading terms integrated in closed form."""
    positive = correlation > 0
    h, k = -x, torch.where(positive, -y, y)  # upper orthant of (X, +-Y), whose correlation is |rho|
    square = ((1.0 - correlation) * (1.0 + correlation)).clamp(min=torch.finfo(x.dtype).eps ** 2)
    a = square.sqrt()
    gap, product = (h - k).abs(), h * k
    gap2 = gap**2
    c, d = (4.0 - product) / 8.0, (12.0 - product) / 16.0
    series = 1.0 - c * (gap2 - square) * (1.0 - d * gap2 / 5.0) / 3.0 + c * d * square**2 / 5.0
    leading = a * _bounded_exp(-0.5 * (gap2 / square + product)) * series
    tail = math.sqrt(2.0 * math.pi) * normal_cdf(-gap / a) * gap
    leading = leading - _bounded_exp(-0.5 * product) * tail * (1.0 - c * gap2 * (1.0 - d * gap2 / 5.0) / 3.0)
    nodes, weights = gauss_legendre(N_NODES, x)
    half = 0.5 * a.unsqueeze(-1)
    x2 = (half * (nodes + 1.0)) ** 2
    root = (1.0 - x2).sqrt()
    product, gap2 = product.unsqueeze(-1), gap2.unsqueeze(-1)
    c, d = c.unsqueeze(-1), d.unsqueeze(-1)
    # exp(first) (exp(second) / root - series), with the exponents joined: each alone may overflow
    first = -0.5 * (gap2 / x2 + product)
    whole = _bounded_exp(first - product * (1.0 - root) / (2.0 * (1.0 + root))) / root
    rest = (weights * half * (whole - _bounded_exp(first) * (1.0 + c * x2 * (1.0 + d * x2)))).sum(-1)
    distance = -(leading + rest) / (2.0 * math.pi)
    same_sign = distance + normal_cdf(-torch.maximum(h, k))
    opposite = -distance + (normal_cdf(k) - normal_cdf(h)).clamp(min=0.0)
    return torch.where(positive, same_sign, opposite)


def _bounded_exp(exponent: Tensor) -> Tensor:
    """exp, 0 with a gradient of 0 where it would vanish or, beside a factor that vanishes faster, overflow."""
    usable = (exponent > -100.0) & (exponent < 100.0)
    return torch.where(usable, torch.where(usable, exponent, 0.0).exp(), 0.0)


def best_of_two_price(
    forwards: Tensor, strike: Tensor, stds: Tensor, correlation: Tensor, option: str = "call", on: str = "max"
) -> Tensor:
    r"""Undiscounted price of a call or put on the larger or the smaller of two lognormal assets.

    With $\Phi_2$ the bivariate normal cdf, $s^2 = s_1^2 + s_2^2 - 2 \rho s_1 s_2$,
    $a_i = \log(F_i / K) / s_i + s_i / 2$, $b_i = a_i - s_i$ and $y_i = \log(F_i / F_j) / s + s / 2$ the call on the
    larger one is

    $$F_1 \Phi_2(a_1, y_1; \tfrac{s_1 - \rho s_2}{s}) + F_2 \Phi_2(a_2, y_2; \tfrac{s_2 - \rho s_1}{s})
      - K (1 - \Phi_2(-b_1, -b_2; \rho)),$$

    each probability under the measure whose numeraire is what is paid; the others follow in the same way.

    Args:
        forwards: $F_1, F_2$, above 0; shape `*batch 2`.
        strike: $K$, above 0; shape `*batch`.
        stds: standard deviations $s_1, s_2$ of the log prices at expiry, above 0; shape `*batch 2`.
        correlation: $\rho$ of the log prices, in (-1, 1); shape `*batch`.
        option: "call" or "put".
        on: "max" or "min".

    Returns:
        Shape `*batch`.

    References:
        Stulz (1982), Options on the minimum or the maximum of two risky assets, eqs. 11, 14 and 15.

    >>> number = lambda *values: torch.tensor(values, dtype=torch.float64)
    >>> price = best_of_two_price(number(100, 100), number(100)[0], number(0.3, 0.3), number(0.5)[0])
    >>> round(price.item(), 6)
    18.501692
    """
    (f1, f2), (s1, s2) = forwards.unbind(-1), stds.unbind(-1)
    sign, side = call_sign(option), 1.0 if on == "max" else -1.0
    s = ((s1 - s2) ** 2 + 2.0 * (1.0 - correlation) * s1 * s2).sqrt()
    a1, a2 = (f1 / strike).log() / s1 + 0.5 * s1, (f2 / strike).log() / s2 + 0.5 * s2
    y1 = (f1 / f2).log() / s + 0.5 * s
    y2 = s - y1
    rho1, rho2 = (s1 - correlation * s2) / s, (s2 - correlation * s1) / s
    chosen = sign * side  # the asset is in the money (sign) and is the one that counts (side)
    first = bivariate_normal_cdf(sign * a1, side * y1, chosen * rho1)
    second = bivariate_normal_cdf(sign * a2, side * y2, chosen * rho2)
    both = bivariate_normal_cdf(-side * (a1 - s1), -side * (a2 - s2), correlation)  # max: both below, min: both above
    # A call on the larger pays unless both are below, a put on the larger only then; the smaller the other way round.
    pays = 1.0 - both if chosen > 0 else both
    return sign * (f1 * first + f2 * second - strike * pays)


def geometric_basket_price(
    forwards: Tensor, strike: Tensor, expiry: Tensor, weights: Tensor, vols: Tensor, correlation: Tensor, option: str
) -> Tensor:
    r"""Undiscounted price of a call or put on the geometric basket $G = W \prod_i S_i^{w_i / W}$, $W = \sum_i w_i$.

    By the inequality of the means $G$ lies below the basket $\sum_i w_i S_i$ when the assets are near each other: a
    control variate for it. $\log G$ is normal.

    Args:
        forwards: above 0, shape `*batch n_assets`.
        strike: above 0, shape `*batch`.
        expiry: years, shape `*batch`.
        weights: $w_i$, 0 or more, shape `*batch n_assets`.
        vols: annual volatilities, shape `*batch n_assets`.
        correlation: shape `*batch n_assets n_assets`.
        option: "call" or "put".

    Returns:
        Shape `*batch`.

    References:
        Gentle (1993), Basket weaving.

    >>> number = lambda *values: torch.tensor(values, dtype=torch.float64)
    >>> args = number(100, 100), number(100)[0], number(1)[0], number(0.5, 0.5), number(0.2, 0.2), torch.eye(2).double()
    >>> round(geometric_basket_price(*args, "call").item(), 4)
    5.1256
    """
    total = weights.sum(-1)
    share = weights / total.unsqueeze(-1)
    covariance = correlation * vols.unsqueeze(-1) * vols.unsqueeze(-2)
    variance = (share.unsqueeze(-2) @ covariance @ share.unsqueeze(-1))[..., 0, 0] * expiry
    drift = -0.5 * (share * vols**2).sum(-1) * expiry
    forward = total * ((share * forwards.log()).sum(-1) + drift + 0.5 * variance).exp()
    pair = (forward, strike) if option == "call" else (strike, forward)
    return exchange_price(*pair, variance.sqrt())


def _refusal(instrument: Basket, model: BlackScholes, market: Market) -> str | None:
    """Why there is no closed form, or None."""
    if market.dividends is not None:
        return "assets that pay cash dividends are not lognormal"
    if instrument.weights is not None:
        return "a weighted sum of lognormal assets has no closed form; simulate it"
    if model.n_assets != 2:
        return f"closed forms on={instrument.on!r} exist for two assets, the model has {model.n_assets}; simulate it"
    if instrument.on == "spread" and bool((instrument.strike.detach() != 0).any()):
        return "a spread has a closed form at strike 0 only (Margrabe); simulate it"
    return None


def basket_formula(instrument: Basket, model: BlackScholes, market: Market) -> Estimate:
    """Two assets under Black-Scholes: the best, the worst, and the exchange.

    Raises:
        ValueError: there is no closed form.
    """
    reason = _refusal(instrument, model, market)
    if reason is not None:
        raise ValueError(reason)
    assert model.correlation is not None
    broadcast_shape(instrument=instrument.batch_shape, model=model.batch_shape, market=market.batch_shape(2))
    expiry = instrument.expiry
    stds = model.vol * expiry.sqrt().unsqueeze(-1)
    forwards, correlation = market.asset_forwards(expiry), model.correlation[..., 0, 1]
    if instrument.on == "spread":
        (f1, f2), (s1, s2) = forwards.unbind(-1), stds.unbind(-1)
        std = ((s1 - s2) ** 2 + 2.0 * (1.0 - correlation) * s1 * s2).sqrt()
        value = exchange_price(f1, f2, std) if instrument.option == "call" else exchange_price(f2, f1, std)
    else:
        value = best_of_two_price(
            forwards, instrument.strike, stds, correlation, instrument.option, on=str(instrument.on)
        )
    return Estimate(value * market.discount(expiry), std_error=0.0, engine="analytic")


FORMULAS = {(Basket, BlackScholes): basket_formula}
REFUSALS = {(Basket, BlackScholes): _refusal}
