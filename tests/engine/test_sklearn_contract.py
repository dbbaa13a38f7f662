"""scikit-learn's own checks of an estimator, one test a check."""

import pytest
from sklearn.utils.estimator_checks import estimator_checks_generator

import qfml
from qfml.engine.sklearn import EXPECTED_FAILED_CHECKS, NeuralClassifier, NeuralRegressor

QUICK = qfml.Trainer(max_epochs=15, batch_size=64, optimizer=qfml.AdamW(lr=0.03))
SMALL = qfml.MLP(hidden=(16,))


def checks(estimators, *marks):
    """As scikit-learn's `parametrize_with_checks`, but a test may be marked, and none is an optional skip."""
    return [
        pytest.param(estimator, check, marks=marks, id=f"{name}-{place}-{check.func.__name__}")
        for name, estimator in estimators.items()
        for place, (estimator, check) in enumerate(estimator_checks_generator(estimator))
        if check.func.__name__ not in {*EXPECTED_FAILED_CHECKS, "check_array_api_input"}
    ]


FAST = {"regressor": NeuralRegressor(SMALL, trainer=QUICK), "classifier": NeuralClassifier(SMALL, trainer=QUICK)}
SLOW = {
    "regressor_as_it_comes": NeuralRegressor(),
    "classifier_as_it_comes": NeuralClassifier(),
    "regressor_validated": NeuralRegressor(SMALL, trainer=QUICK, validation=0.2, n_seeds=3),
    "classifier_validated": NeuralClassifier(SMALL, trainer=QUICK, validation=0.2, n_seeds=3),
}


@pytest.mark.parametrize(("estimator", "check"), [*checks(FAST), *checks(SLOW, pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # some checks provoke scikit-learn's own
def test_scikit_learn_check(estimator, check):
    check(estimator)


@pytest.mark.parametrize("estimator", [NeuralRegressor(SMALL, trainer=QUICK), NeuralClassifier(SMALL, trainer=QUICK)])
def test_the_one_expected_failure_is_listed_and_does_fail(estimator):
    for _, check in estimator_checks_generator(estimator):
        if check.func.__name__ in EXPECTED_FAILED_CHECKS:
            with pytest.raises(AssertionError, match="not equivalent to fitting with removed or repeated"):
                check(estimator)
            return
    pytest.fail("scikit-learn has no such check any more")
