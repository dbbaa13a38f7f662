"""A swaption cube: SABR at every expiry and tenor in one batch, and vols anywhere between them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from pricers import SABR, bachelier_implied_vol
from pricers.black import black_price
from qfml.calibration.sabr import sabr_vols
from qfml.calibration.sabr_smile import SabrSmile
from qfml.calibration.smile_result import summary
from qfml.calibration.smiles import Smiles, grouped
from qfml.calibration.swaption_cube import QUOTES, SwaptionCube
from qfml.errors import ConfigError, DataError

__all__ = ["SabrCube", "calibrate_cube"]


@dataclass(frozen=True, eq=False, repr=False)
class SabrCube:
    r"""SABR at the nodes of a cube of E expiries and T tenors; NaN where a node has no quotes.

    Between the nodes $\alpha (F + s)^{\beta-1}$ (a volatility, whatever the forward), rho and nu are bilinear in expiry
    and tenor; nothing is extrapolated. The forward is the caller's, or bilinear too.

    Args:
        model: what was fitted.
        expiries: years, shape (E,).
        tenors: years, shape (T,).
        forwards: swap rates, shape (E, T).
        shift: of forward and strike.
        params: alpha, beta, rho, nu, shape (E, T) each.
        std_error: likewise; infinite where the quotes do not determine them, NaN where there is none.
        identified: likewise; False where the quotes do not determine a parameter, or hardly.
        at_bound: likewise; True where a parameter is at its bound, or follows from numbers of the fit that are.
        correlation: shape (E, T, 4, 4).
        rmse_bps: basis points of the shifted-lognormal vol, shape (E, T).
        max_bps: largest error, likewise.
        residuals: vol of the model less that of each quote of the cube, shifted lognormal, shape (n,).
        n_quotes: shape (E, T).
        converged: shape (E, T).
        status: a sentence for each node.
        n_steps: shape (E, T).
        density_from: log((strike + shift) / (forward + shift)) above which the density is positive, shape (E, T).
        density_to: below which it is so.
        warnings: for each node.
        cube: what was calibrated to.
    """

    model: SabrSmile
    expiries: np.ndarray
    tenors: np.ndarray
    forwards: np.ndarray
    shift: float
    params: dict[str, np.ndarray]
    std_error: dict[str, np.ndarray]
    identified: dict[str, np.ndarray]
    at_bound: dict[str, np.ndarray]
    correlation: np.ndarray
    rmse_bps: np.ndarray
    max_bps: np.ndarray
    residuals: np.ndarray
    n_quotes: np.ndarray
    converged: np.ndarray
    status: tuple[tuple[str, ...], ...]
    n_steps: np.ndarray
    density_from: np.ndarray
    density_to: np.ndarray
    warnings: tuple[tuple[tuple[str, ...], ...], ...]
    cube: SwaptionCube

    def vol(self, expiry: Any, tenor: Any, strike: Any, forward: Any = None, *, quote: str = "lognormal") -> np.ndarray:
        """Vols at any expiry, tenor and strike inside the cube; arguments broadcast.

        NaN where Hagan's expansion gives no positive vol.

        Args:
            expiry: years.
            tenor: years.
            strike: decimal rate, above minus the shift.
            forward: swap rate; None: bilinear between those of the nodes.
            quote: "lognormal" (of the shifted rate) or "normal".

        Raises:
            DataError: a point outside the nodes, beside a node without parameters, or a rate not above minus the shift.
            ConfigError: `quote` is unknown.
        """
        if quote not in QUOTES:
            raise ConfigError(f'`quote` must be "lognormal" or "normal", got {quote!r}')
        expiry, tenor, strike = np.broadcast_arrays(
            *(np.asarray(part, dtype=np.float64) for part in (expiry, tenor, strike))
        )
        level, beta, rho, nu, between = self._between(expiry, tenor)
        forward = between if forward is None else np.broadcast_to(np.asarray(forward, dtype=np.float64), strike.shape)
        for name, rate in (("strike", strike), ("forward", forward)):
            if not (rate + self.shift > 0.0).all():
                raise DataError(f"`{name}` must be above minus the shift of {self.shift:g}, got {np.min(rate):g}")
        years, rate, place = (
            torch.from_numpy(np.array(part)) for part in (expiry, forward + self.shift, strike + self.shift)
        )
        parts = (torch.from_numpy(np.array(part)) for part in (level, beta, rho, nu))
        vols = sabr_vols(torch.log(place / rate), years, *parts)
        some = vols > 0.0
        if quote == "normal":
            call = place >= rate
            known = torch.where(some, vols, 1.0)
            values = [black_price(rate, place, years, known, option=option) for option in ("call", "put")]
            found = [
                bachelier_implied_vol(value, rate, place, years, option=option, errors="nan")
                for value, option in zip(values, ("call", "put"), strict=True)
            ]
            vols = torch.where(call, *found)
        return torch.where(some, vols, torch.nan).numpy()

    def _between(self, expiry: np.ndarray, tenor: np.ndarray) -> tuple[np.ndarray, ...]:
        """Level, beta, rho, nu and forward, bilinear in expiry and tenor."""
        axes = [_axis("expiry", expiry, self.expiries), _axis("tenor", tenor, self.tenors)]
        level = self.params["alpha"] * (self.forwards + self.shift) ** (self.params["beta"] - 1.0)
        tables = (level, self.params["beta"], self.params["rho"], self.params["nu"], self.forwards)
        found = [np.zeros(expiry.shape) for _ in tables]
        for row, row_share in axes[0]:
            for column, column_share in axes[1]:
                share = row_share * column_share
                missing = (share > 0.0) & np.isnan(level[row, column])
                if missing.any():
                    at = np.argmax(missing.reshape(-1))
                    node = self.expiries[row.reshape(-1)[at]], self.tenors[column.reshape(-1)[at]]
                    raise DataError(
                        f"the node of expiry {node[0]:g} and tenor {node[1]:g} has no parameters, and the point lies "
                        "beside it; give that node quotes, or stay away from it"
                    )
                for values, table in zip(found, tables, strict=True):
                    values += np.where(share > 0.0, share * table[row, column], 0.0)
        return tuple(found)

    def pricer(self, expiry: float, tenor: float) -> SABR:
        """The model in `pricers` at an expiry and tenor, for a forward that is bilinear too.

        Raises:
            DataError: as `vol`.
        """
        level, beta, rho, nu, forward = self._between(np.asarray(expiry, dtype=float), np.asarray(tenor, dtype=float))
        alpha = float(level) * (float(forward) + self.shift) ** (1.0 - float(beta))
        return SABR(alpha=alpha, beta=float(beta), rho=float(rho), nu=float(nu), shift=self.shift)

    def __str__(self) -> str:
        """A table of the nodes."""
        lines = [f"sabr cube: beta {self.model.beta:g}, shift {self.shift:g}"]
        lines.append(
            f"{'expiry':>8}{'tenor':>8}{'quotes':>8}{'alpha':>12}{'rho':>10}{'nu':>10}{'rmse bps':>10}  status"
        )
        for row, expiry in enumerate(self.expiries):
            for column, tenor in enumerate(self.tenors):
                numbers = [self.params[name][row, column] for name in ("alpha", "rho", "nu")]
                lines.append(
                    f"{expiry:>8.4g}{tenor:>8.4g}{self.n_quotes[row, column]:>8}{numbers[0]:>12.6g}{numbers[1]:>10.4f}"
                    f"{numbers[2]:>10.4f}{self.rmse_bps[row, column]:>10.3f}  {self.status[row][column]}"
                )
                lines += [f"! expiry {expiry:g}, tenor {tenor:g}: {line}" for line in self.warnings[row][column]]
        return "\n".join(lines)

    __repr__ = __str__


def calibrate_cube(
    cube: SwaptionCube,
    beta: Any,
    *,
    at_the_money: bool = False,
    **options: Any,
) -> SabrCube:
    """SABR at every node of a cube, all of them in one batch.

    Args:
        cube: quotes; normal vols are turned into shifted-lognormal ones by way of their prices.
        beta: exponent of the shifted forward, in [0, 1]; the same at all nodes.
        at_the_money: whether alpha follows from the at-the-money vol.
        **options: `n_starts`, `max_steps` and `tolerance` of each node, see `FitOptions`.

    Raises:
        DataError: as `SwaptionCube.lognormal_vol`, or no quote has a weight.
        ConfigError: a beta that is no number in [0, 1], an option that is none or cannot be.
    """
    if beta is None:
        raise ConfigError("`beta` of a cube must be one number in [0, 1] for all nodes, got None; rates often take 0.5")
    model = SabrSmile(beta=beta, at_the_money=at_the_money)
    how = model.options(options)
    vol = cube.lognormal_vol()
    used = np.flatnonzero(np.isfinite(vol) & (cube.weight > 0.0))
    if not len(used):
        raise DataError("no quote of the cube has a vol and a weight above 0; give at least one of them both")
    expiries, rows = np.unique(cube.expiry, return_inverse=True)
    tenors = np.unique(cube.tenor)
    forward = cube.forward + cube.shift
    numbers = {
        "log_moneyness": np.log((cube.strike + cube.shift) / forward)[used],
        "expiry": cube.tenor[used],  # within an expiry the smiles are told apart by their tenors
        "vol": vol[used],
        "weight": cube.weight[used],
        "forward": forward[used],
    }
    smiles = grouped(rows[used], used, numbers, len(expiries))
    smiles = replace(
        smiles,
        expiry=torch.from_numpy(expiries)[smiles.surface],
        slot=torch.from_numpy(np.searchsorted(tenors, smiles.expiry.numpy())),
        shape=(len(expiries), len(tenors)),
    )
    fit = model.fit(smiles, how)
    numbers, warned = summary(model, smiles, fit)
    del numbers["expiries"], numbers["forwards"]
    residuals = np.full(len(vol), np.nan)
    quoted = smiles.place >= 0
    residuals[smiles.place[quoted].numpy()] = fit.errors[quoted].numpy()
    forwards = np.full((len(expiries), len(tenors)), np.nan)
    forwards[rows, np.searchsorted(tenors, cube.tenor)] = cube.forward
    return SabrCube(
        model=model,
        expiries=expiries,
        tenors=tenors,
        forwards=forwards,
        shift=float(cube.shift),
        **numbers,
        residuals=residuals,
        status=_by_node(smiles, fit.sentences, "no quotes"),
        warnings=_by_node(smiles, [tuple(lines) for lines in warned], ()),
        cube=cube,
    )


def _by_node(smiles: Smiles, values: list[Any], filler: Any) -> tuple[tuple[Any, ...], ...]:
    table = [[filler] * smiles.shape[1] for _ in range(smiles.shape[0])]
    for row, column, value in zip(smiles.surface.tolist(), smiles.slot.tolist(), values, strict=True):
        table[row][column] = value
    return tuple(tuple(row) for row in table)


def _axis(name: str, x: np.ndarray, nodes: np.ndarray) -> list[tuple[Any, Any]]:
    """Nodes to both sides of each point, with their shares."""
    if not ((x >= nodes[0]) & (x <= nodes[-1])).all():
        raise DataError(
            f"`{name}` must lie in [{nodes[0]:g}, {nodes[-1]:g}], where there are quotes, "
            f"got {x.min():g} to {x.max():g}"
        )
    if len(nodes) == 1:
        return [(np.zeros(x.shape, dtype=np.int64), np.ones(x.shape))]
    left = np.clip(np.searchsorted(nodes, x, side="right") - 1, 0, len(nodes) - 2)
    share = (x - nodes[left]) / (nodes[left + 1] - nodes[left])
    return [(left, 1.0 - share), (left + 1, share)]
