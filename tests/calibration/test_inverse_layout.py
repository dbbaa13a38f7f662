"""Surfaces read at fixed places, against scipy's spline and a loop over smiles."""

import math

import numpy as np
import pytest
import torch
from scipy.interpolate import CubicSpline

from qfml.calibration.layout import Layout, natural_spline, vols_at
from qfml.calibration.model import Quotes
from qfml.errors import ConfigError, DataError


def quotes_of(surfaces: list[list[tuple[float, float, float]]], weights: list[list[float]] | None = None) -> Quotes:
    """Quotes (expiry, log-moneyness, vol) of several surfaces, padded with weight 0."""
    most = max(map(len, surfaces))
    table = torch.full((len(surfaces), most, 3), math.nan, dtype=torch.float64)
    weight = torch.zeros(len(surfaces), most, dtype=torch.float64)
    for i, rows in enumerate(surfaces):
        table[i, : len(rows)] = torch.tensor(rows, dtype=torch.float64)
        weight[i, : len(rows)] = 1.0 if weights is None else torch.tensor(weights[i], dtype=torch.float64)
    one = torch.ones_like(weight)
    return Quotes(table[..., 1], table[..., 0], table[..., 2], weight, one)


def read_by_hand(rows: list[tuple[float, float, float]], layout: Layout) -> np.ndarray:
    """The same, smile by smile and place by place."""
    smiles = {}
    for time in sorted({row[0] for row in rows}):
        own = sorted((k, vol) for t, k, vol in rows if t == time)
        k, vol = np.array([place for place, _ in own]), np.array([value for _, value in own])
        variance = vol**2 * time
        if len(k) > 2:
            curve = CubicSpline(k, variance, bc_type="natural")
        else:
            curve = lambda x, k=k, variance=variance: np.interp(x, k, variance)  # noqa: E731
        smiles[time] = lambda x, k=k, curve=curve: curve(np.clip(x, k[0], k[-1]))
    times = np.array(list(smiles))

    def vol_at(time: float, k: float) -> float:
        if time <= times[0] or time >= times[-1]:
            nearest = times[0] if time <= times[0] else times[-1]
            return math.sqrt(float(smiles[nearest](k)) / nearest)
        variances = [float(smiles[own](k)) for own in times]
        return math.sqrt(np.interp(time, times, variances) / time)

    found = np.empty((len(layout.expiry), len(layout.moneyness[0])))
    for e, time in enumerate(layout.expiry):
        deviation = vol_at(time, 0.0) * math.sqrt(time)
        for i, place in enumerate(layout.moneyness[min(e, len(layout.moneyness) - 1)]):
            k = place * deviation if layout.unit == "std" else place
            found[e, i] = vol_at(time, float(np.clip(k, -layout.widest * deviation, layout.widest * deviation)))
    return found


def random_surface(seed: int, counts: list[int]) -> list[tuple[float, float, float]]:
    rng = np.random.default_rng(seed)
    rows = []
    for count in counts:
        time = float(rng.uniform(0.05, 2.0))
        for k in np.linspace(-0.5, 0.4, count) + rng.uniform(-0.03, 0.03, count):
            rows.append((time, float(k), float(0.25 - 0.2 * k + 0.3 * k * k + rng.normal(0, 0.001))))
    return [rows[i] for i in rng.permutation(len(rows))]


@pytest.mark.parametrize("unit", ["log_moneyness", "std"])
def test_irregular_surfaces_are_read_as_by_scipy_smile_by_smile(unit: str) -> None:
    surfaces = [random_surface(seed, counts) for seed, counts in enumerate([[9, 1, 5, 2], [3], [1], [7, 8, 6], [2, 3]])]
    row = (-2.0, -0.3, 0.0, 0.1, 0.4, 3.0)
    layout = Layout(expiry=(0.02, 0.3, 0.9, 5.0), moneyness=(row,), unit=unit, widest=2.5)
    found = layout.vols(quotes_of(surfaces))
    assert found.shape == (5, 4, 6)
    for own, rows in zip(found, surfaces):
        np.testing.assert_allclose(own.numpy(), read_by_hand(rows, layout), rtol=1e-10)


def test_surface_on_its_own_places_comes_back() -> None:
    rows = [(t, k, 0.2 - 0.1 * k + 0.01 * t) for t in (0.25, 1.0) for k in (-0.2, 0.0, 0.1)]
    quotes = quotes_of([rows])
    layout = Layout.of(quotes)
    assert layout.expiry == (0.25, 1.0)
    torch.testing.assert_close(layout.vols(quotes).flatten(), quotes.vol[0], rtol=1e-14, atol=0)


def test_missing_quotes_padding_and_neighbours_do_not_matter() -> None:
    rows = random_surface(11, [6, 5])
    noise = [(0.4, 0.2, 9.9)]
    layout = Layout.standard(0.1, 1.5, n_expiries=3)
    alone = layout.vols(quotes_of([rows]))
    beside = layout.vols(quotes_of([random_surface(12, [4, 9, 8]), noise + rows], [[1.0] * 21, [0.0] + [1.0] * 11]))
    assert torch.equal(alone[0], beside[1])


def test_quotes_of_one_place_are_averaged_by_weight() -> None:
    layout = Layout((1.0,), ((0.0,),))
    twice = quotes_of([[(1.0, 0.0, 0.2), (1.0, 0.0, 0.4)]], [[1.0, 3.0]])
    assert float(layout.vols(twice)) == pytest.approx(math.sqrt((0.04 + 3 * 0.16) / 4), rel=1e-14)


def test_spline_that_turns_negative_is_left_for_the_line() -> None:
    """Two far quotes of high vol beside two of almost none: the cubic swings below zero, the line cannot."""
    rows = [(1.0, -1.0, 2.0), (1.0, -0.5, 0.01), (1.0, 0.0, 0.01), (1.0, 1.0, 2.0)]
    spline = CubicSpline([-1.0, -0.5, 0.0, 1.0], [4.0, 1e-4, 1e-4, 4.0], bc_type="natural")
    assert spline(-0.2) < 0
    layout = Layout((1.0,), ((-0.2, 0.0),), widest=1e6)
    assert float(layout.vols(quotes_of([rows]))[0, 0, 0]) == pytest.approx(0.01)


def test_splines_of_different_lengths_have_scipys_second_derivatives() -> None:
    rng = np.random.default_rng(3)
    n_nodes = [1, 2, 3, 4, 9]
    nodes, values = np.full((5, 9), np.inf), np.zeros((5, 9))
    for row, n in enumerate(n_nodes):
        nodes[row, :n], values[row, :n] = np.sort(rng.uniform(0, 1, n)), rng.normal(size=n)
    found = natural_spline(torch.from_numpy(nodes), torch.from_numpy(values), torch.tensor(n_nodes)).numpy()
    for row, n in enumerate(n_nodes):
        truth = CubicSpline(nodes[row, :n], values[row, :n], bc_type="natural")(nodes[row, :n], 2) if n > 2 else 0
        np.testing.assert_allclose(found[row, :n], truth, rtol=1e-9, atol=1e-9)
        assert (found[row, n:] == 0).all()


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"expiry": (1.0, 0.5)}, "expiry"),
        ({"expiry": ()}, "expiry"),
        ({"moneyness": ((0.0, 0.0),)}, "moneyness"),
        ({"moneyness": ((0.0,), (0.0,), (0.0,))}, "moneyness"),
        ({"moneyness": ((0.0, 0.1), (0.0,))}, "moneyness"),
        ({"unit": "delta"}, "unit"),
        ({"widest": 0.0}, "widest"),
    ],
)
def test_layout_that_makes_no_sense_is_refused(settings: dict, word: str) -> None:
    with pytest.raises(ConfigError, match=f"`{word}`"):
        Layout(**({"expiry": (0.5, 1.0), "moneyness": ((0.0,),)} | settings))


def test_surface_without_quotes_and_ragged_expiries_are_refused() -> None:
    with pytest.raises(DataError, match="surface 1 has no quote"):
        Layout((1.0,), ((0.0,),)).vols(quotes_of([[(1.0, 0.0, 0.2)], [(1.0, 0.0, 0.2)]], [[1.0], [0.0]]))
    with pytest.raises(DataError, match=r"2 at 0\.5, 1 at 1"):
        Layout.of(quotes_of([[(0.5, 0.0, 0.2), (0.5, 0.1, 0.2), (1.0, 0.0, 0.2)]]))


def test_places_of_ones_own_are_read_as_those_of_a_layout() -> None:
    rows = [random_surface(21, [6, 5, 7]), random_surface(22, [3, 1])]
    layout = Layout(expiry=(0.2, 0.9), moneyness=((-0.1, 0.05),), widest=1e6)
    quotes = quotes_of(rows)
    k, expiry = (torch.tensor(own, dtype=torch.float64) for own in ([-0.1, 0.05, -0.1, 0.05], [0.2, 0.2, 0.9, 0.9]))
    found = vols_at(quotes, k.expand(2, -1), expiry.expand(2, -1))
    torch.testing.assert_close(found, layout.vols(quotes).flatten(1), rtol=1e-14, atol=0)
    mirrored = vols_at(quotes, k.flip(0).expand(2, -1), expiry.flip(0).expand(2, -1))
    assert torch.equal(mirrored.flip(1), found)


def test_places_beyond_the_quotes_and_quotes_beyond_the_places_are_counted():
    layout = Layout(expiry=(0.1, 1.0), moneyness=((-0.5, 0.0, 0.5),), widest=50.0)
    wide = [(t, k, 0.2) for t in (0.1, 1.0) for k in (-0.5, 0.0, 0.5)]
    near = [(t, 1.05 * k, 0.2) for t, k, _ in wide]  # within a tenth: a day and a move of the spot later
    narrow = [(t, 0.2 * k, 0.2) for t, k, _ in wide]  # both ends of both rows are filled in
    far = [(t, k, 0.2) for t in (0.05, 1.0) for k in (-0.5, 0.0, 0.5, 0.8)]  # one expiry, and one strike of the other
    short = [(t, k, 0.2) for t in (0.1, 0.5) for k in (-0.5, 0.0, 0.5)]  # the longer row lies beyond all of them
    filled, unseen = layout.apart(quotes_of([wide, near, narrow, far, short]))
    assert filled.tolist() == [0, 0, 4, 0, 3]
    assert unseen.tolist() == [0, 0, 0, 5, 0]
    standard = Layout.standard(0.1, 1.0, n_expiries=2)  # 2.5 deviations of 0.2 root T are 0.158 and 0.5
    assert standard.apart(quotes_of([wide]))[0].tolist() == [0]
