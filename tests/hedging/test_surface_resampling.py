"""What is held by spot and date, by brute force; and the paired bootstrap against the influence and by hand."""

import math

import numpy as np
import pytest
import torch

from qfml.errors import ConfigError
from qfml.hedging import Entropic, ExpectedShortfall, PathSet
from qfml.hedging.judgement import JudgementSettings
from qfml.hedging.resampling import interval, paired_bootstrap, resampled_rows
from qfml.hedging.surface import held_by_spot_and_date


def paths(n_paths=3000, n_steps=4, names=("vol",)):
    generator = torch.Generator().manual_seed(1)
    moves = 0.05 * torch.randn(n_paths, n_steps, generator=generator)
    spot = torch.nn.functional.pad(moves, (1, 0)).cumsum(1).exp()[..., None]
    features = torch.rand(n_paths, n_steps + 1, len(names), generator=generator)
    times = torch.arange(n_steps + 1, dtype=torch.float64) / 10
    return PathSet(times, spot, torch.zeros(n_paths), features, ("spot",), names)


def test_maps_are_means_of_the_paths_that_come_by():
    walked = paths()
    held = walked.prices[:, :-1] * 2.0 + walked.features[:, :-1]  # of its own vol
    delta = torch.ones_like(held)
    found = held_by_spot_and_date(walked, held, delta)
    assert found["map_policy"].shape == (3, 4, 30, 1)
    edges, spot = found["map_spot"], walked.prices[..., 0].double().numpy()
    vol = walked.features[..., 0].double().numpy()
    checked = 0
    for date in range(4):
        low, high = np.quantile(vol[:, date], [1 / 3, 2 / 3])
        thirds = (vol[:, date] <= low, (vol[:, date] > low) & (vol[:, date] <= high), vol[:, date] > high)
        for third, inside in enumerate(thirds):
            for place in (10, 15, 20):
                mine = inside & (spot[:, date] >= edges[place]) & (spot[:, date] < edges[place + 1])
                cell = found["map_policy"][third, date, place, 0]
                assert math.isnan(cell) == (mine.sum() < 5)
                if mine.sum() >= 5:
                    checked += 1
                    assert cell == pytest.approx(float(held[torch.from_numpy(mine), date, 0].double().mean()))
                    assert found["map_delta"][third, date, place, 0] == 1.0
    assert checked > 20


def test_maps_without_a_vol_are_one_and_dates_no_more_than_30():
    walked = paths(n_paths=200, n_steps=100, names=("time_to_horizon",))
    found = held_by_spot_and_date(walked, torch.ones(200, 100, 1))
    assert found["map_policy"].shape == (1, 30, 30, 1)
    assert "map_delta" not in found
    assert found["map_times"][[0, -1]].tolist() == [0.0, pytest.approx(9.9)]


@pytest.mark.parametrize("objective", [Entropic(2.0), ExpectedShortfall(0.1)])
def test_the_paired_bootstrap_has_the_error_of_the_influence(objective):
    generator = torch.Generator().manual_seed(3)
    common = torch.randn(4000, generator=generator, dtype=torch.float64)
    pnl = torch.stack([common, common + 0.1 * torch.randn(4000, generator=generator, dtype=torch.float64)])
    found = paired_bootstrap(objective, pnl, n_resamples=400, seed=5)
    influence = objective.influence(pnl)
    paired = float((influence[0] - influence[1]).std()) / 4000**0.5
    assert float(found[:, 1].std()) == pytest.approx(paired, rel=0.15)
    assert float(objective.std_error(pnl)[0]) > 5 * paired  # unpaired errors would be another thing
    ends, risk = interval(found[:, 1]), objective.risk(pnl)
    assert ends["low"] < float(risk[0] - risk[1]) < ends["high"]
    assert bool((found[:, 0] == 0).all())
    assert torch.equal(found[:100], paired_bootstrap(objective, pnl, n_resamples=100, seed=5))


def test_blocks_see_what_single_rows_do_not():
    """Rows in pairs that are equal: as many independent ones as pairs, so an error sqrt(2) times as large."""
    single = torch.randn(2000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pnl = torch.stack([single.repeat_interleave(2), torch.zeros(4000, dtype=torch.float64)])
    alone = paired_bootstrap(ExpectedShortfall(1.0), pnl, n_resamples=400)[:, 1].std()
    blocks = paired_bootstrap(ExpectedShortfall(1.0), pnl, n_resamples=400, block_length=20)[:, 1].std()
    assert float(blocks / alone) == pytest.approx(2**0.5, rel=0.15)
    rows = resampled_rows(4000, 20, torch.Generator().manual_seed(1))
    assert len(rows) == 4000
    assert int((rows.diff().remainder(4000) == 1).sum()) >= 19 * 200


def test_settings_of_the_bootstrap_are_checked():
    with pytest.raises(ConfigError, match="`n_resamples` must be 100 or more"):
        JudgementSettings(n_resamples=20)
    with pytest.raises(ConfigError, match="set `n_paths` to null"):
        JudgementSettings(block_length=5)
    with pytest.raises(ConfigError, match="`block_length` must be"):
        JudgementSettings(block_length=0)
