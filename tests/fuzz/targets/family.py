"""Declarations of families: the input is a `family.toml`, in a folder with the Python and weights of an example.

It is a family, whose record survives its own JSON, or a ConfigError that names the file, in short printable lines.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from clover import families
from clover.errors import ConfigError
from clover.types import FamilySpec
from tests.fuzz import engine
from tests.support.family_folder import BASE, FIXTURES, write

INSTRUMENTED = ("clover.families", "clover.steps.plan", "clover.steps.family", "clover.steps.pipeline")
ROOT = Path(__file__).resolve().parents[3]
_FOLDER = engine.scratch("family")
HERE = write(Path(_FOLDER.name) / "echo")

DICTIONARY = (
    *(b"name = ", b"shape = ", b"[-1, 2]", b"max_shape = ", b"datatype = ", b'"BYTES"', b"[[inputs]]",
      b"[[outputs]]", b"\n"),
    *(b"[[variants]]", b"[confidence]", b"[evaluation]", b"[steps]", b"[[steps.before]]", b"[openai]", b"max_bytes = "),
    *(b"labels = ", b"loader = ", b"weights = ", b'"../x"', b"accuracy = ", b"inf", b"nan", b"-1",
      b"99999999999999999999"),
    *(b"true", b"1.5", b'""', b"[[[[", b"{", b"}", b"parameters = ", b"published = ", b"precision = ", b"kind = ",
      b"'''"),
)  # fmt: skip


def seeds() -> list[bytes]:
    """Return the declarations of the repository."""
    found = [BASE.encode()]
    for folder in (ROOT / "models", FIXTURES):
        found += [path.read_bytes() for path in sorted(folder.glob("*/family.toml"))]
    return [one for one in found if len(one) <= 4096]


def check(data: bytes) -> str:
    """Read one declaration."""
    (HERE / "family.toml").write_bytes(data)
    try:
        spec = families.load_family(str(HERE))
    except ConfigError as error:
        text = str(error)
        assert "family.toml" in text, text
        assert len(text) < 3000, text
        assert all(line.replace("\t", " ").isprintable() for line in text.split("\n")), repr(text)
        return f"refused: {text.replace(_FOLDER.name, '')}"
    back = msgspec.json.decode(msgspec.json.encode(spec), type=FamilySpec)
    assert back == spec, "the record does not survive its JSON"
    return f"{spec.name} {spec.digest} {len(spec.variants)}"
