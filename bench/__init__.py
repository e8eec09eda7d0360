"""Benches of Clover: each prints a table, and writes JSON with `--json FILE`.  They measure; they never judge."""
