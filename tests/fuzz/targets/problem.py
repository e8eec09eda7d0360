"""Problem files (`clover-problem/1`): a problem whose columns can be computed, or a ConfigError with the path."""

from __future__ import annotations

import json

import numpy as np

from clover.errors import ConfigError
from clover.research.problem.file import ProblemFile, parse

INSTRUMENTED = ("clover.research.problem",)

DICTIONARY = (
    *(b'"schema":', b'"clover-problem/1"', b'"n_gpus":', b'"groups":', b'"partitions":', b'"partition_slices":',
      b'"lambda":'),
    *(b'"service_ms":', b'"cv":', b'"energy_j":', b'"accuracy":', b'"fits":', b'"base":', b"1e308", b"1e-320",
      b"-0.0", b"0"),
    *(b"9223372036854775807", b"99999999999999999999", b"null", b"true", b"[]", b"{}", b'"pf"', b'"mf"', b'""',
      b"[[", b"]]"),
)  # fmt: skip


def seeds() -> list[bytes]:
    """Return a small problem, in the order of the form and in another."""
    problem = {
        "schema": "clover-problem/1", "id": "a", "n_gpus": 2, "arrival_rate": 40.0, "model": "pf", "sla_ms": 90.0,
        "quantile": 0.95, "lambda": 0.5, "carbon_intensity": 300.0, "ci_base": 350.0, "idle_w_per_gpu": 50.0,
        "base": {"energy_j_per_request": 4.0, "accuracy": 80.0},
        "partition_slices": ["7g", "3g"], "partitions": [[1, 0], [0, 2]],
        "groups": [
            {"variant": "b", "slice": name, "service_ms": ms, "cv": 0.1, "energy_j": 2.0, "accuracy": 78.0,
            "fits": True}
            for name, ms in (("7g", 9.0), ("3g", 20.0))
        ],
    }  # fmt: skip
    return [json.dumps(one).encode() for one in (problem, dict(reversed(problem.items())))] + [b"{}", b"[]"]


def check(data: bytes) -> str:
    """Read one problem."""
    try:
        problem = parse(data)
    except ConfigError as error:
        text = str(error)
        assert len(text) < 2000, text
        return f"refused: {text}"
    with np.errstate(all="ignore"):  # a problem may be of absurd size; its solver answers for that
        facts = (problem.service_s, problem.cv, problem.energy_j, problem.accuracy, problem.fits, problem.usable)
        text = repr([array.tobytes() for array in facts])
        assert problem.slice_of.max() < len(problem.partition_slices)
        assert problem.table.shape == (len(problem.partitions), len(problem.partition_slices))
    back = parse(json.dumps(_plain(problem)).encode())
    assert back == problem
    return text


def _plain(problem: ProblemFile) -> object:
    import msgspec

    return msgspec.to_builtins(problem)
