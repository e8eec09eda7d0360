from collections import Counter
from pathlib import Path

from rows import fly, shots
from scores import within_two_metres

import clover

rows = shots(1000, 3)  # neither calibration nor held out
metres = fly(rows)
settings = {"policy": "objective", "objective": "floor", "accuracy_floor": 98}
settings |= {"design_rate": 200, "slo_ms": 50, "waits": False}  # so that one plan serves the whole run
with clover.Server(str(Path(__file__).parent), http=False, carbon="static:400", profile="wait", **settings) as server:
    for name, asked in {"simulation": {"min_accuracy": 99, "cascade": False}, "cascade": {}}.items():
        right, joules, paths = 0, 0.0, Counter()
        for part in (slice(start, start + 8) for start in range(0, len(rows), 8)):
            answer = server.infer({"shot": rows[part]}, **asked)
            right += within_two_metres(answer, metres[part]).sum()
            joules += answer.receipt.energy_j
            paths.update(answer.receipt.path or answer.variants)
        print(f"{name}: {right / len(rows):.1%} right, {joules:.3f} J by the receipts, {dict(paths)}")
    print(answer.receipt)
