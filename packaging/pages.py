"""Which pages the site has: the repository's own documents, each at the path where it lies, so that their links hold.

A hook of mkdocs (see mkdocs.yml).  The navigation follows docs/index.md, the map, which `tests/unit/test_docs.py` keeps
complete; what the map does not list (results of benches, cards of families) comes after it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
# In the order of the navigation.
PAGES = ("*.md", "docs/**/*.md", "models/*/README.md", "bench/README.md", "bench/results/*.md", "tests/*/README.md")
FILES = (
    "docs/*.png",
    "docs/*.svg",
    "docs/*.json",
    "docs/examples/*/*.py",
    "docs/examples/*/*.toml",
    "packaging/compose.yaml",
    "bench/results/*.png",
    "bench/results/*.svg",
    "bench/*.py",
    "LICENSE",
    "llms.txt",
)
_HEADING = re.compile(r"^\*\*(.+?)\.?\*\*$")
# What GitHub shows as it stands and mkdocs would not: a file's name after a fence's language, and `a[b][/c]`.
_NAMED_FENCE = re.compile(r"^```(\w+) ([\w.]+)$", re.MULTILINE)
_LINK = re.compile(r"\]\(([^)#:\s]+\.md)\)")


def found(patterns: tuple[str, ...]) -> list[str]:
    """Return the paths below the repository's root that match, in the order of the patterns."""
    return [path.relative_to(ROOT).as_posix() for pattern in patterns for path in sorted(ROOT.glob(pattern))]


def navigation(chart: str, pages: list[str]) -> list[Any]:
    """Return the site's sections: those of the map with the pages that it links, then the rest by folder."""
    sections: list[tuple[str, list[str]]] = [("Clover", ["README.md", "docs/index.md"])]
    for line in chart.splitlines():
        if heading := _HEADING.match(line):
            sections.append((heading[1], []))
        for link in _LINK.findall(line):
            path = (ROOT / "docs" / link).resolve().relative_to(ROOT).as_posix()
            if not any(path in listed for _, listed in sections):
                sections[-1][1].append(path)
    rest = [page for page in pages if not any(page in listed for _, listed in sections)]
    for title, folder in (("Families that come with it", "models/"), ("Benches", "bench/"), ("About", "")):
        sections.append((title, [page for page in rest if page.startswith(folder)]))
        rest = [page for page in rest if not page.startswith(folder)]
    return [{title: listed} for title, listed in sections if listed]


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Give mkdocs the navigation."""
    config.nav = navigation((ROOT / "docs" / "index.md").read_text(encoding="utf-8"), found(PAGES))
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Replace what lies in docs/ by all pages, under their paths in the repository, and keep the theme's files."""
    theme = [file for file in files if file.src_dir != config.docs_dir]
    own = [File(path, str(ROOT), config.site_dir, config.use_directory_urls) for path in (*found(PAGES), *found(FILES))]
    return Files([*theme, *own])


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Return a page's text as the site's Markdown has it."""
    return _NAMED_FENCE.sub(r'```\1 title="\2"', markdown).replace("][/", "]\\[/")
