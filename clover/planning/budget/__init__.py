"""Accuracy as a budget over hours: what to spend now, forecasts, bounds, and baselines."""
