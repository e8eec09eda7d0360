"""The files of the page as answers: compressed once, under an address that has their digest, so that a browser keeps
them for good and asks for new ones after an upgrade.

The page's own files are small and are read at the start.  Plotly's script (5 MB) is compressed in a thread when a page
first asks for it, and lies in memory from then on, plain as well for clients that take no gzip: once for all of them.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import itertools
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from clover.charts import plotly_script

ASSETS = Path(__file__).parent / "assets"
ADDRESS = "/dashboard/assets"
PAGES = {"/dashboard": "index.html", "/dashboard/try": "try.html"}
_KINDS = {
    ".html": b"text/html; charset=utf-8",
    ".css": b"text/css; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".svg": b"image/svg+xml",
}
_DIGITS = 16
PLOTLY = "plotly.min.js"
_STYLE_ID = re.compile(rb'getElementById\("([0-9a-f]{64})"\)')
NO_STYLE = "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="
"""The digest of nothing: plotly makes an empty style element and fills it by script."""

POLICY = (
    f"default-src 'none'; script-src 'self'; style-src 'self' '{NO_STYLE}'; img-src 'self' data: blob:; connect-src "
    "'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
REPORT_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; sandbox allow-scripts allow-downloads"
)
"""A report is one file with its scripts in it.  It is shown as a page of no origin, which can reach nothing."""


def headers(policy: str, kept: bool) -> bytes:
    """Return the header lines of an answer: what its page may do, and whether a browser may keep it for good."""
    caching = "public, max-age=31536000, immutable" if kept else "no-cache"
    return (
        f"Content-Security-Policy: {policy}\r\nX-Content-Type-Options: nosniff\r\nReferrer-Policy: no-referrer\r\n"
        f"Cross-Origin-Opener-Policy: same-origin\r\nCross-Origin-Resource-Policy: same-origin\r\n"
        f"Cache-Control: {caching}\r\nVary: Accept-Encoding\r\n"
    ).encode()


@dataclass(frozen=True)
class PageFile:
    """A file to be sent: its type, its bytes plain and compressed with gzip, and the header lines that go with it."""

    kind: bytes
    plain: bytes
    packed: bytes
    fields: bytes

    @classmethod
    def from_bytes(cls, suffix: str, data: bytes, *, kept: bool) -> PageFile:
        """Return the file of these contents; `kept`: a browser may keep it for good."""
        return cls(_KINDS[suffix], data, gzip.compress(data, 9, mtime=0), headers(POLICY, kept))

    def parts(self, accept: str) -> tuple[list[bytes], bytes]:
        """Return the body for a client that accepts the coding `accept`, and the header lines."""
        if accept == "gzip":
            return [self.packed], self.fields + b"Content-Encoding: gzip\r\n"
        return [self.plain], self.fields


class PlotlyFile:
    """Plotly's script, compressed once, in a thread, when it is first asked for.

    `address` is empty without the extra `dashboard`.  `style` is the id under which the script looks for the style of
    its maps: it adds none, which the page's policy would forbid, if the page has an element of that id.
    """

    def __init__(self) -> None:
        self._path = plotly_script()
        self.address = self.style = ""
        self._making: asyncio.Task[PageFile] | None = None
        if self._path is not None:
            data = self._path.read_bytes()
            self.address = f"{ADDRESS}/{hashlib.sha256(data).hexdigest()[:_DIGITS]}/{PLOTLY}"
            style_id = _STYLE_ID.search(data)
            self.style = style_id[1].decode() if style_id is not None else ""

    async def get(self) -> PageFile:
        """Return the file; waits for its compression, which is done once."""
        if self._making is None:
            self._making = asyncio.get_running_loop().create_task(asyncio.to_thread(self._make), name="clover-plotly")
        return await asyncio.shield(self._making)

    def _make(self) -> PageFile:
        assert self._path is not None
        packer = zlib.compressobj(6, zlib.DEFLATED, 31)
        plain = self._path.read_bytes()
        packed = packer.compress(plain) + packer.flush()
        return PageFile(_KINDS[".js"], plain, packed, headers(POLICY, True))


def page_files(plotly: PlotlyFile, version: str) -> tuple[Mapping[str, PageFile], Mapping[str, PageFile]]:
    """Return the pages by path, and their other files by address."""
    sources = {path.name: path.read_bytes() for path in sorted(ASSETS.iterdir()) if path.suffix in _KINDS}
    token = sources.pop("token.html", b"").decode()  # a part of every page
    pages = {path: sources.pop(name).decode() for path, name in PAGES.items() if name in sources}
    digest = hashlib.sha256()
    for name, data in sources.items():
        digest.update(name.encode() + b"\0" + data + b"\0")
    base = f"{ADDRESS}/{digest.hexdigest()[:_DIGITS]}"
    texts = {"assets": base, "plotly": plotly.address, "style": plotly.style, "version": version, "token": token}
    for path, name in itertools.product(pages, texts):
        pages[path] = pages[path].replace("{{" + name + "}}", texts[name])
    files = {
        f"{base}/{name}": PageFile.from_bytes(Path(name).suffix, data, kept=True) for name, data in sources.items()
    }  # fmt: skip
    return {path: PageFile.from_bytes(".html", page.encode(), kept=False) for path, page in pages.items()}, files
