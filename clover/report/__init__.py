"""Carbon reports from a ledger: what was emitted, saved against what, how sure, and where are gaps.

records      the report as data          build        rows of a ledger -> report
source       reads these rows            breakdowns   grams by time, model, variant, device, tenant
sealing      digests and signatures      sci_for_ai   the consumer report of SCI for AI
figures      charts as plain data        render       text, CSV, Parquet, HTML
checking     whether a report is as it was made
"""
