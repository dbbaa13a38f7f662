"""The Monte Carlo engine: what a result depends on, honest errors, memory, compilation, bad input."""

import os
import pathlib
import re
import subprocess
import sys
import warnings

import pytest
import torch

import pricers as pr
from pricers.monte_carlo import engine as engine_module
from pricers.monte_carlo import simulate
from pricers.noise import TILE

HESTON = pr.Heston(0.0175, 1.5768, 0.0398, 0.5751, -0.5711)
MARKET = pr.Market(100.0)
CALL = pr.European(100.0, 1.0)
PRICE = 5.785155434376
NOISES = ["pseudo", "antithetic", "sobol"]


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("contract", [CALL, pr.Asian(100.0, [0.3, 0.7, 1.0]), pr.Barrier(100.0, 1.0, 80.0, "down-out")])
@pytest.mark.parametrize("noise", NOISES)
def test_same_bits_for_any_chunk(noise, contract, monkeypatch):
    engine = pr.MonteCarlo(40 * TILE, n_steps=5, noise=noise, repeats=4, seed=9)
    whole = engine.price(contract, HESTON, MARKET)
    monkeypatch.setattr(engine_module, "CHUNK_BYTES", 2**16)
    assert engine.sampler(contract, HESTON, MARKET).chunk_width() == TILE
    pieces = engine.price(contract, HESTON, MARKET)
    assert torch.equal(whole.value, pieces.value)
    assert torch.equal(whole.std_error, pieces.std_error)


@pytest.mark.parametrize("noise", NOISES)
def test_same_bits_for_any_number_of_threads(noise, monkeypatch, two_threads):
    monkeypatch.setattr(engine_module, "CHUNK_BYTES", 2**18)
    engine = pr.MonteCarlo(32 * TILE, n_steps=5, noise=noise, repeats=4, seed=9)
    two = engine.price(CALL, HESTON, MARKET)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    one = engine.price(CALL, HESTON, MARKET)
    assert torch.equal(one.value, two.value)
    assert torch.equal(one.std_error, two.std_error)


def test_more_paths_begin_with_the_same_paths():
    few, many = (pr.MonteCarlo(n, n_steps=4, seed=3).sampler(CALL, HESTON, MARKET) for n in (2 * TILE, 64 * TILE))
    assert torch.equal(few.values(0, 0, 2 * TILE), many.values(0, 0, 8 * TILE)[..., : 2 * TILE])


@pytest.mark.parametrize("noise", ["pseudo", "antithetic", pytest.param("sobol", marks=pytest.mark.slow)])
def test_standard_errors_are_honest(noise):
    # over independent seeds (estimate - price) / error has mean square 1; bounds are 5 standard errors of that
    n, scores = 200, []
    price = pr.price(CALL, pr.BlackScholes(0.2), MARKET).value.item()
    for seed in range(n):
        engine = pr.MonteCarlo(2048, noise=noise, repeats=16, seed=seed, controls=False)
        found = engine.price(CALL, pr.BlackScholes(0.2), MARKET)
        scores.append((found.value.item() - price) / found.std_error.item())
    square = torch.tensor(scores).square()
    expected, spread = (1.0, 2.0) if noise != "sobol" else (15 / 13, 4.2)  # a t law of 15 degrees of freedom
    assert abs(square.mean().item() - expected) < 5 * (spread / n) ** 0.5
    assert abs(torch.tensor(scores).mean().item()) < 5 / n**0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("conditional", [True, False])
def test_heston_call_within_its_error(noise, dtype, conditional):
    engine = pr.MonteCarlo(2**15, n_steps=16, noise=noise, seed=1, dtype=dtype, conditional=conditional)
    found = engine.price(CALL, HESTON, MARKET)
    assert found.value.dtype == torch.float64
    assert found.std_error < (0.02 if conditional else 0.06)
    assert abs(found.value - PRICE) <= 4 * found.std_error + 6e-4  # bias of 16 steps


def test_stops_at_the_target_and_says_when_it_cannot():
    found = pr.MonteCarlo(2**20, n_steps=8, seed=1, target_std_error=0.02).price(CALL, HESTON, MARKET)
    assert found.std_error <= 0.02
    assert found.n_paths < 2**20
    assert found.note == ""
    found = pr.MonteCarlo(2**14, n_steps=8, seed=1, target_std_error=1e-5).price(CALL, HESTON, MARKET)
    assert "above the target 1e-05 after all 16384 paths" in found.note


def test_a_target_error_gives_the_same_as_that_many_paths():
    found = pr.MonteCarlo(2**18, n_steps=8, seed=1, target_std_error=0.02).price(CALL, HESTON, MARKET)
    again = pr.MonteCarlo(found.n_paths, n_steps=8, seed=1).price(CALL, HESTON, MARKET)
    assert torch.equal(found.value, again.value)


def test_compile_failure_is_said_once_and_the_price_is_the_eager_one(monkeypatch):
    def broken(*arguments, **options):
        raise RuntimeError("no compiler on this machine")

    monkeypatch.setattr(torch, "compile", broken)
    simulate._conditional_step.cache_clear()
    monkeypatch.setattr(engine_module, "CHUNK_BYTES", 2**18)
    engine = pr.MonteCarlo(16 * TILE, n_steps=4, seed=1, compile=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = engine.price(CALL, HESTON, MARKET)
        engine.price(CALL, HESTON, MARKET)
    simulate._conditional_step.cache_clear()
    assert [str(warning.message) for warning in caught] == [
        "torch.compile failed, the steps run eagerly (slower): no compiler on this machine"
    ]
    eager = pr.MonteCarlo(16 * TILE, n_steps=4, seed=1, compile=False).price(CALL, HESTON, MARKET)
    assert torch.equal(found.value, eager.value)


def run_script(script: str) -> str:
    environment = os.environ | {"JAXTYPING_DISABLE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_compiled_steps_give_what_eager_ones_give():
    printed = run_script("""
import torch, pricers as pr
model, market = pr.Heston(0.0175, 1.5768, 0.0398, 0.5751, -0.5711), pr.Market(100.0)
for dtype, bound in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
    for conditional in (True, False):
        prices = [
            pr.MonteCarlo(70_000, n_steps=6, seed=1, dtype=dtype, conditional=conditional, compile=compiled)
            .price(pr.European(100.0, 1.0), model, market).value.item()
            for compiled in (True, False)
        ]
        assert abs(prices[0] / prices[1] - 1) < bound, prices
print("same")
""")
    assert printed.strip() == "same"


@pytest.mark.slow
@pytest.mark.skipif(not pathlib.Path("/proc/self/status").exists(), reason="reads the peak of its memory from /proc")
def test_many_paths_of_many_steps_stay_below_a_gibibyte():
    # memory does not grow with the number of paths: 2^19 paths x 250 steps, all recorded: 1.5 GiB at once
    printed = run_script("""
import re, torch, pricers as pr
model, market = pr.Heston(0.0175, 1.5768, 0.0398, 0.5751, -0.5711), pr.Market(100.0)
def peak():  # not ru_maxrss: a child inherits the peak of its parent there, that of all tests before
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 1024
def run(n):
    engine = pr.MonteCarlo(n, n_steps=250, seed=1, dtype=torch.float32)
    engine.price(pr.Barrier(100.0, 1.0, 80.0, "down-out"), model, market)
run(2**17)
first = peak()
run(2**19)
print(first, peak())
""")
    first, last = (float(word) for word in printed.split())
    assert last < 1024
    assert last < first + 64


def test_a_chunk_holds_what_it_may(monkeypatch):
    sampler = pr.MonteCarlo(10_000_000, n_steps=250, seed=1).sampler(
        pr.Barrier(100.0, 1.0, 80.0, "down-out"), HESTON, MARKET
    )
    recorded = 251 * 3 * 8 * sampler.chunk_width()
    assert recorded <= engine_module.CHUNK_BYTES
    assert max(width for _, _, width in sampler.chunks()) == sampler.chunk_width()
    assert sum(width for _, _, width in sampler.chunks()) == 10_000_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_paths": 1}, "`n_paths` must be 2 or more, got 1"),
        ({"n_paths": 1e4}, "`n_paths` must be a whole number, got 10000.0"),
        ({"n_paths": 100, "n_steps": 0}, "`n_steps` must be 1 or more, got 0"),
        ({"n_paths": 100, "n_steps": True}, "`n_steps` must be a whole number, got True"),
        ({"n_paths": 100, "seed": 1.5}, "`seed` must be a whole number, got 1.5"),
        ({"n_paths": 100, "noise": "halton"}, "`noise` must be one of 'pseudo', 'antithetic', 'sobol', got 'halton'"),
        ({"n_paths": 101, "noise": "antithetic"}, "`n_paths` must be even"),
        ({"n_paths": 100, "noise": "sobol"}, "`n_paths` must be a multiple of `repeats` = 16"),
        ({"n_paths": 100, "repeats": 1}, "`repeats` must be 2 or more"),
        ({"n_paths": 100, "target_std_error": 0.0}, "`target_std_error` must be above 0"),
        ({"n_paths": 100, "dtype": torch.float16}, "`dtype` must be torch.float32 or torch.float64"),
    ],
)
def test_bad_settings_are_refused_by_name(arguments, message):
    # past the run-time type checker of the tests, which a user does not have
    settings = {"n_steps": None, "noise": "pseudo", "seed": 0, "repeats": 16, "target_std_error": None, "dtype": None}
    engine = object.__new__(pr.MonteCarlo)
    for name, value in (settings | arguments).items():
        object.__setattr__(engine, name, value)
    with pytest.raises(ValueError, match=re.escape(message)):
        engine.__post_init__()


def test_the_seed_is_asked_for():
    with pytest.raises(TypeError, match="seed"):
        pr.MonteCarlo(1024)


@pytest.mark.parametrize(
    ("contract", "model", "settings", "message"),
    [
        (pr.American(100.0, 1.0, "put"), HESTON, {}, "LongstaffSchwartz"),
        (CALL, HESTON, {"scheme": "milstein"}, "must be one of 'qe-m', 'qe', 'euler', 'exact', got 'milstein'"),
        (pr.Basket(100.0, 1.0, weights=[0.5, 0.5]), HESTON, {}, r"on 2 asset\(s\), the model has 1"),
        (pr.VarianceSwap(0.04, 1.0), HESTON, {"conditional": True}, "conditional simulation of VarianceSwap"),
    ],
)
def test_what_cannot_be_priced_is_refused_with_the_reason(contract, model, settings, message):
    with pytest.raises(ValueError, match=message):
        pr.MonteCarlo(1024, seed=1, **settings).price(contract, model, MARKET)


def test_shapes_that_do_not_broadcast_are_named():
    with pytest.raises(ValueError, match=r"`instrument` of shape \(3,\) and `model` of shape \(2,\)"):
        pr.MonteCarlo(1024, seed=1).price(pr.European([90.0, 100.0, 110.0], 1.0), pr.BlackScholes([0.2, 0.3]), MARKET)
