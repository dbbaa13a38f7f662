"""Published and recomputed prices that belong to several tests, each with its citation; append only."""

# v0, kappa, theta, sigma, rho
LEWIS = (0.04, 4.0, 0.25, 1.0, -0.5)  # QuantLib, test-suite/hestonmodel.cpp: values by A. Lewis; r .01, q .02
FANG_OOSTERLEE = (0.0175, 1.5768, 0.0398, 0.5751, -0.5711)  # Fang and Oosterlee (2008), section 5.4

# QuantLib, test-suite/asianoptions.cpp, after Kim and Wee (2014): v0, kappa, theta, sigma, rho; r .05; geometric
# continuous averages: expiry -> calls with strikes 90, 95, 100, 105, 110
KIM_WEE = (0.09, 1.15, 0.348, 0.39, -0.64)
KIM_WEE_CALLS = {0.2: (10.6571, 6.5871, 3.4478, 1.4552, 0.4724), 1.5: (16.5030, 13.7625, 11.3374, 9.2245, 7.4122)}

# Zeng and Kwok (2013), Pricing bounds and approximations for discrete arithmetic Asian options, table 4; Fang and
# Oosterlee's Heston set, r .03, 120 monthly fixings: strike -> call. QuantLib holds its simulation to them within .03.
ZENG_KWOK_CALLS = {60.0: 42.5990, 100.0: 18.2360}
# Recomputed by exact simulation of the variance: strike -> (call, standard error). QuantLib's quadratic-exponential
# simulation with 400,000 pairs of paths gives 42.5860 +- .0030 for the first.
ASIAN_CALLS = {60.0: (42.5898, 0.0015), 100.0: (18.2395, 0.0028)}

# Levy (1997) with its rounding taken out by two engines, +- 2e-5: arithmetic put, S 90, K 87, r .025, q .06, vol .13,
# first fixing now, the last after 11/12 years: number of fixings -> put
ARITHMETIC_PUTS = {12: 1.699283, 52: 1.740616}

# Ikonen and Toivanen (2004), Operator splitting methods for American option pricing: put, strike 10, T .25, r .1
IKONEN_TOIVANEN = (0.0625, 5.0, 0.16, 0.9, 0.1)
IKONEN_TOIVANEN_PUTS = {8.0: 2.00000, 9.0: 1.10763, 10.0: 0.520038}

# QuantLib, test-suite/fdheston.cpp: up-and-out call, K 100, B 135, r .05, T 1, within .01; refined grids +- .004.
# Delta and gamma of QuantLib's grid of 400 x 800 x 200 and of this library's of 320 x 480 x 160: .5196 and .5200,
# -.03789 and -.03793, both still moving away from zero by less than .0004 and .0001; the default grid of 240 x 80 x 80
# has .5193 and -.0376.
UP_OUT_HESTON = (0.04, 2.5, 0.04, 0.66, -0.8)
UP_OUT_CALL = {"quantlib": 9.1530, "refined": 9.156, "delta": 0.5200, "gamma": -0.0379}

# QuantLib, test-suite/sabr tests: calls on a forward of 100 after half a year that alpha 1.5, nu .33, rho .1 explain
SABR_STRIKES = (80.0, 90.0, 100.0, 110.0, 120.0)
SABR_CALLS = (20.09689284, 10.91953054, 4.25012702, 1.11561839, 0.20815853)

# McCrickerd and Pakkanen (2018), Turbocharging Monte Carlo pricing for the rough Bergomi model, table 2: T .25 in 312
# steps: log(K / S) -> implied volatility. The last one depends on the step: .1616, .1574, .1557, .1553 with 78, 312,
# 1,000 and 3,000 steps, recomputed with standard errors up to .00014.
ROUGH_BERGOMI = {"xi": 0.235**2, "eta": 1.9, "hurst": 0.07, "rho": -0.9}
ROUGH_BERGOMI_VOLS = {-0.1787: 0.2961, 0.0: 0.2061, 0.1041: 0.1576}

# Krekel, de Kock, Korn and Man (2004), An analysis of pricing methods for basket options, recomputed: four assets, vol
# .4, correlation .5, T 5, forwards 100, undiscounted, equal weights: strike -> call
KREKEL_CALLS = {60.0: 47.4811265, 80.0: 36.3517843, 100.0: 28.0073695, 120.0: 21.7625789, 140.0: 17.0655420}

# Glasserman (2004), Monte Carlo methods in financial engineering, page 462: call on the better of two, K 100, r .05,
# q .1, vol .2, uncorrelated, T 3, nine dates: spot of both -> value
MAX_CALLS = {90.0: 8.08, 100.0: 13.90}

# Antonov and Spector (2012): alpha .25, beta .3, rho -.8, nu .3, ten years, forward 1: strike -> (simulated volatility,
# the same by finite differences in two dimensions, Hagan's expansion)
SABR_TRUTH = {0.1: (0.5715, 0.57258, 0.7176), 1.0: (0.2304, 0.23096, 0.2427), 2.0: (0.1301, 0.13025, 0.1322)}
