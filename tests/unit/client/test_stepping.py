"""Steps that a model's metadata leaves to its client: run here, and only there."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest

pytest.importorskip("httpx", reason="the client needs the extra `client`")

from clover.client.calls import Asking, Calls
from clover.client.messages import Reply, Retries
from clover.errors import BadRequest, ConfigError
from clover.http.api.metadata import model_metadata
from clover.steps import with_steps
from clover.types import FamilySpec, StepsSpec, TensorSpec, VariantSpec

PICTURE = TensorSpec(name="picture", datatype="BYTES", shape=(1,), max_bytes=100_000)
BEFORE: tuple[Any, ...] = (
    {"step": "decode-image"},
    {"step": "resize", "size": "$resize"},
    {"step": "crop", "size": 8},
    {"step": "normalise", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
)
AFTER: tuple[Any, ...] = (
    {"step": "softmax"},
    {"step": "top-k", "k": 2, "output": "probabilities"},
    {"step": "labels", "labels": ["dark", "bright"]},
)


def family(run: Any) -> FamilySpec:
    spec = FamilySpec(
        name="shades",
        inputs=(TensorSpec(name="pixels", datatype="FP32", shape=(3, -1, -1), max_shape=(3, 16, 16)),),
        outputs=(TensorSpec(name="logits", datatype="FP32", shape=(2,)),),
        variants=(VariantSpec(name="small", loader="m:f", parameters={"resize": 10}),),
        steps=StepsSpec(
            run=run,
            inputs=(PICTURE,),
            before=BEFORE,
            after=AFTER,
            outputs=(
                TensorSpec(name="labels", datatype="BYTES", shape=(2,), max_bytes=40),
                TensorSpec(name="probabilities", datatype="FP32", shape=(2,)),
            ),
        ),
    )
    return with_steps(spec, None)


def picture(grey: int) -> bytes:
    image = pytest.importorskip("PIL.Image", reason="pillow is not installed")
    out = io.BytesIO()
    image.new("RGB", (20, 12), (grey, grey, grey)).save(out, "PNG")
    return out.getvalue()


def infer(run: str, given: Any, outputs: dict[str, Any]) -> tuple[dict[str, Any], bytes, dict[str, Any]]:
    """Return the JSON and the binary data of what is sent, and what the caller gets, if the server answers so."""
    calls = Calls(Retries(), {}, lambda: 0.0)
    said = json.loads(json.dumps(model_metadata("shades", family(run), ("1",))))
    call = calls.infer("shades", given, Asking(5.0))
    next(call)
    sent: Any = call.send(Reply(200, {}, json.dumps(said).encode()))
    size = int(sent.headers["inference-header-content-length"])
    answer = {
        "outputs": [
            {"name": name, "datatype": kind, "shape": list(np.shape(data)), "data": np.ravel(data).tolist()}
            for name, (kind, data) in outputs.items()
        ]
    }
    with pytest.raises(StopIteration) as end:
        call.send(Reply(200, {}, json.dumps(answer).encode()))
    return json.loads(sent.body[:size])["inputs"][0], sent.body[size:], end.value.value.outputs


def test_all_steps_of_the_client_run_here() -> None:
    logits = {"logits": ("FP32", [[0.0, 3.0], [2.0, 0.0]])}
    sent, data, got = infer("client", [picture(255), picture(0)], logits)
    assert (sent["name"], sent["datatype"], sent["shape"]) == ("pixels", "FP32", [2, 3, 8, 8])
    pixels = np.frombuffer(data, "<f4").reshape(2, -1)
    assert np.allclose(pixels[0], 1.0)
    assert np.allclose(pixels[1], -1.0)
    assert got["labels"].tolist() == [[b"bright", b"dark"], [b"dark", b"bright"]]
    assert got["probabilities"][0, 0] == pytest.approx(1 / (1 + np.exp(-3.0)), rel=1e-5)


def test_a_split_family_gets_pixels_and_gives_names() -> None:
    answer = {"probabilities": ("FP32", [[0.9, 0.1]]), "labels": ("BYTES", [["dark", "bright"]])}
    sent, data, got = infer("split", picture(7), answer)
    assert (sent["datatype"], sent["shape"][0]) == ("UINT8", 1)
    assert set(np.frombuffer(data, np.uint8).tolist()) == {7}
    assert got["labels"].tolist() == [[b"dark", b"bright"]]


def test_without_steps_of_its_own_a_client_sends_what_it_is_given() -> None:
    answer = {"probabilities": ("FP32", [[0.9, 0.1]])}
    sent, data, _ = infer("worker", b"anything", answer)
    assert (sent["name"], data[4:]) == ("picture", b"anything")


def test_a_row_that_a_step_cannot_take_is_refused_before_anything_is_sent() -> None:
    pytest.importorskip("PIL.Image", reason="pillow is not installed")
    with pytest.raises(BadRequest, match="row is refused: row 1"):
        infer("client", [picture(1), b"no picture"], {})


def test_a_request_made_by_the_steps_of_an_older_version_is_made_anew() -> None:
    said = json.loads(json.dumps(model_metadata("shades", family("client"), ("1",))))
    calls = Calls(Retries(), {}, lambda: 0.0)
    pixels = []

    def ask(*replies: Any) -> Any:
        call = calls.infer("shades", picture(255), Asking(5.0))
        sent: Any = next(call)
        for reply in replies:
            if sent.body:
                size = int(sent.headers["inference-header-content-length"])
                pixels.append(float(np.frombuffer(sent.body[size:], "<f4")[0]))
            try:
                sent = call.send(Reply(200, {}, json.dumps(reply).encode()))
            except StopIteration as end:
                return end.value
        raise AssertionError("it asks on")

    logits = {"name": "logits", "datatype": "FP32", "shape": [1, 2], "data": [0.0, 3.0]}
    old, new = ({"model_version": version, "outputs": [logits]} for version in (said["versions"][0], "new"))
    ask(said, old)
    other = json.loads(json.dumps(said)) | {"versions": ["new"]}
    other["parameters"]["steps"]["before"][3]["mean"] = [0.0, 0.0, 0.0]
    assert ask(new, other, new).version == "new"
    assert pixels == pytest.approx([1.0, 1.0, 2.0])


def test_steps_that_this_version_does_not_know_are_refused() -> None:
    said = model_metadata("shades", family("client"), ("1",))
    said["parameters"]["steps"]["before"] = [{"step": "levitate"}]
    calls = Calls(Retries(), {}, lambda: 0.0)
    call = calls.infer("shades", b"x", Asking(5.0))
    next(call)
    with pytest.raises(ConfigError, match="levitate"):
        call.send(Reply(200, {}, json.dumps(said).encode()))
