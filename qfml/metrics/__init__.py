"""Metrics as pure functions on arrays, with explicit conventions."""
