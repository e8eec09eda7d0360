"""The problem file: what is read, what is refused and where, and the objective it defines."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clover.errors import ConfigError
from clover.research.problem.file import parse
from tests.reference.problems import PARTITIONS, of_plain, plain_problem


def changed(path: str, value: Any) -> dict[str, Any]:
    """A good problem with one value replaced; `path` as in messages."""
    plain = plain_problem(3, 2)
    at: Any = plain
    keys = [int(key) if key.isdigit() else key for key in path.replace("[", ".").replace("]", "").split(".")]
    for key in keys[:-1]:
        at = at[key]
    if value is None:
        del at[keys[-1]]
    else:
        at[keys[-1]] = value
    return plain


def test_a_file_is_read() -> None:
    problem = parse(json.dumps(plain_problem(3, 2)))
    assert (problem.n_gpus, problem.model, len(problem.groups)) == (2, "mf", 15)
    assert problem.groups[7].name == "v1@3g"
    assert problem.service_s[7] == pytest.approx(problem.groups[7].service_ms / 1e3)
    assert problem.partition_slices[problem.slice_of[7]] == "3g"
    assert problem.counts({"v1@3g": 4})[7] == 4
    assert problem.named(problem.counts({"v1@3g": 4, "v0@7g": 0})) == {"v1@3g": 4}


def test_keys_that_the_form_does_not_know_are_passed_over() -> None:
    plain = plain_problem(3, 2) | {"best_known": {"f": 1.0}, "note": "x"}
    plain["groups"][0]["colour"] = "red"
    assert of_plain(plain) == of_plain(plain_problem(3, 2))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("schema", "clover-problem/2"),
        ("n_gpus", 0),
        ("n_gpus", 2.5),
        ("arrival_rate", 0.0),
        ("arrival_rate", "fast"),
        ("quantile", 1.0),
        ("sla_ms", -1.0),
        ("lambda", 1.5),
        ("lambda", None),
        ("carbon_intensity", -1.0),
        ("ci_base", 0.0),
        ("idle_w_per_gpu", -1.0),
        ("base.accuracy", 0.0),
        ("base.energy_j_per_request", None),
        ("model", "exact"),
        ("groups", []),
        ("groups[4].service_ms", 0.0),
        ("groups[4].cv", -0.1),
        ("groups[4].energy_j", -0.1),
        ("groups[4].slice", "5g"),
        ("groups[4].slice", "1g"),
        ("groups[2].fits", None),
        ("partitions", []),
        ("partitions[3]", [1, 2]),
        ("partitions[3]", [0, 0, 0, 0, 0]),
        ("partitions[3]", [0, -1, 0, 0, 1]),
        ("partitions[3]", [0, 10**30, 0, 0, 1]),
        ("partitions[3]", [0, 0, 500, 0, 501]),
        ("partition_slices[1]", "1g"),
    ],
)
def test_a_fault_is_named_with_its_path(path: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        of_plain(changed(path, value))
    said = str(caught.value)
    if value is None or value == "1g":  # told where it is missing, or of the whole that is there twice
        assert path.split(".")[-1] in said or "already" in said
        assert said.startswith(path.split(".")[0]) or "." not in path
    else:
        assert said.startswith(f"{path}:")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": "clover-problem/1", "n_gpus": NaN}'])
def test_what_is_no_problem_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse(text)


def test_numbers_beyond_floats_are_refused() -> None:
    text = json.dumps(plain_problem(3, 2)).replace('"quantile": 0.95', '"quantile": 1e999')
    with pytest.raises(ConfigError):
        parse(text)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), parts=st.lists(st.floats(0.0, 1.0), min_size=15, max_size=15))
def test_the_objective_is_linear_in_the_shares(seed: int, parts: list[float]) -> None:
    problem = of_plain(plain_problem(seed, 2))
    shares = np.array(parts) + 1e-9
    shares /= shares.sum()
    energy_j = problem.idle_w_per_gpu * 2 / problem.arrival_rate + float(shares @ problem.energy_j)
    saved = 1.0 - energy_j * problem.carbon_intensity / (problem.base.energy_j_per_request * problem.ci_base)
    lost = (problem.base.accuracy - float(shares @ problem.accuracy)) / problem.base.accuracy
    f = problem.lam * saved - (1.0 - problem.lam) * lost
    assert problem.offset + float(shares @ problem.gains) == pytest.approx(f, abs=1e-12)
    assert problem.objective(energy_j, float(shares @ problem.accuracy)) == pytest.approx(f, abs=1e-12)


def test_the_scale_of_a_gap() -> None:
    plain = plain_problem(3, 2)
    quick = plain | {"arrival_rate": 13.9 / (plain["groups"][0]["service_ms"] * 1e-3)}
    problem = of_plain(quick)
    smallest = problem.offset + float(problem.gains[0])
    assert problem.scale(smallest + 0.5) == pytest.approx(0.5)
    assert problem.scale(smallest + 1e-6) == 0.01
    overloaded = of_plain(plain | {"arrival_rate": 14.1 / (plain["groups"][0]["service_ms"] * 1e-3)})
    assert overloaded.scale(-0.3) == pytest.approx(0.3)
    assert overloaded.scale(0.0) == 0.01


def test_partitions_without_a_fitting_variant_are_not_used() -> None:
    plain = plain_problem(3, 2)
    for group in plain["groups"]:
        group["fits"] = group["slice"] not in ("1g", "7g")
    rows = sorted(row for row in PARTITIONS if not row[0] and not row[4])
    assert sorted(map(tuple, of_plain(plain).usable.tolist())) == rows
