"""The card of each family begins with commands that a stranger can run, and has what was measured."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support.cards import ANSWERS, UNTRAINED, WIDTH, card, carded, first_commands
from tests.support.fenced import ROOT, found
from tests.wheel import __main__ as wheel


def test_every_family_has_a_card_and_an_answer_to_expect() -> None:
    families = {path.parent.name for path in ROOT.glob("models/*/family.toml")}
    assert families == set(carded()) == ANSWERS.keys() | UNTRAINED.keys()


@pytest.mark.parametrize("family", carded())
def test_a_card_installs_serves_and_asks_its_own_family(family: str) -> None:
    commands = first_commands(card(family))
    name, _, extra = commands.packages.rstrip("]").partition("[")
    assert name == "clover-inference"
    assert extra == ("" if family == "fashion" else "models")
    assert commands.serve.split()[3] == family
    assert f"/v2/models/{family}/infer" in "".join(commands.asks)


def test_cards_that_name_the_same_packages_share_an_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted: list[str] = []

    def run(words: list[str], **_: object) -> SimpleNamespace:
        if "venv" in words:
            Path(words[-1]).mkdir()
        elif "install" in words:
            wanted.append(words[-1])
        return SimpleNamespace(stdout=f"{tmp_path}\n")

    monkeypatch.setattr(wheel, "subprocess", SimpleNamespace(run=run))
    monkeypatch.setattr(wheel, "ENVIRONMENTS", tmp_path)
    for packages in ("clover-inference[a]", "clover-inference[a]", "clover-inference[a,b]"):
        wheel.card_environment(tmp_path, packages, Path("w.whl"))
    assert wanted == ["w.whl[a]", "w.whl[a,b]"]


def test_the_first_commands_of_the_readme_fit_a_terminal() -> None:
    blocks = [example for example in found(ROOT / "README.md") if example.language == "console"]
    assert all(len(line) <= WIDTH for block in blocks[:2] for line in block.text.splitlines())


def test_a_block_that_a_stranger_could_not_run_is_refused(tmp_path: Path) -> None:
    serve, ask = "$ python -m clover.serve x --port 8000\n", "$ curl -s localhost:8000/v2\n"
    install = "$ pip install 'clover-inference[x]'\n"

    def of(text: str) -> object:
        page = tmp_path / "README.md"
        page.write_text(f"```console\n{text}```\n", encoding="utf-8")
        return first_commands(page)

    assert of(install + serve + ask) == (
        "clover-inference[x]",
        "python -m clover.serve x --port 8000",
        ("curl -s localhost:8000/v2",),
    )
    for wrong in (serve + ask, install + serve, install + serve.replace("8000", "8001") + ask, install + ask + serve):
        with pytest.raises(ValueError, match=r"not pip install|not asked there"):
            of(wrong)
    with pytest.raises(ValueError, match="longer than 80 columns"):
        of(install + serve + ask.replace("\n", " -d " + "x" * 60 + "\n"))


@pytest.mark.parametrize("family", carded())
def test_a_card_tells_what_was_measured_where_and_when_and_of_cascades(family: str) -> None:
    text = card(family).read_text(encoding="utf-8")
    assert re.search(r"^\|.*CPU ms an? \w+.*\|\n\|[-|]+\|\n\|", text, re.MULTILINE), "a table of CPU time"
    assert re.search(r"\b20\d\d-\d\d-\d\d\b", text)
    assert re.search(r"\bcores?\b", text)
    assert re.search(r"\b[Cc]ascades?\b", text)
