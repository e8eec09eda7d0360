"""The page that tries a model, in a real browser: numbers, text and pictures are asked for, and the answers shown."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import clover
from tests.browser.conftest import grave, text, until
from tests.support.pictures import png
from tests.support.toy_family import TOY, settings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
FAMILIES = (TOY, *(str(Path(TOY).with_name(name)) for name in ("shades", "identity_bytes", "simple")), "fashion")


@pytest.fixture(scope="module")
def address(playwright_sync: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("try")
    more = {**settings(folder), "http": True, "port": 0, "carbon": "synthetic", "policy": "base"}
    more |= {"state_dir": str(folder / "state"), "accuracy_floor": None, "profile": "auto"}
    with clover.Server(*FAMILIES, **more) as server:
        yield f"{server.url}/dashboard/try"


def choose(page: Any, model: str) -> None:
    page.select_option("#model", model)
    until(page, "!document.querySelector('#send').disabled && document.querySelector('#receipt').innerText === ''")


def ask(page: Any, outcome: str = "Answered in") -> str:
    page.click("#send")
    until(page, f"document.querySelector('#outcome').innerText.includes({outcome!r})")
    return text(page, "#outputs")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1360])
def test_a_model_is_asked_with_numbers_text_and_pictures(
    chromium: Any, address: str, tmp_path: Path, width: int, scheme: str
) -> None:
    page = chromium.new_page(viewport={"width": width, "height": 860}, color_scheme=scheme)
    said: list[str] = []
    page.on("console", lambda line: said.append(line.text) if "400" not in line.text else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(address)
    page.wait_for_selector("#send:enabled")

    choose(page, "toy")
    page.fill("fieldset textarea", "1, 2, 3, 4")
    assert ask(page).split("\n")[2].split() == ["d", "0.64391"], "the likeliest label comes first"
    receipt = text(page, "#receipt")
    assert "full" in receipt
    assert "J (modelled)" in receipt
    assert "gCO₂e/kWh (synthetic)" in receipt
    page.fill("fieldset textarea", "1, 2")
    assert ask(page, "refused (400)") == "", "the last answer does not stay beside a refusal"
    page.fill("fieldset textarea", "1, two")
    ask(page, "no numbers")

    choose(page, "identity_bytes")
    page.fill("fieldset textarea", "ein Wörtchen\n<img src=x onerror=alert(1)>")
    assert "1\t<img src=x onerror=alert(1)>" in ask(page), "what a model answers is never markup"

    choose(page, "shades")
    (tmp_path / "dark.png").write_bytes(png(20, 20))
    page.set_input_files("input[type=file]", tmp_path / "dark.png")
    assert "0\tdark" in ask(page)
    page.fill("#accuracy", "99.9")
    ask(page, "reaches an accuracy of 99.9 %")
    page.fill("#accuracy", "")

    choose(page, "fashion")
    page.set_input_files("input[type=file]", tmp_path / "dark.png")
    page.check("input[type=checkbox]")
    assert "Trouser" in ask(page)
    pixel = page.evaluate("[...document.querySelector('canvas').getContext('2d').getImageData(9, 9, 1, 1).data]")
    assert pixel == [255] * 4, "black is inverted"
    folder = Path(os.environ.get("CLOVER_SCREENSHOTS") or tmp_path)
    page.screenshot(path=folder / f"try-{width}-{scheme}.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out sideways"
    assert grave(page) == []
    page.select_option("fieldset select", label="random values")
    assert "Trouser" in ask(page)

    choose(page, "simple")
    ask(page)
    page.close()
    assert said == []
