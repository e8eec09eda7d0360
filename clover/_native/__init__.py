"""The compiled kernels, built from `csrc/*.pyx`.

There is no fallback in Python.  A kernel that was not built is an error that says how to build it.
"""

from __future__ import annotations

from importlib.util import find_spec

KERNELS = (
    *("anneal", "batcher", "des", "floats", "histogram", "infer", "inputs", "lanes", "protobuf", "queueing"),
    *("random", "ring", "route", "scores", "slots", "timeshare", "wakeups", "wire"),
)

_missing = [name for name in KERNELS if find_spec(f"{__name__}.{name}") is None]
if _missing:
    raise ImportError(
        f"Clover's kernels are not built here (missing: {', '.join(_missing)}). "
        "Build them with: python setup.py build_ext --inplace",
        name=__name__,
    )
