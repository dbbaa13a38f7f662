"""Published and independently recomputed values, each with its citation; append only."""

import math

# --- Backtest statistics -------------------------------------------------------------------------------------------

# Bailey and Lopez de Prado (2014), The deflated Sharpe ratio, appendix A.1: n_trials -> E[max of n standard normals]
EXPECTED_MAX_SHARPE = {10: 1.57459830134575, 100: 2.5306028932016846, 1000: 3.255121513652723}

# Bailey and Lopez de Prado (2012), The Sharpe ratio efficient frontier, section 4: monthly hedge fund index, 24 months
PROBABILISTIC_SHARPE = (
    {"sharpe": 1.585 / math.sqrt(12), "n_obs": 24, "skew": 0.0, "kurtosis": 3.0, "psr": 0.9815912360834967},
    {"sharpe": 1.585 / math.sqrt(12), "n_obs": 24, "skew": -2.448, "kurtosis": 10.164, "psr": 0.91323430688486018},
)

# Bailey and Lopez de Prado (2012): standard error of a monthly Sharpe ratio, printed to four digits
SHARPE_STD_ERROR = {"sharpe": 0.7079, "n_obs": 134, "skew": -0.2250, "kurtosis": 2.9570, "std_error": 0.1028}

# Bailey and Lopez de Prado (2014), The deflated Sharpe ratio, numerical example; Sharpe and variance are annual
DEFLATED_SHARPE = {
    "annual_sharpe": 2.5,
    "annual_trial_variance": 0.5,
    "n_trials": 100,
    "n_obs": 1250,
    "periods_per_year": 250,
    "skew": -3.0,
    "kurtosis": 10.0,
    "dsr": 0.9003968344493903,
}

# Bailey and Lopez de Prado (2012), minimum track record of an annual Sharpe 2 against 1, normal, 95 %: periods -> years
MIN_TRACK_RECORD_YEARS = {250: 2.731187801728176, 12: 3.239800696444647}

# Bailey, Borwein, Lopez de Prado and Zhu (2014), Pseudo-mathematics and financial charlatanism: annual Sharpe 1
MIN_BACKTEST_YEARS = {"n_trials": 45, "sharpe": 1.0, "years": 4.998087004443404}

# CSCV on numpy default_rng(seed).normal(0, 1, shape), Sharpe ddof 1, rank / (N + 1), logit <= 0; recomputed by two
# independent loops over itertools.combinations
PROBABILITY_OF_OVERFITTING = (
    {"seed": 0, "shape": (240, 10), "n_blocks": 6, "pbo": 0.2},
    {"seed": 0, "shape": (960, 20), "n_blocks": 8, "pbo": 0.5857142857142857},
)

# quantstats (its sign of a drawdown is negative) on np.random.seed(42); randn(500) * .02, 252 periods a year
QUANTSTATS = {
    "sharpe": 0.1106236327672,
    "sortino": 0.1607424874802,
    "max_drawdown": -0.3149957684798,
    "calmar": -0.0437376544208,
    "omega": 1.0177059063992,
}

# --- Risk measures -------------------------------------------------------------------------------------------------

# pdf(z(p)) / p, the expected shortfall of a standard normal: tail probability -> value
GAUSSIAN_EXPECTED_SHORTFALL = {0.05: 2.0627128075, 0.01: 2.6652142203}

# pfhedge, tests of nn/functional: P&L 0, -1, -2, -3 at a tail of one half
SAMPLE_EXPECTED_SHORTFALL = {"pnl": [0.0, -1.0, -2.0, -3.0], "tail": 0.5, "value": 2.5}

# --- Splitters -----------------------------------------------------------------------------------------------------

# Lopez de Prado (2018), Advances in Financial Machine Learning, section 12.3: (n_folds, n_test_folds) -> splits, paths
COMBINATORIAL_COUNTS = {(6, 2): (15, 5), (10, 2): (45, 9), (16, 8): (12870, 6435)}

# The same, section 12.4, for (5, 2): which split tests each fold (rows) on each path (columns), splits in
# lexicographic order
COMBINATORIAL_PATHS_5_2 = [[0, 1, 2, 3], [0, 4, 5, 6], [1, 4, 7, 8], [2, 5, 7, 9], [3, 6, 8, 9]]

# Worked out by hand from the purge rule: 20 daily rows, 4 folds, labels that end 3 days later -> training rows
PURGED_KFOLD_20_DAYS = [
    [*range(7, 20)],
    [*range(3), *range(12, 20)],
    [*range(8), *range(17, 20)],
    [*range(13)],
]

# --- Features, labels and weights ----------------------------------------------------------------------------------

# StockCharts ChartSchool, Relative Strength Index, spreadsheet cs-rsi: QQQQ closes from 14 December 2009 and RSI(14)
# from the 15th close on, the recursion started with the mean of the first 14 changes
WILDER_RSI_14 = {
    "close": (
        *(44.3389, 44.0902, 44.1497, 43.6124, 44.3278, 44.8264, 45.0955, 45.4245, 45.8433, 46.0826, 45.8931),
        *(46.0328, 45.6140, 46.2820, 46.2820, 46.0028, 46.0328, 46.4116, 46.2222, 45.6439, 46.2122, 46.2521),
        *(45.7137, 46.4515, 45.7835, 45.3548, 44.0288, 44.1783, 44.2181, 44.5672, 43.4205, 42.6628, 43.1314),
    ),
    "rsi": (
        *(70.53, 66.32, 66.55, 69.41, 66.36, 57.97, 62.93, 63.26, 56.06, 62.38),
        *(54.71, 50.42, 39.99, 41.46, 41.87, 45.46, 37.30, 33.08, 37.77),
    ),
}

# Lopez de Prado (2018), Advances in Financial Machine Learning, section 4.5.3: labels on the returns r(0,3), r(2,4) and
# r(4,6); average uniqueness, and the probabilities of the next draw of a sequential bootstrap after the second label
OVERLAPPING_LABELS = {
    "time": (0, 2, 4),
    "label_end": (3, 4, 6),
    "average_uniqueness": (5 / 6, 3 / 4, 1.0),
    "drawn": (1,),
    "next_draw": (5 / 14, 3 / 14, 6 / 14),
}

# --- Deep hedging --------------------------------------------------------------------------------------------------

# Recomputed by dynamic programming on two grids: short at-the-money call, S = K = 1, vol .2, no drift, 28 steps of
# 1/365 year, proportional cost with the first trade charged, nothing unwound, entropic price
SHORT_CALL_HEDGED = (
    {"risk_aversion": 1.0, "cost": 1e-3, "optimum": 0.022575, "frictionless": 0.022103, "no_hedge": 0.022665},
    {"risk_aversion": 10.0, "cost": 1e-3, "optimum": 0.023206, "frictionless": 0.022160, "no_hedge": 0.028948},
)

# The same: slope of log(price - frictionless price) in log(cost) over costs 1e-4 to 2e-3, by risk aversion
SHORT_CALL_COST_EXPONENTS = {1.0: 0.58, 10.0: 0.79, 50.0: 0.86, 100.0: 0.89}

# The same at risk aversion 1 and cost 1e-3, with the small drift that the paths of a published example have
SHORT_CALL_OPTIMUM_WITH_SPURIOUS_DRIFT = 0.022539

# Whalley and Wilmott (1997) band as pfhedge tests it: cost 1e-5, risk aversion 1, 0.1 years, vol .2, holding .5 before:
# log-moneyness -> holding after
WHALLEY_WILMOTT_HOLDING = {-0.05: 0.2946, 0.0: 0.5}

# pfhedge, tests of nn/functional: entropic risk (aversion 1) of P&L 0, -1, -2, -3; quadratic CVaR (scale 2) of
# P&L 0, -1, ..., -9
SAMPLE_ENTROPIC_RISK = {"pnl": [0.0, -1.0, -2.0, -3.0], "risk_aversion": 1.0, "value": 2.0539}
SAMPLE_QUADRATIC_SHORTFALL = {"pnl": [-float(loss) for loss in range(10)], "scale": 2.0, "value": 7.9750}
