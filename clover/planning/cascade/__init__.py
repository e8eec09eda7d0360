"""Chains of variants with thresholds: what they cost, how long rows wait, and whether a simulation agrees."""
