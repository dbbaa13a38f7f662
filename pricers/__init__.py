"""pricers: stochastic models, instruments and engines; torch and mathematics only."""
