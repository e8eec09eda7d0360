"""The `ocr` family: lines whose text is known, CTC by hand, metrics, and a picture read through the family's steps."""

from __future__ import annotations

import importlib.util
import io
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from clover import families, steps
from clover.profiling.score import judge
from clover.types import FamilySpec

pytest.importorskip("PIL", reason='needs pillow: pip install "clover-inference[models]"')


@pytest.fixture(scope="module")
def spec() -> FamilySpec:
    return families.load_family("ocr")


def module(spec: FamilySpec, loader: str) -> ModuleType:
    return sys.modules[families.resolve(loader, spec.folder).__module__]


def texts(*lines: str) -> Any:
    made = np.empty((len(lines), 1), dtype=object)
    made[:, 0] = [line.encode() for line in lines]
    return made


def drawn(text: str) -> bytes:
    """Return a clean picture of `text`, PNG."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (30 + 18 * len(text), 48), "white")
    ImageDraw.Draw(image).text((12, 8), text, font=ImageFont.load_default(28), fill="black")
    written = io.BytesIO()
    image.save(written, "PNG")
    return written.getvalue()


def test_lines_are_drawn_alike_every_time(spec: FamilySpec) -> None:
    data = module(spec, "data:load")
    one, other = (data.picture("Total 12.50", np.random.RandomState(3)) for _ in range(2))
    assert one == other
    generator = np.random.RandomState(1)
    lines = [data.words(generator) for _ in range(300)]
    assert all(line.isascii() and line == line.strip() for line in lines)
    assert len(set(lines)) > 280
    longest = max(lines, key=len)
    assert len(data.picture(longest, np.random.RandomState(0))) < spec.inputs[0].max_bytes - 4


def test_ctc_leaves_out_repetitions_and_blanks(spec: FamilySpec) -> None:
    decoded = module(spec, "model:load").decoded
    places = np.array([[0, 1, 1, 0, 1, 2, 2, 3]])
    probabilities = np.full((1, 8, 4), 0.1, np.float32)
    np.put_along_axis(probabilities, places[..., None], 0.7, axis=2)
    (text, sure), *_ = decoded(probabilities, ["", "a", "b", " "])
    assert text == "aab "
    assert sure == pytest.approx(0.7)
    blank = np.zeros((1, 4, 4), np.float32)
    blank[:, :, 0] = 1.0
    assert decoded(blank, ["", "a", "b", " "]) == [("", 0.0)]


def test_a_line_is_right_as_a_whole_or_by_its_characters(spec: FamilySpec) -> None:
    outputs = {"text": texts("Total 5", "Total5", "", "Tota1 S")}
    labels = np.array(["Total 5"] * 4)
    assert judge(spec)(outputs, labels).tolist() == [1.0, 0.0, 0.0, 0.0]
    characters = families.resolve("scores:characters", spec.folder)
    np.testing.assert_allclose(characters(outputs, labels), [1.0, 6 / 7, 0.0, 5 / 7])
    edits = module(spec, "scores:characters").edits
    assert [edits("kitten", "sitting"), edits("", "abc"), edits("abc", "abc"), edits("ab", "ba")] == [3, 3, 0, 2]


def test_lines_are_narrowed_and_turned_to_blue_first(spec: FamilySpec) -> None:
    prepared = module(spec, "model:load").prepared
    lines = np.zeros((2, 48, 100, 3), np.uint8)
    lines[..., 0] = 255
    found = prepared(lines, 0.5)
    assert found.shape == (2, 3, 48, 50)
    assert found.dtype == np.float32
    assert found[:, 2].min() == found[:, 2].max() == 1.0
    assert found[:, 0].min() == found[:, 0].max() == -1.0
    assert prepared(lines[:, :, :8], 0.5).shape[3] == 16


@pytest.mark.skipif(
    importlib.util.find_spec("rapidocr") is None or importlib.util.find_spec("onnxruntime") is None,
    reason='needs rapidocr and onnxruntime: pip install "clover-inference[models]"',
)
def test_pictures_are_read_and_what_is_no_picture_is_refused_alone(spec: FamilySpec) -> None:
    chosen = spec.variant("v6-most")
    plan = steps.plan_for(spec, chosen)
    assert plan is not None
    model = families.resolve(chosen.loader, spec.folder)(chosen, Path(spec.folder))
    pictures = np.empty((3, 1), dtype=object)
    pictures[:, 0] = [drawn("Invoice 48213"), b"no picture at all", drawn("Harbour Street 7")]
    before = plan.worker_before.apply({"image": pictures}, 3)
    assert set(before.refused) == {1}
    column = before.columns[plan.taken[0]]
    read = [model([np.asarray(column[at])[None]]) for at in range(2)]
    assert [bytes(answer[0][0, 0]).decode() for answer in read] == ["Invoice 48213", "Harbour Street 7"]
    assert min(float(answer[1][0, 0]) for answer in read) > 0.9

@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("cv2") is None, reason="needs rapidocr with what it imports")
def test_lines_are_read_as_rapidocr_reads_them(spec: FamilySpec) -> None:
    rapidocr = pytest.importorskip("rapidocr", reason='needs rapidocr: pip install "clover-inference[models]"')
    from PIL import Image, ImageDraw, ImageFont

    model = module(spec, "model:load")
    chosen = spec.variant("v6-wide")
    read = families.resolve(chosen.loader, spec.folder)(chosen, Path(spec.folder))
    theirs = rapidocr.RapidOCR(
        params={"Global.log_level": "warning", "Rec.model_path": str(model.file_of(*model.FILES["v6"][:2]))}
    )
    for text in ("Invoice total 1,234.56 NO-00042", "Harbour Street 7 and the pier beyond"):
        # 48 pixels high and at least 320 wide: nothing is scaled, and neither side fills anything up
        image = Image.new("RGB", (560, 48), "white")
        ImageDraw.Draw(image).text((12, 8), text, font=ImageFont.load_default(28), fill=(20, 30, 90))
        written = io.BytesIO()
        image.save(written, "PNG")
        rows = np.empty((1, 1), dtype=object)
        rows[0, 0] = written.getvalue()
        (line,) = steps.as_modelled(spec, chosen, [rows])
        found, sure = read([np.stack(list(line))])
        expected = theirs(np.asarray(image)[..., ::-1].copy(), use_det=False, use_cls=False, use_rec=True)
        assert bytes(found[0, 0]).decode() == expected.txts[0] == text
        assert float(sure[0, 0]) == pytest.approx(expected.scores[0], abs=2e-5)


def test_a_missing_package_is_named_with_what_installs_it(spec: FamilySpec, monkeypatch: pytest.MonkeyPatch) -> None:
    model = module(spec, "model:load")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r'needs rapidocr: pip install "clover-inference\[models\]"'):
        model.file_of("rapidocr", "models/x.onnx")
