"""From a declaration to what runs where: mistakes are named, tensors followed, and bad rows leave their neighbours."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from clover import families, steps
from clover.errors import ConfigError
from clover.http.api.metadata import model_metadata
from clover.steps import BadRow, ClientSteps
from clover.types import FamilySpec
from tests.support.family_folder import ROOT, fixture

Image = pytest.importorskip("PIL.Image", reason="pillow is not installed")


@pytest.fixture
def shades() -> FamilySpec:
    return fixture("shades")


def picture(level: int, width: int = 40, height: int = 30) -> bytes:
    made = io.BytesIO()
    Image.new("RGB", (width, height), (level,) * 3).save(made, "PNG")
    return made.getvalue()


def changed(tmp_path: Path, *pairs: tuple[str, str]) -> FamilySpec:
    """Return the family `shades` with its declaration changed."""
    source = ROOT / "tests" / "families" / "shades"
    text = (source / "family.toml").read_text()
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "family.toml").write_text(text)
    (tmp_path / "model.py").write_text((source / "model.py").read_text())
    return families.load_family(str(tmp_path))


def test_clients_see_pictures_and_labels_and_models_their_own_size(shades: FamilySpec) -> None:
    assert [one.name for one in shades.inputs] == ["picture"]
    assert [one.name for one in shades.outputs] == ["label", "probabilities", "labels"]
    shapes = [shades.model_inputs(variant)[0].shape for variant in shades.variants]
    assert shapes == [(3, 8, 8), (3, 16, 16)]
    assert {shades.model_outputs(variant)[0].name for variant in shades.variants} == {"logits"}
    assert families.load_family(shades) == shades
    plain = fixture("toy")
    assert plain.model_inputs(plain.variants[0]) == plain.inputs
    assert not plain.stepped
    assert shades.stepped


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"resize"', '"resice"', r"steps\.before\[1\]\.step: 'resice' is unknown \(did you mean resize\?\)"),
        ("max_pixels", "max_pixel", r"steps\.before\[0\] \(decode-image\): max_pixel: unknown key \(did you mean "),
        ('"$size"', '"$sizes"', r"\(crop\): size: variant 'small' has no parameter 'sizes' \(did you mean size\?\)"),
        ("k = 2", 'k = "2"', r"steps\.after\[1\] \(top-k\): .*`int`"),
        ("k = 2", "k = 3", r"steps\.after\[1\] \(top-k\): k = 3 does not fit 'logits', which is \[2\]"),
        ("max_pixels = 1_000_000", "max_pixels = 0", r"\(decode-image\): max_pixels is at least 1"),
        ("mean = [0.5, 0.5", "mean = [0.5, nan", r"\(normalise\): mean and std are finite"),
        ("shape = [1], max_bytes = 100_000", "shape = [2], max_bytes = 100_000", r"one element a row.* is \[2\]"),
        ("0 }]", '0 }, { name = "picture", datatype = "BYTES", shape = [1], max_bytes = 9 }]', r"inputs\[1\].*twice"),
        ('{ step = "softmax" }', '{ step = "softmax", input = "logit" }', r"no tensor 'logit' here \(did you mean log"),
        ("max_shape = [3, 16, 16]", "max_shape = [3, 12, 12]", r"before: the steps make 'pixels' FP32 \[3, 16"),
        ('{ name = "labels", datatype', '{ name = "names", datatype', r"steps\.after: the steps make no 'names', only"),
        ("max_bytes = 40", "max_bytes = 19", r"'labels' takes up to 20 bytes: its max_bytes must be as many"),
        ("mean = [0.5, 0.5, 0.5]", "mean = [0.5, 0.5]", r"\(normalise\): mean has 2 numbers for 3 channels"),
        ('step = "decode-image"', 'step = "normalise"', r"\(normalise\): max_pixels: unknown key"),
        ('before = [\n    { step = "decode-image", max_pixels = 1_000_000 },', "before = [", r"it takes UINT8"),
        ('run = "worker"', 'run = "workers"', r"steps\.run: "),
        ('run = "worker"', 'run = "client"', r"a client does not know which variant answers, and 'large'|no parameter"),
        ("after = [", "befor = []\nafter = [", r"steps\.befor: unknown key \(did you mean before"),
        ('labels = ["dark", "bright"]', 'file = "names.txt"', r"\(labels\): no file 'names\.txt' in the fam"),
        ('labels = ["dark", "bright"]', 'file = "../x"', r"must be a path below the family's folder"),
        ('name = "small"', 'name = "small"\ninputs = []', r"variants\[0\]\.inputs: is filled in by Clover"),
    ],
)  # fmt: skip
def test_a_mistake_is_named(old: str, new: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        changed(tmp_path, (old, new))


def test_sorted_values_are_no_answer(tmp_path: Path) -> None:
    label = '    { name = "label", datatype = "BYTES", shape = [1], max_bytes = 20 },\n'
    with pytest.raises(ConfigError, match=r"the first is the answer, .* and 'probabilities' holds sorted values"):
        changed(tmp_path, (label, ""))


def test_a_bad_row_leaves_its_neighbours(shades: FamilySpec) -> None:
    plan = steps.plan_for(shades, shades.variants[1])
    assert plan is not None
    rows = np.empty((4, 1), object)
    rows[:, 0] = [picture(255), b"no picture", picture(0), b""]
    for threads in (1, 2):
        found = plan.worker_before.apply({"picture": rows}, 4, steps.thread_mapper(threads))
        assert found.kept == [0, 2]
        assert found.refused == dict.fromkeys((1, 3), "the bytes are not a whole JPEG or PNG image")
        (taken,) = (steps.stack_rows(found.columns[name]) for name in plan.taken)
        assert taken.shape == (2, 3, 16, 16)
        assert taken[:, 0, 0, 0].tolist() == [1.0, -1.0]
    nobody = plan.worker_before.apply({"picture": rows[1::2]}, 2)
    assert (nobody.kept, sorted(nobody.refused)) == ([], [0, 1])


def test_made_up_rows_can_be_taken(shades: FamilySpec) -> None:
    rows = steps.made_up(shades, 20, np.random.default_rng(0))
    assert rows[0].shape == (20, 1)
    assert steps.as_sent(shades, rows)[0] is rows[0]
    for variant in shades.variants:
        (made,) = steps.as_modelled(shades, variant, rows)
        assert made.shape == (20, *shades.model_inputs(variant)[0].shape)


FIXED = ((', "$size"', ', "$size"'), ("size = 8 }", "size = 16 }"), ("resize = 10", "resize = 18"))


def test_steps_of_a_client_are_run_by_its_metadata(tmp_path: Path) -> None:
    spec = changed(tmp_path, ('run = "worker"', 'run = "client"'), *FIXED[1:])
    assert not spec.stepped
    assert [(one.name, one.shape) for one in spec.inputs] == [("pixels", (3, 16, 16))]
    assert [one.name for one in spec.outputs] == ["logits"]
    metadata = json.loads(json.dumps(model_metadata("shades", spec, ("1",))))
    mine = ClientSteps.from_metadata(metadata)
    assert mine is not None
    assert [one.name for one in mine.inputs] == ["picture"]
    sent = mine.before({"picture": [picture(255), picture(0, 17, 60)]})
    assert {name: (array.shape, array.dtype) for name, array in sent.inputs.items()} == {
        "pixels": ((2, 3, 16, 16), np.dtype(np.float32))
    }
    found = mine.after(sent, {"logits": np.array([[-3, 3], [3, -3]], np.float32)})
    assert found["labels"].tolist() == [[b"bright", b"dark"], [b"dark", b"bright"]]
    np.testing.assert_allclose(found["probabilities"][:, 0], 1 / (1 + np.exp(-6)), rtol=1e-5)
    with pytest.raises(BadRow, match="row 1: the bytes are not"):
        mine.before({"picture": [picture(1), b"x"]})
    with pytest.raises(BadRow, match="'picture' is missing"):
        mine.before({})


def test_a_split_family_sends_bytes_of_pixels(tmp_path: Path) -> None:
    spec = changed(tmp_path, ('run = "worker"', 'run = "split"'), *FIXED[1:])
    assert spec.stepped
    (wire,) = spec.inputs
    assert (wire.name, wire.datatype, wire.shape) == ("picture", "UINT8", (16, 16, 3))
    assert [one.name for one in spec.outputs] == ["label", "probabilities", "labels"]
    mine = ClientSteps.from_metadata(model_metadata("shades", spec, ("1",)))
    assert mine is not None
    sent = mine.before({"picture": [picture(255)]})
    plan = steps.plan_for(spec, spec.variants[0])
    assert plan is not None
    found = plan.worker_before.apply(sent.inputs, 1)
    assert steps.stack_rows(found.columns[plan.taken[0]]).min() == 1.0
    given = {one.name: np.ones((1, *one.shape)) for one in spec.outputs}
    assert mine.after(sent, given).keys() == given.keys()


def test_a_client_without_steps_of_its_own_has_none(shades: FamilySpec) -> None:
    assert ClientSteps.from_metadata(model_metadata("shades", shades, ("1",))) is None
    assert ClientSteps.from_metadata(model_metadata("toy", fixture("toy"), ("1",))) is None


def test_labels_of_a_file_are_shown_to_clients_and_belong_to_the_digest(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_bytes(b"\xef\xbb\xbfdark\r\nbright\r\n")  # as editors on Windows write it
    pair = ('labels = ["dark", "bright"]', 'file = "names.txt"')
    spec = changed(tmp_path, pair, ('run = "worker"', 'run = "client"'), *FIXED[1:])
    shown = model_metadata("shades", spec, ("1",))["parameters"]["steps"]
    assert shown["after"][2] == {"step": "labels", "labels": ["dark", "bright"]}
    assert shown["before"][1]["size"] == 18  # as all variants have it
    spec = changed(tmp_path, pair)
    shown = model_metadata("shades", spec, ("1",))["parameters"]["steps"]
    assert shown["after"][2] == {"step": "labels", "file": "names.txt"}
    assert shown["before"][1]["size"] == "$resize"
    (tmp_path / "names.txt").write_text("dark\nlight\n")
    again = changed(tmp_path, pair)
    assert again.digest != spec.digest
    for variant in spec.variants:  # what is compiled does not depend on it
        assert families.digest_of_variant(again, variant) == families.digest_of_variant(spec, variant)


@pytest.mark.parametrize("how", ["usual", "named", "of a variant"])
def test_a_tokenizer_belongs_to_the_digest(how: str, tmp_path: Path) -> None:
    pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    named = {"usual": "", "named": ', file = "tokenizer.json"', "of a variant": ', file = "$words"'}[how]
    (tmp_path / "model.py").write_text("def load(variant, folder): ...\n")
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "family.toml").write_text(f"""
        name = "texts"
        inputs = [{{ name = "input_ids", datatype = "INT64", shape = [8] }}]
        outputs = [{{ name = "y", datatype = "FP32", shape = [2] }}]
        variants = [{{ name = "a", loader = "model:load", parameters = {{ words = "tokenizer.json" }} }}]
        [steps]
        run = "worker"
        inputs = [{{ name = "text", datatype = "BYTES", shape = [1], max_bytes = 1000 }}]
        before = [{{ step = "tokenise", length = 8{named} }}]
        """)
    before = families.load_family(str(tmp_path)).digest
    (tmp_path / "tokenizer.json").write_text('{"added_tokens": []}')
    assert families.load_family(str(tmp_path)).digest != before


def test_a_client_needs_neither_torch_nor_the_server() -> None:
    code = (
        "import sys, clover.steps; wrong = [name for name in sys.modules if name.split('.')[0] in ('torch', 'PIL')"
        " or name.startswith(('clover.runtime', 'clover.http', 'clover.families', 'clover._native'))]; print(wrong)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_order_keeps_what_a_worker_needs(shades: FamilySpec) -> None:
    from clover.worker.frames import WorkerOrder

    order = WorkerOrder(family=shades, variant="large", backend="eager", cores=(0,), max_batch=4)
    again = msgspec.json.decode(msgspec.json.encode(order.trimmed()), type=WorkerOrder)
    plan: Any = steps.plan_for(again.family, again.family.variant("large"))
    assert [type(one.step).__name__ for one in plan.worker_before.steps] == [
        "DecodeImage",
        "Resize",
        "Crop",
        "Normalise",
    ]


def test_what_steps_take_is_noted_apart_from_the_model(shades: FamilySpec, tmp_path: Path) -> None:
    from clover.config import EnergyConfig
    from clover.profiling import rows

    (note,) = rows.step_notes(shades, rows.load(shades), EnergyConfig())
    assert "ms of CPU a row of large" in note
    spec = changed(tmp_path, ('run = "worker"', 'run = "split"'), *FIXED[1:])
    client, worker = rows.step_notes(spec, rows.load(spec), EnergyConfig())
    assert "ms of CPU a made-up row" in client
    assert "ms of CPU a row of large" in worker


def test_a_row_that_steps_refuse_leaves_their_cost_unknown(shades: FamilySpec) -> None:
    from clover.config import EnergyConfig
    from clover.profiling.rows import SampleRows, step_notes

    broken = np.empty((2, 1), object)
    broken[:, 0] = b"no picture"
    (note,) = step_notes(shades, SampleRows(shades, [broken], np.empty(0)), EnergyConfig())
    assert "row 0 is refused" in note
