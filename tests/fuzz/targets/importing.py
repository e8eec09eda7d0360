"""Models of a Triton repository: the input is a `config.pbtxt`, then files and links of the model's folder.

A zero byte stands before each of these: `PATH=CONTENT` is a file, `PATH>TARGET` a link.  It is a family that holds what
the configuration says and nothing from outside of the model, or a DraftError in printable words.
"""

from __future__ import annotations

import ast
import json
import re
import shutil
import stat
from pathlib import Path

from clover.importing import folder
from clover.importing.draft import DraftError, FamilyDraft
from clover.importing.triton_config import parse
from clover.importing.triton_models import CONFIG, OpenBounds, draft_of
from tests.fuzz import engine

INSTRUMENTED = (
    "clover.importing.triton_config",
    "clover.importing.triton_models",
    "clover.importing.draft",
    "clover.importing.folder",
)
_FOLDER = engine.scratch("importing")
_ROOT = Path(_FOLDER.name)
_MODEL, _FAMILY = _ROOT / "model", _ROOT / "family"
_SECRET = "PRIVATE KEY"
(_ROOT / "secret").write_text(_SECRET)
(_ROOT / "secrets").mkdir()
(_ROOT / "secrets" / "model.py").write_text(_SECRET)

_PLACE = re.compile(r"(?:[A-Za-z0-9._-]{1,20}/){0,3}[A-Za-z0-9._-]{1,20}")
_IO = """
input [ { name: "x" data_type: TYPE_FP32 dims: [ 3 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 2 ] label_filename: "labels.txt" } ]
"""
_PYTHON = 'backend: "python" max_batch_size: 4' + _IO
_FILES = "\0".join(("", "1/model.py=class TritonPythonModel: ...", "labels.txt=left\nright\n"))
_SEEDS = (
    _PYTHON + _FILES,
    'platform: "pytorch_libtorch" max_batch_size: 0' + _IO.replace("[ 3", "[ -1, 3").replace("[ 2", "[ -1, 2")
    + "\0001/model.pt=weights\0labels.txt=left\nright\n",
    'backend: "onnxruntime" max_batch_size: 8' + _IO + "\0003/model.onnx=\0labels.txt=left",
    'platform: "ensemble" ensemble_scheduling { step [ ] }' + _IO,
    _PYTHON + r'parameters { key: "mark" value: { string_value: "\"\"\"\\ \n __OUTPUTS__ \xff" } }' + _FILES,
    _PYTHON.replace('"x"', '"__OUTPUTS__"').replace('"y"', r'"\"\\\'\n"') + _FILES,
    _PYTHON + 'default_model_filename: "/etc/passwd"' + _FILES,
    _PYTHON + 'default_model_filename: "../../secret"' + _FILES,
    _PYTHON + "version_policy: { specific { versions: [ 1 ] } }" + _FILES + "\0001/link>/dev/zero\0002/a=b",
    _PYTHON + _FILES + "\0001/key>../../secret\0001/loop>loop",
    _PYTHON + "\0001>../secrets\0labels.txt=left",
    _PYTHON + "\0shared/model.py=pass\0001/model.py>../shared/model.py\0labels.txt>/dev/full",
    _PYTHON + "\0config.pbtxt>../secret" + _FILES,
    _PYTHON + _FILES + "\0001/\x1b=a" + "\0001/a/b/c=d",
)  # fmt: skip

DICTIONARY = (
    *(b"name: ", b'"', b"'", b"\\", b"\\x", b"\\u001b", b"[ ", b" ]", b"{ ", b" }", b"dims: ", b"-1", b"0", b"\0"),
    *(b"data_type: TYPE_STRING", b"reshape: { shape: [ ] }", b"label_filename: ", b"default_model_filename: "),
    *(b"parameters { key: ", b"value: { string_value: ", b"__INPUTS__", b"__CONFIG__", b"..", b"../", b"/dev/zero"),
    *(b"1/", b"2/", b"model.py", b"model.pt", b"model.onnx", b"../secret", b"../secrets", b"true", b"nan", b"inf"),
    *(b"version_policy: { all { } }", b"max_batch_size: ", b"99999999999999999999", b"1e999", b"dynamic_batching { }"),
    *(b"\x1b[2J", b"\\303\\251", b"\\377", b"=", b">"),
)  # fmt: skip


def seeds() -> list[bytes]:
    """Return models that are imported, and ones that reach for what is not theirs."""
    return [one.encode() for one in _SEEDS]


def check(data: bytes) -> str:
    """Import one model."""
    for made in (_MODEL, _FAMILY):
        shutil.rmtree(made, ignore_errors=True)
    config, *entries = data.split(b"\0")
    _MODEL.mkdir()
    for entry in entries[:16]:
        _put(entry.decode(errors="replace"))
    if not (_MODEL / CONFIG).is_symlink():
        (_MODEL / CONFIG).write_bytes(config)
    try:
        draft = draft_of(_MODEL, OpenBounds())
        spec = folder.write(draft, _FAMILY)
    except DraftError as error:
        text = str(error).replace(_FOLDER.name, "")
        assert all(line.isprintable() for line in text.split("\n")), repr(text)
        assert len(text) < 3000, text
        assert not _FAMILY.exists()
        return f"refused: {text}"
    for path in _FAMILY.rglob("*"):
        assert path.is_dir() or stat.S_ISREG(path.lstat().st_mode), path
        assert path.is_dir() or _SECRET.encode() not in path.read_bytes(), path
    _agree(draft)
    return f"{spec.name} {spec.digest}"


def _put(entry: str) -> None:
    """Write a file or a link of the model; nothing if its place is no plain one, or taken."""
    found = re.fullmatch(r"([^=>]*)([=>])(.*)", entry, re.DOTALL)
    if found is None or not _PLACE.fullmatch(found[1]) or not {".", ".."}.isdisjoint(found[1].split("/")):
        return
    path = _MODEL / found[1]
    try:
        if not path.parent.resolve().is_relative_to(_MODEL):
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if found[2] == "=" and not path.is_symlink():
            path.write_bytes(found[3].encode(errors="replace"))
        elif found[2] == ">":
            path.symlink_to(found[3])
    except (OSError, RuntimeError, ValueError):
        return


def _agree(draft: FamilyDraft) -> None:
    """Check that the Python that was written holds what the configuration says."""
    tree = ast.parse((_FAMILY / "model.py").read_text(encoding="utf-8"))
    held = {
        target.id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(target := node.targets[0], ast.Name)
        if target.id in ("INPUTS", "OUTPUTS", "CONFIG")
    }
    assert sorted(held["INPUTS"]) == sorted(one.name for one in draft.inputs)
    assert sorted(held["OUTPUTS"]) == sorted(one.name for one in draft.outputs)
    if "CONFIG" in held:
        wanted = parse((_MODEL / CONFIG).read_text(encoding="utf-8")).get("parameters", [])
        found = json.loads(held["CONFIG"])["parameters"]
        assert len(found) <= len(wanted)
        assert set(found) == {str(one.get("key", [""])[-1]) for one in wanted if isinstance(one, dict)}
