"""Networks that price: labels from `pricers`, training, judgement, and prices that refuse to extrapolate."""
