"""Numbers from outside: what is taken, as what, and how a refusal reads."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from pricers.parameters import broadcast_shape, choice, converted, copied, dates, real, within


@pytest.mark.parametrize("given", [1, 1.0, [1, 2], [[1.0], [2.0]], np.float32(1.5), np.arange(3), np.ones((2, 2))])
def test_numbers_lists_and_arrays_become_float64(given):
    found = real("x", given)
    assert found.dtype == torch.float64
    assert found.shape == np.shape(given)
    np.testing.assert_array_equal(found.numpy(), np.asarray(given, dtype=np.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tensors_keep_dtype_and_graph(dtype):
    leaf = torch.ones(3, dtype=dtype, requires_grad=True)
    assert real("x", leaf) is leaf
    stacked = real("x", [leaf[0], leaf[1] * 2])
    assert stacked.dtype == dtype
    (slope,) = torch.autograd.grad(stacked.sum(), leaf)
    assert slope.tolist() == [1.0, 2.0, 0.0]


@pytest.mark.parametrize(
    "given",
    [
        *("1.0", b"1", None, object(), ["a"], [[1.0, 2.0], [3.0]], 1j, True, [True, False], {"a": 1}),
        *(torch.tensor(1), torch.tensor(True), torch.tensor(1j), torch.tensor(1.0, dtype=torch.float16)),
        torch.tensor(1.0, dtype=torch.bfloat16),
        torch.ones(100, dtype=torch.float64, device="meta"),
    ],
)
def test_what_is_no_real_number_is_refused_by_name(given):
    with pytest.raises(ValueError, match="`x` must"):
        real("x", given)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (math.nan, "nan"),
        (math.inf, "inf"),
        ([1.0, -math.inf], "-inf at index 1"),
        ([[1.0, math.nan]], r"nan at index \(0, 1\)"),
    ],
)
def test_nan_and_infinity_are_shown_with_their_place(given, shown):
    with pytest.raises(ValueError, match=f"`x` must be finite, got {shown}"):
        real("x", given)


@pytest.mark.parametrize(
    ("bounds", "good", "bad", "rule"),
    [
        ({"above": 0}, [1e-300, 5.0], [0.0, -1.0], "be above 0"),
        ({"at_least": 0}, [0.0, 5.0], [-1e-300], "be 0 or more"),
        ({"below": 1}, [0.99, -5.0], [1.0, 2.0], "be below 1"),
        ({"at_most": 1}, [1.0], [1.0000001], "be 1 or less"),
        ({"above": -1, "below": 1}, [0.0], [-1.0, 1.0], r"lie in \(-1, 1\)"),
        ({"at_least": 0, "at_most": 1}, [0.0, 1.0], [-0.1, 1.1], r"lie in \[0, 1\]"),
        ({"above": 0, "at_most": 0.5}, [0.5], [0.0, 0.6], r"lie in \(0, 0.5\]"),
    ],
)
def test_bounds_are_open_or_closed_as_said(bounds, good, bad, rule):
    for value in good:
        assert within("x", value, **bounds).item() == value
    for value in bad:
        with pytest.raises(ValueError, match=f"`x` must {rule}, got"):
            within("x", value, **bounds)
        with pytest.raises(ValueError, match="at index 1"):
            within("x", [good[0], value], **bounds)


def test_dates_ascend_strictly_along_the_last_axis():
    assert dates("t", 1.0).shape == (1,)
    assert dates("t", [[0.5, 1.0], [0.1, 0.2]]).shape == (2, 2)
    for bad in ([1.0, 0.5], [0.5, 0.5], [[0.5, 1.0], [1.0, 0.5]]):
        with pytest.raises(ValueError, match=r"`t` must ascend strictly, got 0\.5"):
            dates("t", bad)
    with pytest.raises(ValueError, match="at least one time"):
        dates("t", [])
    with pytest.raises(ValueError, match="above 0"):
        dates("t", [0.0, 1.0])
    assert dates("t", [0.0, 1.0], at_least=0.0)[0] == 0.0


def test_choices_are_listed():
    assert choice("option", "put", ("call", "put")) == "put"
    with pytest.raises(ValueError, match="`option` must be one of 'call', 'put', got 'Call'"):
        choice("option", "Call", ("call", "put"))


def test_shapes_broadcast_by_the_rules_of_numpy():
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        sizes = [tuple(torch.randint(1, 3, (n,), generator=generator).tolist()) for n in (0, 1, 2, 3)]
        named = {f"x{i}": torch.zeros(size) for i, size in enumerate(sizes)}
        try:
            wanted = np.broadcast_shapes(*sizes)
        except ValueError:
            with pytest.raises(ValueError, match="do not broadcast"):
                broadcast_shape(**named)
        else:
            assert broadcast_shape(**named) == wanted
    with pytest.raises(ValueError, match=r"`b` of shape \(2,\) and `c` of shape \(3,\)"):
        broadcast_shape(a=torch.zeros(()), b=torch.zeros(2), c=torch.Size([3]))


def test_copies_share_what_is_not_replaced_and_conversion_reaches_inside():
    @dataclasses.dataclass(frozen=True)
    class Inner:
        x: torch.Tensor

    @dataclasses.dataclass(frozen=True)
    class Outer:
        inner: Inner
        y: torch.Tensor
        n: int

    item = Outer(Inner(torch.ones(2)), torch.zeros(()), 3)
    twin = copied(item, n=4)
    assert (item.n, twin.n) == (3, 4)
    assert twin.inner is item.inner
    double = converted(item, torch.float64, torch.device("cpu"))
    assert double.inner.x.dtype == double.y.dtype == torch.float64
    assert item.inner.x.dtype == torch.float32
