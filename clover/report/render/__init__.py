"""A report as text, CSV, Parquet and HTML: each draws on the records of `clover.report.records` and calculates
nothing."""
