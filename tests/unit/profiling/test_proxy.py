"""Accuracy without labels: agreement with the last variant, labelled a proxy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from clover.errors import ConfigError
from clover.families import by_agreement, load_family
from clover.profiling.chains import Answers
from clover.profiling.proxy import judge_by_best
from clover.profiling.records import accuracy_of, pair_with_best
from clover.profiling.rig import Findings
from clover.profiling.rows import load
from clover.profiling.score import interval
from clover.types import FamilySpec, PublishedAccuracy
from tests.support.family_folder import BASE, write

PROXY = BASE.replace('loader = "data:load"\n', 'loader = "data:load"\nmetric = "agreement"\n')


@pytest.fixture
def spec(tmp_path: Path) -> FamilySpec:
    twice = PROXY.replace("[[variants]]", '[[variants]]\nname = "cheap"\nloader = "model:load"\n\n[[variants]]', 1)
    return load_family(str(write(tmp_path / "echo", twice)))


def said(*answers: int) -> Answers:
    return Answers(np.linspace(0, 1, len(answers)), np.zeros(len(answers), np.bool_), np.array(answers))


def test_labels_are_not_looked_at(spec: FamilySpec) -> None:
    assert by_agreement(spec)
    rows = load(spec)
    assert (rows.count, rows.labelled) == (5, False)


def test_nobody_published_the_accuracy_of_random_weights(spec: FamilySpec) -> None:
    alone = replace(spec, evaluation=None)
    given = replace(spec.variants[0], accuracy=PublishedAccuracy(value=80.0, metric="top1", source="its authors"))
    random = replace(given, untrained=True, accuracy=PublishedAccuracy(value=0.0, metric="top1", source="UNTRAINED"))
    found = [accuracy_of(alone, one, "eager", np.ones(2), np.ones(2), np.empty(0), 2) for one in (given, random)]
    assert [(one.value, one.method) for one in found] == [(80.0, "published"), (0.0, "none")]


def test_the_last_variant_is_right_on_every_row(spec: FamilySpec) -> None:
    found = Findings()
    answers = {"cheap": said(1, 2, 0, 4), "only": said(1, 2, 3, 4, 5)}
    for name, one in answers.items():
        found.held_out[name, "eager"] = one
        assert one.said is not None
        record = accuracy_of(spec, spec.variant(name), "eager", one.said, one.said, np.empty(0), len(one.said))
        assert (record.method, record.metric, record.samples) == ("proxy", "agreement", len(one.said))
        found.accuracy.append(record)
    found.calibration = {"cheap": said(0, 1, 1), "only": said(1, 1, 1)}
    judge_by_best(spec, found, {"cheap": "eager", "only": "eager"})
    cheap, best = found.accuracy
    assert (cheap.value, cheap.samples, (cheap.low, cheap.high)) == (75.0, 4, interval(3, 4))
    assert (best.value, best.samples, best.method) == (100.0, 5, "proxy")
    assert "only" in cheap.source
    assert found.held_out["cheap", "eager"].right.tolist() == [True, True, False, True]
    assert found.calibration["cheap"].right.tolist() == [False, True, True]
    assert any("proxy" in note for note in found.notes)
    judged = pair_with_best(found.accuracy, found.held_out, {"cheap": "eager", "only": "eager"})
    assert judged[0].against is not None
    assert judged[0].against[0] == -25.0


def test_unknown_metrics_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'agrement' is unknown \(did you mean agreement|'agrement' is unknown"):
        load_family(str(write(tmp_path / "echo", PROXY.replace('"agreement"', '"agrement"'))))
