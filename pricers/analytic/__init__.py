"""Closed forms and semi-analytic engines."""
