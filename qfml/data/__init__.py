"""Time-stamped data: sources, features, labels, weights, transforms and the dataset that carries time."""
