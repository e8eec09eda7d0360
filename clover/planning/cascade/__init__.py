"""Chains of variants with thresholds: what they cost, what they wait, and whether a simulation agrees."""
