"""What is built from the repository names things that are there: image, site, notices, wheels."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import runpy
import shlex
import subprocess
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

import clover
from clover.settings.schema import SETTINGS

ROOT = Path(__file__).resolve().parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = PROJECT["project"]["optional-dependencies"]


@pytest.fixture(scope="module")
def sbom() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "packaging" / "sbom.py"))


def test_the_notices_have_every_package_that_users_need(sbom: dict[str, Any]) -> None:
    listed = set(re.findall(r"^\| \[?([a-z0-9-]+)", (ROOT / "THIRD-PARTY-NOTICES.md").read_text(), re.MULTILINE))
    texts = [*PROJECT["project"]["dependencies"]]
    texts += [text for extra, packages in EXTRAS.items() if extra not in sbom["TOOLS"] for text in packages]
    missing = {sbom["plain"](re.split(r"[^\w.-]", text, maxsplit=1)[0]) for text in texts} - listed
    assert not missing, f"run make sbom: THIRD-PARTY-NOTICES.md lacks {', '.join(sorted(missing))}"


def test_the_notices_name_what_lies_in_the_repository(sbom: dict[str, Any]) -> None:
    for _, where, _, _ in sbom["BUNDLED"]:
        assert list(ROOT.glob(where)), where
    page = (ROOT / "THIRD-PARTY-NOTICES.md").read_text(encoding="utf-8")
    carried = {path.parent for path in ROOT.glob("models/*/**/LICENSE*")}
    assert all(str(folder.relative_to(ROOT)) in page for folder in carried)
    assert "not stated" not in page.split("## Packages")[1]


def test_a_bill_of_materials_has_what_is_installed_and_what_it_needs(sbom: dict[str, Any]) -> None:
    direct = ["aiohttp>=3", "no-such-package-of-anyone>=1"]
    packages = sbom["closure"](direct)
    assert packages["aiohttp"].licence
    assert packages["no-such-package-of-anyone"].version == ""
    bill = json.loads(json.dumps(sbom["bill"]("1.2.3", direct, packages)))
    references = {component["bom-ref"] for component in bill["components"]}
    own, *others = bill["dependencies"]
    assert own == {"ref": "pkg:pypi/clover-inference@1.2.3", "dependsOn": [packages["aiohttp"].purl]}
    assert {entry["ref"] for entry in others} == references
    assert all(needed in references for entry in others for needed in entry["dependsOn"])
    assert any(reference.startswith("pkg:pypi/multidict@") for reference in references)


def test_an_extra_brings_its_packages_and_no_other(sbom: dict[str, Any]) -> None:
    assert "brotli" not in sbom["closure"](["httpx"])
    assert "socksio" in sbom["closure"](["httpx[socks]"])


def test_make_makes_no_target_of_a_script() -> None:
    made = subprocess.run(["make", "-n", "setup"], cwd=ROOT, env={**os.environ, "LC_ALL": "C"}, capture_output=True)
    assert b"No rule to make target 'setup'" in made.stderr


def test_the_notices_are_made_with_all_extras_of_users(sbom: dict[str, Any]) -> None:
    (listed,) = re.findall(r"^USER_EXTRAS := (.+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(listed.split(",")) == set(EXTRAS) - {*sbom["TOOLS"], "tensorrt"}


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions with their arguments, continued lines joined."""
    text = (ROOT / "packaging" / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines)]


def test_the_image_copies_and_starts_what_is_there() -> None:
    last = len(instructions()) - 1 - [word for word, _ in instructions()][::-1].index("FROM")
    final = instructions()[last:]
    for word, rest in final:
        if word == "COPY" and not rest.startswith("--from"):
            assert (ROOT / rest.split()[0]).is_file(), rest
    words = dict(final)
    assert json.loads(words["ENTRYPOINT"]) == ["python", "-m", "clover.serve"]
    assert clover.load_family(json.loads(words["CMD"])[0]).name == "fashion"
    assert words["USER"] not in ("root", "0")
    copied = {rest.split()[-1] for word, rest in final if word == "COPY"}
    run = " ".join(rest for word, rest in final if word in ("RUN", "ARG"))
    assert "PACKAGES=" in run, "by default none of Debian's, and so no compiler"
    assert not re.search(r"\b(gcc|g\+\+|cc|build-essential|libc6-dev)\b", run)
    assert json.loads(words["HEALTHCHECK"].partition("CMD ")[2])[2] in copied


def test_the_image_sets_variables_and_extras_that_exist() -> None:
    variables = {setting.env for setting in SETTINGS}
    settings = [name for word, rest in instructions() if word == "ENV" for name in re.findall(r"\b(CLOVER_\w+)=", rest)]
    assert settings
    assert set(settings) <= variables
    defaults = dict(rest.partition("=")[::2] for word, rest in instructions() if word == "ARG")
    assert set(defaults["EXTRAS"].split(",")) <= set(EXTRAS)
    for word, rest in instructions():
        if word == "RUN":
            shlex.split(rest)  # quotes are closed


def asked_of_pip(index: str) -> list[list[str]]:
    """The words that pip gets from the image's build, of the calls that name an index, if TORCH_INDEX is `index`."""
    [run] = [rest for word, rest in instructions() if word == "RUN" and "TORCH_INDEX" in rest]
    calls = [call.replace("/opt/clover/bin/pip", "printf '%s\\n'") for call in run.split("&&") if "TORCH_INDEX" in call]
    environment = {"PATH": os.environ["PATH"], "TORCH_INDEX": index}
    return [subprocess.check_output(["sh", "-c", call], env=environment, text=True).splitlines() for call in calls]


def test_the_image_takes_torch_from_the_index_that_is_named_or_from_that_of_pip() -> None:
    first, second = asked_of_pip("https://index.test/cpu")
    assert first == ["install", "--no-cache-dir", "--index-url", "https://index.test/cpu", "torch>=2.6"]
    assert second[2:4] == ["--extra-index-url", "https://index.test/cpu"]
    first, second = asked_of_pip("")
    assert first == ["install", "--no-cache-dir", "torch>=2.6"]
    assert second[2] == "--constraint"


def test_the_default_index_is_named_nowhere() -> None:
    pages = [*(ROOT / "docs").glob("*.md"), *(ROOT / "packaging").rglob("*"), ROOT / "README.md", ROOT / "Makefile"]
    for page in pages:
        if page.is_file():
            assert b"pypi.org/simple" not in page.read_bytes(), page


def test_the_api_page_has_every_public_name() -> None:
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^::: clover\.(\w+)$", page, re.MULTILINE))
    errors = {name for name in clover.__all__ if clover._HOME_OF.get(name) == "clover.errors"}
    assert set(clover.__all__) - errors - {"__version__"} == named - {"errors"}
    clients = pytest.importorskip("clover.client", reason="needs the extra client (httpx)")
    assert set(re.findall(r"^::: clover\.client\.(\w+)$", page, re.MULTILINE)) == set(clients.__all__)


def test_extras_are_described_to_those_who_install() -> None:
    page = (ROOT / "docs" / "deploying.md").read_text(encoding="utf-8")
    table = page.split("| extra | brings |")[1].split("\n\n")[0]
    listed = set(re.findall(r"`([\w-]+)`", " ".join(line.split("|")[1] for line in table.splitlines() if "|" in line)))
    assert listed == set(EXTRAS) - {"test", "dev"}


def test_wheels_are_made_for_every_python_that_is_promised() -> None:
    promised = {
        line.rsplit(" ", 1)[1].replace(".", "")
        for line in PROJECT["project"]["classifiers"]
        if re.search(r":: 3\.\d+$", line)
    }
    built = set(re.findall(r"cp(\d+)-\*", PROJECT["tool"]["cibuildwheel"]["build"]))
    assert built == promised


def test_versions_and_changelog_have_their_form() -> None:
    assert re.fullmatch(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[\w.]+)?", clover.__version__)
    log = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    heads = re.findall(r"^## (.+)$", log, re.MULTILINE)
    assert heads[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", head) for head in heads[1:])
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.+)$", log, re.MULTILINE)) <= kinds


def test_two_wheels_are_compared_member_by_member(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("reproducible", ROOT / "packaging" / "reproducible.py")
    assert spec is not None
    assert spec.loader is not None
    reproducible = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reproducible)
    wheels = []
    for name, members in (
        ("a", {"x": "1", "y": "2"}),
        ("b", {"x": "1", "y": "3", "z": ""}),
        ("c", {"x": "1", "y": "2"}),
    ):
        wheels.append(tmp_path / name)
        with zipfile.ZipFile(wheels[-1], "w") as file:
            for member, text in members.items():
                file.writestr(zipfile.ZipInfo(member), text)
    assert reproducible.differences(wheels[0], wheels[1]) == ["only in one of them: z", "differs: y"]
    assert reproducible.differences(wheels[0], wheels[2]) == []
    assert reproducible.digest(wheels[0]) == reproducible.digest(wheels[2]) != reproducible.digest(wheels[1])
    kept = [
        reproducible.wanted(Path(name), ["ring"]) for name in ("csrc/ring.pyx", "csrc/wire.pyx", "a/b.pxd", "a/b.py")
    ]
    assert kept == [True, False, False, True]
