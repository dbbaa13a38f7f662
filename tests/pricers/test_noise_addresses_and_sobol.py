"""Noise by address: what a path gets does not depend on how it is asked for, and it is standard normal."""

import math

import pytest
import torch

from pricers.noise import BLOCK, TILE, Antithetic, Noise, Pseudo, Sobol, address, bridge, sobol_integers, uniforms

DT = torch.full((6,), 0.25, dtype=torch.float64)
KINDS = [Pseudo(3), Antithetic(3), Sobol(3, repeats=4)]


def drawn(
    noise: Noise, start: int, width: int, dt: torch.Tensor = DT, n_normals: int = 2, repeat: int = 0
) -> torch.Tensor:
    normals = noise.normals(repeat, start, width, dt, n_normals)
    return torch.stack([normals.step(step).clone() for step in range(dt.shape[0])])


@pytest.mark.parametrize("noise", KINDS, ids=lambda noise: noise.kind)
def test_a_path_is_the_same_in_any_slice_and_however_many_follow(noise):
    whole = drawn(noise, 0, 4 * TILE)
    assert torch.equal(drawn(noise, 0, TILE), whole[..., :TILE])
    assert torch.equal(drawn(noise, 2 * TILE, 2 * TILE), whole[..., 2 * TILE :])
    rows = noise.extra(0, 0, 4 * TILE, DT, 2, 3)
    assert torch.equal(noise.extra(0, 3 * TILE, TILE, DT, 2, 3), rows[:, 3 * TILE :])


@pytest.mark.parametrize("noise", [Pseudo(3), Antithetic(3)], ids=lambda noise: noise.kind)
def test_a_path_of_a_later_block_is_the_same_in_any_slice(noise):
    first = BLOCK - TILE
    assert torch.equal(drawn(noise, 0, 2 * BLOCK)[..., BLOCK : BLOCK + TILE], drawn(noise, BLOCK, TILE))
    if noise.kind == "pseudo":
        assert torch.equal(drawn(noise, 0, BLOCK)[..., first:], drawn(noise, first, TILE))


@pytest.mark.parametrize("noise", KINDS, ids=lambda noise: noise.kind)
def test_normals_have_the_moments_of_independent_normals(noise):
    n = 2**14
    rows = torch.cat([drawn(noise, 0, n).reshape(-1, n), noise.extra(0, 0, n, DT, 2, 2)])
    covariance = rows @ rows.T / n
    bound = 5 * math.sqrt(2.0 / n)  # five standard errors of pseudo-random numbers
    assert (covariance - torch.eye(14, dtype=torch.float64)).abs().max() < bound
    assert rows.mean(-1).abs().max() < bound
    assert (rows.pow(4).mean(-1) - 3.0).abs().max() < 5 * math.sqrt(96.0 / n)


def test_antithetic_pairs_sum_to_zero():
    normals = drawn(Antithetic(5), 0, 2 * TILE).reshape(12, 2, 2, TILE // 2)
    assert torch.equal(normals[:, :, 0], -normals[:, :, 1])


def test_neighbouring_seeds_are_unrelated():
    n = 2**14
    rows = [drawn(Pseudo(seed), 0, n)[0, 0] for seed in (0, 1, 2, -1)] + [drawn(Antithetic(0), 0, 2 * n)[0, 0, ::2]]
    correlation = torch.corrcoef(torch.stack(rows)) - torch.eye(len(rows), dtype=torch.float64)
    assert correlation.abs().max() < 5 / math.sqrt(n)
    assert len({address(seed, block) for seed in range(30) for block in range(30)}) == 900


def test_sum_of_increments_over_250_steps_has_the_variance_of_a_brownian_motion():
    # a stream of Sobol points reshaped along time has .02 of it
    dt = torch.full((250,), 1.0 / 250.0, dtype=torch.float64)
    for repeat in range(3):
        normals = drawn(Sobol(1, repeats=3), 0, 2**12, dt, 1, repeat)[:, 0]
        total = (normals * dt.sqrt()[:, None]).sum(0)
        assert abs(total.var().item() - 1.0) < 0.01
        half = (normals * dt.sqrt()[:, None])[:125].sum(0)
        assert abs(half.var().item() - 0.5) < 0.01
        assert abs(torch.stack([half, total - half]).corrcoef()[0, 1].item()) < 0.02


def test_bridge_is_orthogonal_and_puts_the_end_first():
    dt = torch.tensor([0.1, 0.4, 0.05, 0.3, 0.2, 0.6, 0.01], dtype=torch.float64)
    matrix = bridge(torch.eye(7, dtype=torch.float64), dt)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(7, dtype=torch.float64), rtol=0.0, atol=1e-14)
    ends = (dt.sqrt()[:, None] * matrix).sum(0)
    expected = torch.zeros(7, dtype=torch.float64)
    expected[0] = dt.sum().sqrt()
    torch.testing.assert_close(ends, expected, rtol=0.0, atol=1e-14)


def test_sobol_points_are_a_net_in_each_dimension_and_pair():
    high, low = sobol_integers(7, 0, 256, slice(0, 8))
    points = (high ^ low).flatten(1).double() / 2**30
    for row in points:  # one point in each of the 256 intervals
        assert torch.equal((row * 256).floor().sort().values, torch.arange(256, dtype=torch.float64))
    for first in range(2):  # of the first pairs of dimensions: one point in each of 16 x 16 squares
        cells = (points[first] * 16).floor() * 16 + (points[first + 1] * 16).floor()
        assert cells.unique().numel() == 256


def test_sobol_points_are_those_of_torch():
    engine = torch.quasirandom.SobolEngine(64, scramble=True, seed=address("sobol", 11, 0))
    expected = engine.draw(512, dtype=torch.float64).T
    high, low = sobol_integers(address("sobol", 11, 0), 0, 512, slice(0, 64))
    ours = (high ^ low).flatten(1).double() / 2**30
    torch.testing.assert_close(ours.sort(-1).values, expected.sort(-1).values, rtol=0.0, atol=4e-8)  # torch: float32


@pytest.mark.slow
def test_beyond_the_dimensions_of_sobol_the_path_goes_on():
    dt = torch.full((10_700,), 1e-3, dtype=torch.float64)
    normals = drawn(Sobol(2, repeats=2), 0, 64, dt, 2)
    assert normals.isfinite().all()
    assert abs(normals.var().item() - 1.0) < 0.02
    assert (normals[-1, 1] - drawn(Sobol(2, repeats=2), 0, 32, dt, 2)[-1, 1].repeat(2)).isfinite().all()


def test_sobol_block_must_be_aligned():
    with pytest.raises(ValueError, match="must start at a multiple of 2048, got 1024"):
        Sobol(1).normals(0, 1024, 2048, DT, 1)


def test_uniforms_are_uniform_and_addressed():
    rows = uniforms(3, 0, 0, 4 * TILE, 2, DT)
    assert rows.shape == (4 * TILE, 2)
    assert abs(rows.mean().item() - 0.5) < 0.02
    assert abs(rows.var().item() - 1 / 12) < 0.005
    assert torch.equal(uniforms(3, 0, 2 * TILE, TILE, 2, DT), rows[2 * TILE : 3 * TILE])
