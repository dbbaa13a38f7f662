"""scikit-learn's own checks of an estimator, one test a check."""

import pytest
from sklearn.utils.estimator_checks import check_estimator, estimator_checks_generator

import qfml
from qfml.engine.sklearn import EXPECTED_FAILED_CHECKS, NeuralClassifier, NeuralRegressor

QUICK = qfml.Trainer(max_epochs=15, batch_size=64, optimizer=qfml.AdamW(lr=0.03))
SMALL = qfml.MLP(hidden=(16,))


LONG = {"check_classifiers_train", "check_regressors_train", "check_regressor_data_not_an_array"}  # many steps each


def checks(estimators, slow):
    """As scikit-learn's `parametrize_with_checks`, but a test may be marked, and none is an optional skip."""
    return [
        pytest.param(
            estimator,
            check,
            marks=[pytest.mark.slow] if slow or check.func.__name__ in LONG else [],
            id=f"{name}-{place}-{check.func.__name__}",
        )
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


@pytest.mark.parametrize(("estimator", "check"), [*checks(FAST, slow=False), *checks(SLOW, slow=True)])
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


@pytest.mark.slow
@pytest.mark.parametrize("estimator", FAST.values(), ids=FAST.keys())
@pytest.mark.filterwarnings("ignore")  # it warns of the check that fails as expected, and of those it leaves out
def test_check_estimator_as_a_user_calls_it(estimator):
    records = check_estimator(estimator, expected_failed_checks=EXPECTED_FAILED_CHECKS, on_skip=None)
    failed = {record["check_name"] for record in records if record["status"] not in ("passed", "skipped")}
    assert failed == set(EXPECTED_FAILED_CHECKS)
    assert len(records) > 50
