"""The headline's parts that need no server: requests and judges, where CPU went, verdict, page, plot and README."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from bench import headline_page as pages
from bench.headline_profile import PARTS, Counts, parts_of, shares, with_parts
from bench.headline_requests import binary_request, drawn, json_request, judge_of
from bench.headline_work import line_of, pixels_of, variant_work
from bench.load import Body, Sample
from clover import steps

SAMPLE = Sample(0, 0, 200, 0)


def test_a_picture_comes_out_of_both_forms_of_a_request() -> None:
    work, picture = variant_work("ocr:v6-wide"), b"\x89PNG\x00and more\x00"
    as_json = orjson.loads(json_request(work, "row-0", 0, np.array([picture], object)).payload)
    assert work.gather([as_json]).tolist() == [[picture]]
    sent = binary_request(work, "row-0", 0, np.array([picture], object))
    head = int(sent.headers.rpartition(b": ")[2])
    document = orjson.loads(sent.payload[:head])
    assert sent.payload[head:] == len(picture).to_bytes(4, "little") + picture
    assert document["inputs"][0]["parameters"]["binary_data_size"] == 4 + len(picture)
    assert [each["name"] for each in document["outputs"]] == ["text"] == [each["name"] for each in as_json["outputs"]]


def test_a_text_stays_a_text() -> None:
    work = variant_work("language:large")
    document = orjson.loads(json_request(work, "row-0", 0, np.array(["für".encode()], object)).payload)
    assert document["inputs"][0]["data"] == ["für"]
    assert work.gather([document]).tolist() == [["für".encode()]]


def test_what_the_others_do_to_pictures_is_what_the_steps_do() -> None:
    pytest.importorskip("PIL.Image", reason="pillow is not installed")
    rows = drawn(2)
    for name, pixels in (
        ("efficientnet_lite:lite1", lambda row: pixels_of(row, 272, 240)),
        ("ocr:v6-wide", line_of),
    ):
        work = variant_work(name)
        expected = steps.as_modelled(work.family, work.variant, [rows])[0]
        made = np.stack([pixels(row) for row in rows[:, 0]])
        assert made.shape == expected.shape
        assert np.abs(made.astype(np.float64) - expected).max() <= 1e-6


@pytest.mark.parametrize(("answer", "worth"), [([0.1, 0.7, 0.2], 1.0), ([0.7, 0.1, 0.2], 0.0)])
def test_the_largest_output_is_the_answer(answer: list[float], worth: float) -> None:
    judge = judge_of("fashion", np.zeros((1, 1)), np.array([1]), "")
    assert judge(Body(b"", "", 0), SAMPLE, orjson.dumps({"outputs": [{"data": answer}]})) == worth


def test_a_line_counts_if_every_character_is_right() -> None:
    judge = judge_of("ocr", np.zeros((1, 1)), np.array(["Line record"]), "")
    found = [
        judge(Body(b"", "", 0), SAMPLE, orjson.dumps({"outputs": [{"data": [text]}]}))
        for text in ("Line record", "Linerecord")
    ]
    assert found == [1.0, 0.0]


def test_an_answer_without_a_label_counts_as_published_if_it_is_the_variants_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bench.headline_requests._answers", lambda work, rows: [f"{work} says"])
    judge = judge_of("efficientnet_lite", np.zeros((1, 1)), None, "")
    cheap = Sample(0, 0, 200, 0, variant="lite0")
    answers = [orjson.dumps({"outputs": [{"data": [text]}]}) for text in ("efficientnet_lite:lite0 says", "a lie")]
    assert [judge(Body(b"", "", 0), cheap, answer) for answer in answers] == [pytest.approx(0.751), 0.0]


def test_samples_of_perf_are_told_apart_by_what_the_code_belongs_to() -> None:
    script = """
       12  7effb137d310 (/usr/lib/libpython3.11.so.1.0)
       12  ffffffff822018b1 ([kernel.kallsyms])
       12  7effb137d311 (/venv/onnxruntime/capi/onnxruntime_pybind11_state.so)
       12  7effb137d312 (/venv/clover/http/connection.cpython-311-x86_64-linux-gnu.so)
        9  ffffffff822018b1 ([kernel.kallsyms])
    no sample at all
    """
    found = parts_of(script)
    assert found[12] == {"kernel": 0.25, "model": 0.25, "interpreter": 0.25, "rest": 0.25}
    assert found[9] == {"kernel": 1.0, "model": 0.0, "interpreter": 0.0, "rest": 0.0}


def test_shares_are_of_what_was_used_between_two_counts() -> None:
    before = {1: Counts("front end", 1.0, 10), 2: Counts("worker", 5.0, 0)}
    after = {1: Counts("front end", 1.2, 30), 2: Counts("worker", 5.1, 20), 3: Counts("worker", 0.3, 0)}
    found = shares(before, after, 100)
    assert [(share.role, round(share.cpu_us), share.switches) for share in found] == [
        ("worker", 4000, 0.2),
        ("front end", 2000, 0.2),
    ]
    half = {"kernel": 0.5, "model": 0.5, "interpreter": 0.0, "rest": 0.0}
    model = {"kernel": 0.0, "model": 1.0, "interpreter": 0.0, "rest": 0.0}
    worker = with_parts(found, before, after, {2: half, 3: model})[0]
    assert worker.parts == pytest.approx({"kernel": 500.0, "model": 3500.0, "interpreter": 0.0, "rest": 0.0})
    assert found[1].parts == {}


def measured(cpu_s: float, right: float, p95_ms: float = 9.0) -> list[dict[str, Any]]:
    found = {"sent": 100, "failed": 0, "right": right, "cpu_s": cpu_s, "p95_ms": p95_ms, "foreign_cores": 0.0}
    return [found] * 3


def spent(role: str, **parts: float) -> list[dict[str, Any]]:
    whole = {**dict.fromkeys(PARTS, 0.0), **parts}
    return [{"role": role, "cpu_us": sum(whole.values()), "switches": 1.0, "parts": whole}]


COMMAND = "python -m bench.headline fashion --cache-dir /a/cache --rounds 3 --json /a/file.json"


def file_of(folder: Path, clover: dict[str, Any], triton: dict[str, Any]) -> Path:
    servers = {"clover": clover, "pytriton xlarge": triton}
    where = {"processor": "a processor", "date": "2026-11-28", "command": COMMAND}
    path = folder / "found.json"
    families_ = {"fashion": {"rate": 100.0, "slo_ms": 50.0, "servers": servers}}
    path.write_text(json.dumps({"provenance": where, "families": families_}))
    return path


@pytest.mark.parametrize(
    ("clover", "words"),
    [
        (measured(0.02, 92.6), "a quarter or less"),
        (measured(0.02, 90.0), "not what was aimed for"),
        (measured(0.02, 92.6, p95_ms=51.0), "not what was aimed for"),
        (measured(0.03, 92.6), "not what was aimed for"),
    ],
)
def test_the_verdict_needs_a_quarter_the_accuracy_and_the_slo(
    tmp_path: Path, clover: list[dict[str, Any]], words: str
) -> None:
    other = {"rounds": measured(0.1, 93.0), "profile": []}
    (table,) = pages.tables_of([file_of(tmp_path, {"rounds": clover, "profile": []}, other)])
    assert words in pages.verdict(table)


@pytest.mark.parametrize(
    ("model_us", "words"),
    [
        (600.0, "Those 600 us alone are 0.60 of all that PyTriton uses"),
        (100.0, "Without the models Clover needs 400 us"),
    ],
)
def test_a_verdict_that_misses_says_what_of_it_is_the_models(tmp_path: Path, model_us: float, words: str) -> None:
    clover = {"rounds": measured(0.05, 93.0), "profile": spent("worker", model=model_us, rest=400.0)}
    triton = {"rounds": measured(0.1, 93.0), "profile": spent("tritonserver", model=600.0, kernel=400.0)}
    (table,) = pages.tables_of([file_of(tmp_path, clover, triton)])
    assert words in pages.verdict(table)


def test_page_plot_and_readme_come_of_the_same_figures(tmp_path: Path) -> None:
    clover = {"rounds": measured(0.02, 92.6), "profile": spent("front end", rest=200.0)}
    triton = {"rounds": measured(0.1, 93.0), "profile": spent("tritonserver", kernel=900.0)}
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{pages.BEGIN}\nold\n{pages.END}\nafter\n")
    page, plot = tmp_path / "page.md", tmp_path / "plot.svg"
    words = [str(file_of(tmp_path, clover, triton)), "--page", page, "--plot", plot, "--readme", readme]
    assert pages.main([str(word) for word in words]) == 0
    assert "| PyTriton, xlarge | 1.075 | 1.075..1.075 | 4.98 | 93.00 | 9.0 | 0 | 0.00 |" in page.read_text()
    assert "| `fashion`, 100/s, SLO 50 ms | 0.22 (92.6 %, 9 ms) | 1.08 (93.0 %, 9 ms) |" in readme.read_text()
    assert readme.read_text().startswith("before\n")
    assert readme.read_text().endswith("after\n")
    assert "1.08 s, 93.0 % right" in plot.read_text()
    assert "![CPU a right answer by server](plot.svg)" in page.read_text()
    assert "`tritonserver` itself is 100 % of its CPU" in readme.read_text()
    assert "published" not in readme.read_text() + plot.read_text()
    assert "`bench.headline fashion --rounds 3` on a processor" in page.read_text(), "nothing of where files lay"
    assert "loaded" not in page.read_text() + readme.read_text()


def test_accuracy_that_was_published_is_called_so(tmp_path: Path) -> None:
    one = {"rounds": measured(0.02, 76.8), "profile": []}
    file = file_of(tmp_path, one, one)
    file.write_text(file.read_text().replace('"fashion"', '"efficientnet_lite"'))
    tables = pages.tables_of([file])
    text = pages.readme_section(tables, "plot", "page")
    assert "Percentages of `efficientnet_lite` are published accuracies" in text
    assert "76.8 % by published accuracy" in pages.plot(tables)


def test_figures_beside_other_work_say_so(tmp_path: Path) -> None:
    rounds = [{**each, "foreign_cores": 1.5} for each in measured(0.02, 92.6)]
    one = {"rounds": rounds, "profile": []}
    tables = pages.tables_of([file_of(tmp_path, one, one)])
    assert "**loaded**: others used up to 1.5 cores" in pages.page(tables, "plot.svg")
    assert "Other work ran beside it" in pages.readme_section(tables, "plot.svg", "page.md")


def test_the_table_of_benches_gets_its_link_once() -> None:
    text = "| cost? | `bench.headline --profile`, then `bench.headline_page FILES` | none kept |"
    once = pages.in_index(text, Path("bench/results/headline.md"))
    assert once.endswith("FILES` | [headline](results/headline.md) |")
    assert pages.in_index(once, Path("bench/results/headline.md")) == once


def test_a_readme_without_its_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="has no lines"):
        pages.in_readme("nothing", "table")


def test_base64_is_what_the_others_get() -> None:
    work = variant_work("ocr:v6-wide")
    document = orjson.loads(json_request(work, "row-0", 0, np.array([b"abc"], object)).payload)
    assert document["inputs"][0]["data"] == [base64.b64encode(b"abc").decode()]
