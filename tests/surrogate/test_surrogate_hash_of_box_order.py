"""The hash of a surrogate knows which column is which."""

from dataclasses import replace

from surrogate_cases import CALLS, quick, rows_of, table_of

from qfml.surrogate import fit_surrogate


def test_the_order_of_the_box_changes_the_hash():
    inputs = rows_of(CALLS, 64)
    surrogate = fit_surrogate(CALLS, table_of(CALLS, inputs, CALLS.exact(inputs)), quick(epochs=1))
    turned = replace(CALLS, box=dict(reversed(CALLS.box.items())))
    assert turned == CALLS  # the boxes hold the same ranges
    assert turned.inputs != CALLS.inputs
    assert replace(surrogate, problem=turned).hash != surrogate.hash
