"""Predictions to positions to costs to P&L, beside baselines."""
