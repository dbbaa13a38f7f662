"""qfml: from time-stamped market data and stochastic models to trained, validated, shippable networks."""
