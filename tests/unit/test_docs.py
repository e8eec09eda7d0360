"""What the documents point at exists, and the drawing is what its script draws."""

from __future__ import annotations

import ast
import re
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("bench/**/*.md")])
ASSISTANTS = ROOT / "llms.txt"
PAGES = [page for page in DOCUMENTS if page.name != "CHANGELOG.md"]  # which tells of files that are gone
_LINK = re.compile(r"\[[^\]]*\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
_FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`[^`\n]+`")
_FILE = re.compile(r"`((?:clover|csrc|bench|docs|models|tests)/[\w./-]+)`")
_CLASS = re.compile(r"`(_?[A-Z][a-z]+\w*)(?:\.(\w+))?`")
_STANDS_FOR_ANY = re.compile(r"NAME|/out/")


def links(text: str) -> Iterator[str]:
    """Targets of the links of a Markdown text that lead to files: no addresses, nothing in code."""
    for target in _LINK.findall(_CODE.sub("code", _FENCE.sub("", text))):
        if not re.match(r"[a-z][a-z0-9+.-]*:", target, re.IGNORECASE):
            yield target


def anchors(text: str) -> set[str]:
    """The anchors a page's headings make."""
    heads = re.findall(r"^#+ +(.+?) *$", _FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", [*DOCUMENTS, ASSISTANTS], ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page: Path) -> None:
    for target in links(page.read_text(encoding="utf-8")):
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.is_relative_to(ROOT), f"{target} leads out of the repository"
        assert file.exists(), f"{target} leads nowhere"
        if anchor:
            assert anchor in anchors(file.read_text(encoding="utf-8")), f"{target}: no such heading"


def test_pages_that_are_linked_are_in_the_site() -> None:
    hook = (ROOT / "packaging" / "pages.py").read_text(encoding="utf-8")
    found = re.search(r"^PAGES = (\(.+?\))$", hook, re.MULTILINE)
    assert found is not None
    shown = {path for pattern in ast.literal_eval(found[1]) for path in ROOT.glob(pattern)}
    for page in shown:
        for target in links(page.read_text(encoding="utf-8")):
            file = (page.parent / target.partition("#")[0]).resolve()
            assert file.suffix != ".md" or file in shown, f"{page.relative_to(ROOT)}: {target} is not in the site"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_are_named_exist(page: Path) -> None:
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    missing = [name for name in _FILE.findall(text) if not _STANDS_FOR_ANY.search(name) and not (ROOT / name).exists()]
    assert not missing, f"{page.name} names {', '.join(missing)}"


def test_classes_that_stand_beside_a_file_are_in_the_code() -> None:
    """In the rows of tables that name a file: these say what is where."""
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "clover").rglob("*.py"))
    known = {*re.findall(r"\b\w+\b", code)}
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if _FILE.search(line)]
    named = [(name, line) for line in rows for names in _CLASS.findall(line) for name in names if name]
    assert named
    assert not [(name, line) for name, line in named if name not in known]


def test_every_page_is_on_the_map() -> None:
    docs = ROOT / "docs"
    listed = set(links((docs / "index.md").read_text(encoding="utf-8")))
    missing = [page.name for page in docs.glob("*.md") if page.name != "index.md" and page.name not in listed]
    assert not missing, f"docs/index.md does not list {', '.join(missing)}"


def test_assistants_find_every_page() -> None:
    """In the form of llmstxt.org: a title, a summary, then sections whose lines are a link and what it leads to."""
    text = ASSISTANTS.read_text(encoding="utf-8")
    assert re.match(r"# Clover\n\n> ", text)
    sections = text.split("\n## ")[1:]
    lines = [line for section in sections for line in section.splitlines()[1:] if line]
    assert not [line for line in lines if not re.fullmatch(r"- \[[^\]]+\]\([^)\s]+\): .+", line)]
    pages = {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md") if page.name != "index.md"}
    assert pages <= set(links(text)), f"llms.txt does not link {sorted(pages - set(links(text)))}"


def test_every_result_is_linked() -> None:
    listed = set(links((ROOT / "bench" / "README.md").read_text(encoding="utf-8")))
    pages = {f"results/{page.name}" for page in (ROOT / "bench" / "results").glob("*.md")}
    assert pages <= listed, f"bench/README.md does not link {sorted(pages - listed)}"


def test_the_drawing_is_what_its_script_draws() -> None:
    docs = ROOT / "docs"
    drawn = runpy.run_path(str(docs / "draw.py"))["drawing"]()
    assert (docs / "architecture.svg").read_text(encoding="utf-8") == drawn, "run python docs/draw.py"


def test_links_are_found() -> None:
    text = "a [b](c.md) `[n](o)` [d](https://e/f) [g](h.md#i-j) [k](#l)\n```\n[m](n)\n```\n# I, J\n"
    assert list(links(text)) == ["c.md", "h.md#i-j", "#l"]
    assert anchors(text) == {"i-j"}
