"""The picture of the folds, read back bar by bar."""

from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgba

from qfml.splits import CombinatorialPurgedKFold, PurgedKFold, WalkForward, plot_folds
from qfml.splits.plot import COLOURS

DAYS = np.arange("2024-01-01", "2024-01-21", dtype="datetime64[D]")


@pytest.fixture(autouse=True)
def _no_window():
    matplotlib.use("Agg")
    yield
    matplotlib.pyplot.close("all")


def drawn(ax, unit):
    """kind -> fold -> set of timestamps covered."""
    kinds = {to_rgba(colour): kind for kind, colour in COLOURS.items()}
    covered = {}
    for bars in ax.collections:
        paths = bars.get_paths()
        for path in paths:
            (x0, y0), (x1, y1) = path.vertices.min(axis=0), path.vertices.max(axis=0)
            kind, fold = kinds[tuple(bars.get_facecolor()[0])], round((y0 + y1) / 2)
            covered.setdefault((fold, kind), set()).update(range(round(x0 - unit), round(x1 - unit)))
    return covered


@pytest.mark.parametrize("splitter", [PurgedKFold(4, embargo=2), CombinatorialPurgedKFold(4, 2), WalkForward(8, 6)])
@pytest.mark.parametrize("datetimes", [True, False])
def test_bars_cover_exactly_the_samples_of_each_fold(splitter, datetimes):
    time = DAYS if datetimes else np.arange(20)
    order = np.random.default_rng(0).permutation(20)
    data = SimpleNamespace(time=time[order], label_end=time[order] + 3)
    ax = splitter.plot(data)
    covered = drawn(ax, unit=int(DAYS[0].astype(int)) if datetimes else 0)
    for number, fold in enumerate(splitter.folds(data)):
        for kind in COLOURS:
            assert covered.get((number, kind), set()) == {int(order[row]) for row in getattr(fold, kind)}
    assert [text.get_text() for text in ax.get_legend().get_texts()] == list(COLOURS)


def test_plot_draws_on_given_axes():
    _, ax = matplotlib.pyplot.subplots()
    assert plot_folds(PurgedKFold(4), time=DAYS, label_end=DAYS + 3, ax=ax) is ax
