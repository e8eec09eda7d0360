"""Carbon reports from a ledger: what was emitted, what was saved and against what, how sure it is, and where gaps are.

records      the report as data          build        rows of a ledger -> report
source       reads these rows            breakdowns   grams by time, model, variant, device, tenant
figures      charts as plain data        render       text, CSV, Parquet, HTML
checking     whether the ledger gives a report's figures
"""
