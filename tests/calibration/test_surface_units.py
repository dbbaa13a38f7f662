"""Units of quotes, looked at surface by surface: what is asked about, and what is believed."""

import numpy as np
import pandas as pd
import pytest

from qfml.calibration import Surface, SurfaceHistory
from qfml.errors import DataError


def _history(shares):
    """Days of quotes around a forward of 115."""
    shared = {"expiry": 0.5, "forward": 115.0}
    days = [pd.DataFrame({"date": f"2024-01-0{day + 2}"} | shared | own) for day, own in enumerate(shares)]
    return pd.concat(days, ignore_index=True)


def test_quiet_vols_of_a_named_unit_are_believed_and_an_odd_date_is_not():
    vols = [1.3, 1.2, 1.3], [0.95, 0.9, 0.95]
    quiet = _history([{"strike": [110.0, 115.0, 120.0], "vol": own} for own in vols])
    found = SurfaceHistory.from_frame(quiet, vol_unit="percent")
    np.testing.assert_allclose(found[1].vol, [0.0095, 0.009, 0.0095])
    vols = [20.0, 19.0, 21.0], [0.2, 0.19, 0.21]
    mixed = _history([{"strike": [110.0, 115.0, 120.0], "vol": own} for own in vols])
    with pytest.raises(DataError, match="2024-01-03 look like decimals"):
        SurfaceHistory.from_frame(mixed, vol_unit="percent")


def test_a_date_of_few_strikes_is_not_asked_about_and_a_thousand_times_the_forward_is():
    vol = {"vol": 0.2}
    good = _history([{"strike": [90.0, 100.0, 115.0, 130.0]} | vol, {"strike": [95.0, 104.0]} | vol])
    assert len(SurfaceHistory.from_frame(good)) == 2
    far = {"strike": np.array([80.0, 100.0, 120.0]) * 1000, "expiry": 1.0, "vol": [0.2, 0.2, 0.2], "forward": 100.0}
    with pytest.raises(DataError, match="lie far from the forward"):
        Surface(**far)
    assert float(Surface(**far, strike_unit="price").strike.max()) == 120_000.0
