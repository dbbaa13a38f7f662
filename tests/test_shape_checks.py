"""The checks of the test suite itself: a wrong shape is refused where one is stated, and nothing else is slowed."""

import os
from dataclasses import dataclass

import jaxtyping
import pytest
import shape_checks
import torch
from torch import Tensor

from qfml.hedging import Entropic

needs_checks = pytest.mark.skipif(
    os.environ.get("JAXTYPING_DISABLE", "0").lower() not in ("0", "", "false"), reason="the checks are switched off"
)


@needs_checks
@pytest.mark.parametrize("pnl", [torch.ones(3), torch.ones(1, 2, 3), [[1.0, 2.0]]])
def test_a_method_that_states_a_shape_refuses_another(pnl):
    with pytest.raises(jaxtyping.TypeCheckError, match="pnl"):
        Entropic(1.0).value(pnl, None)


def array(x: jaxtyping.Float[Tensor, "a b"]) -> None: ...


def alias(x: "Rows | None") -> None: ...


def inside(x: "dict[str, list[Rows]]") -> None: ...


def unknown(x: "NotThere") -> None: ...  # noqa: F821  # pyright: ignore


def plain(x: "int | dict[str, float]", y: "Tensor", *, z=3) -> None: ...


@dataclass
class Holding:
    units: "Rows"


class Holder:
    @property
    def shaped(self) -> "Rows":
        return torch.ones(1)

    @classmethod
    def made(cls, x: "Rows") -> None: ...

    @classmethod
    def counted(cls, x: int) -> None: ...


Rows = jaxtyping.Float[Tensor, " row"]


@pytest.mark.parametrize(
    ("made", "checked"),
    [
        *(
            (one, True)
            for one in (array, alias, inside, unknown, Holding, vars(Holder)["shaped"], vars(Holder)["made"])
        ),
        *((one, False) for one in (plain, vars(Holder)["counted"], Holder, lambda x: x)),
    ],
)
def test_what_states_a_shape_is_checked_and_nothing_else(made, checked):
    assert shape_checks.is_checked(made) == checked
