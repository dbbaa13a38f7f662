"""Results that depend on nothing but seed and parameters: every model, every noise, chunks of any size, any threads."""

import itertools

import pytest
import torch
from contract_examples import MODEL_EXAMPLES

import pricers as pr
from pricers.models.tiled_product import tiled_product
from pricers.noise import NOISES, TILE

MARKET = pr.Market(100.0, rate=0.03, dividend_yield=0.01)
CONTRACT = pr.Asian(100.0, [0.5, 1.0])
N_PATHS = 6 * TILE
CHUNKS = [(2**26, 1), (2**10, 2), (2**20, 1)]  # bytes, of all paths, a tile and some, and threads


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def schemes():
    for kind, example in MODEL_EXAMPLES.items():
        model = example.at_point()
        for scheme in model.schemes:
            yield pytest.param(model, scheme, id=f"{kind}-{scheme}")


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize(("model", "scheme"), list(schemes()))
def test_an_estimate_has_the_same_bits_for_any_chunk_and_any_threads(model, scheme, noise, monkeypatch, threads):
    engine = pr.MonteCarlo(N_PATHS, n_steps=3, noise=noise, repeats=2, seed=5, scheme=scheme, compile=False)
    found = []
    for n_bytes, n_threads in CHUNKS:
        monkeypatch.setattr("pricers.monte_carlo.engine.CHUNK_BYTES", n_bytes)
        torch.set_num_threads(n_threads)
        found.append(engine.price(CONTRACT, model, MARKET))
    assert [one.value.tolist() for one in found] == [found[0].value.tolist()] * len(found)
    assert [one.std_error.tolist() for one in found] == [found[0].std_error.tolist()] * len(found)


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("kind", ["rough_heston", "rough_bergomi"])
def test_each_path_has_the_same_bits_for_any_chunk(kind, conditional):
    """Sums of many paths hide most differences of single ones."""
    contract = pr.European(100.0, 1.0)
    engine = pr.MonteCarlo(32 * TILE, n_steps=12, noise="pseudo", seed=7, compile=False, conditional=conditional)
    sampler = engine.sampler(contract, MODEL_EXAMPLES[kind].at_point(), MARKET)
    whole = sampler.values(0, 0, 16 * TILE)
    for width in (TILE, 2 * TILE, 5 * TILE, 8 * TILE):
        assert torch.equal(sampler.values(0, 0, width), whole[..., :width])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("rows", "terms"), [(23, 22), (1, 22), (8, 8), (100, 100)])
def test_a_column_of_a_tiled_product_does_not_depend_on_the_others(rows, terms, dtype, threads):
    generator = torch.Generator().manual_seed(1)
    matrix = torch.randn(3, rows, terms, generator=generator, dtype=dtype)
    columns = torch.randn(3, terms, 6 * TILE + 100, generator=generator, dtype=dtype)
    whole = tiled_product(matrix, columns)
    torch.testing.assert_close(whole, matrix @ columns)
    for width, n_threads in itertools.product((1, 5), (1, 2)):
        torch.set_num_threads(n_threads)
        pieces = torch.cat([tiled_product(matrix, part) for part in columns.split(width * TILE, dim=-1)], dim=-1)
        alone = torch.stack([tiled_product(*pair) for pair in zip(matrix, columns, strict=True)])
        assert torch.equal(pieces, whole)
        assert torch.equal(alone, whole)
