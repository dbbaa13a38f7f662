"""Work on several cores: the same numbers as on one, whatever is being differentiated."""

import threading

import pytest
import torch

import pricers as pr
from pricers.parallel import one_thread, side_by_side

STRIKES = torch.linspace(50.0, 200.0, 400, dtype=torch.float64)
EXPIRIES = torch.linspace(0.02, 5.0, 400, dtype=torch.float64)
VARIANCES = torch.linspace(0.01, 0.2, 400, dtype=torch.float64)
MARKET = pr.Market(100.0, 0.02)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def price(v0: torch.Tensor) -> torch.Tensor:
    """400 laws of their own: several blocks of the series."""
    model = pr.Heston(v0, 2.0, 0.05, 0.6, -0.6)
    return pr.Fourier().price(pr.European(STRIKES, EXPIRIES), model, MARKET).value


def test_tasks_run_on_threads_of_their_own_and_the_number_of_threads_is_restored(two_threads):
    meeting = threading.Barrier(2, timeout=30.0)  # passed by two threads that are there at once, or not at all

    def task(index: int) -> tuple[int, int]:
        meeting.wait()
        return index, torch.get_num_threads()

    with side_by_side(torch.device("cpu"), 2) as run:
        found = list(run(task, range(2)))
    assert found == [(0, 1), (1, 1)]
    assert torch.get_num_threads() == 2


def test_one_thread_runs_in_order_where_it_was_called():
    with side_by_side(torch.device("cpu"), 1) as run:
        assert list(run(lambda _: threading.get_ident(), range(3))) == [threading.get_ident()] * 3


def test_prices_and_derivatives_do_not_depend_on_the_number_of_threads(two_threads):
    leaf = VARIANCES.clone().requires_grad_()
    side = price(VARIANCES)
    with torch.no_grad():
        ungraphed = price(leaf)
    (reverse,) = torch.autograd.grad(price(leaf).sum(), leaf)
    _, forward = torch.func.jvp(price, (VARIANCES,), (torch.ones_like(VARIANCES),))
    torch.set_num_threads(1)
    assert torch.equal(side, price(VARIANCES))
    assert torch.equal(ungraphed, side)
    assert not ungraphed.requires_grad
    (alone,) = torch.autograd.grad(price(leaf).sum(), leaf)
    torch.testing.assert_close(reverse, alone, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(forward, alone, rtol=1e-9, atol=1e-9)


def test_the_number_of_threads_survives_errors_nesting_and_blocks_that_overlap(two_threads):
    with pytest.raises(RuntimeError, match="a task fails"), one_thread():
        raise RuntimeError("a task fails")
    assert torch.get_num_threads() == 2
    with one_thread():
        with one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2

    entered, leave, found = threading.Event(), threading.Event(), []

    def second() -> None:
        with one_thread():
            entered.set()
            leave.wait(30.0)
        found.append(torch.get_num_threads())

    other = threading.Thread(target=second)
    with one_thread():
        other.start()
        assert entered.wait(30.0)
    assert torch.get_num_threads() == 2
    leave.set()
    other.join()
    later = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert found == [2, 2]
