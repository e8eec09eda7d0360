import os
from pathlib import Path

from data import load

import clover

os.environ["JOBLIB_MULTIPROCESSING"] = "0"  # what joblib tries first, a worker may not do
folder = Path(__file__).parent
(rows,), labels = load(folder, "held_out")
with clover.Server(str(folder), http=False, carbon="static:400") as server:
    answer = server.infer({"pixels": rows[0]})
    print(f"it is a {labels[0]}, and the answer is {answer.label}")
    print(answer.receipt)
