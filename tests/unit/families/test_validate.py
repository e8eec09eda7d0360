"""Whatever is wrong with a declaration is refused by file and key."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clover import families
from clover.errors import ConfigError
from tests.support.family_folder import BASE, with_precision, write


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("max_batch", "max_bach", r"family\.toml: max_bach: unknown key \(did you mean max_batch\?\)"),
        ("datatype", "datatipe", r"inputs\[0\]\.datatipe: unknown key \(did you mean datatype\?\)"),
        ("weights =", "wieghts =", r"variants\[0\]\.wieghts: unknown key \(did you mean weights\?\)"),
        ("metric", "metrik", r"variants\[0\]\.accuracy\.metrik: unknown key \(did you mean metric\?\)"),
        ('loader = "data:load"', "lader = 1", r"evaluation\.lader: unknown key \(did you mean loader\?\)"),
        ('name = "echo"', 'name = "echo"\nfolder = "/"', r"folder: is filled in by Clover"),
        ('name = "echo"', 'name = "echo"\ndigest = "0"', r"digest: is filled in by Clover"),
        ('name = "echo"', "", r"missing required field `name`"),
        ('name = "echo"', 'name = "a/b"', r"name: 'a/b' is not 1 to 128 of"),
        ('name = "echo"', 'name = ".."', r"name: '\.\.' is not"),
        ('name = "echo"', f'name = "{"n" * 129}"', r"name: .* is not 1 to 128 of"),
        ("max_batch = 4", "max_batch = 0", r"max_batch: 0 is not within"),
        ("max_batch = 4", 'max_batch = "4"', r"max_batch: expected `int`, got `str`"),
        ('"FP32"', '"fp32"', r"inputs\[0\]\.datatype: 'fp32' is unknown \(did you mean FP32\?\)"),
        ("max_shape = [8, 2]", "", r"inputs\[0\]\.max_shape: is needed"),
        ("max_shape = [8, 2]", "max_shape = [8]", r"max_shape: \[8\] does not bound \[-1, 2\]"),
        ("max_shape = [8, 2]", "max_shape = [8, 3]", r"max_shape: \[8, 3\] does not bound"),
        ("max_shape = [8, 2]", "max_shape = [0, 2]", r"max_shape: \[0, 2\] does not bound"),
        ("max_shape = [8, 2]", "max_shape = [8, 2]\nmax_bytes = 9", r"max_bytes: belongs to BYTES"),
        ("shape = [3]", "shape = [-2]", r"outputs\[0\]\.shape: \[-2\]: an axis is positive"),
        ("shape = [3]", "shape = [1,1,1,1,1,1,1,3]", r"outputs\[0\]\.shape: has 8 axes"),
        ("shape = [3]", "shape = [4]", r"outputs\[0\]\.labels: 3 labels for 4 values"),
        ('datatype = "FP32"', 'datatype = "BYTES"', r"inputs\[0\]\.max_bytes: a row of 16 elements takes at least 64"),
        ('"only"', '"only me"', r"variants\[0\]\.name: 'only me' is not"),
        ('"model:load"', '"model.load"', r"variants\[0\]\.loader: 'model\.load' is not of the form module:function"),
        ('"model:load"', '"../model:load"', r"variants\[0\]\.loader"),
        ('"python"', '"onnx"', r"variants\[0\]\.kind: invalid enum value 'onnx'"),
        ("90.0", "190.0", r"variants\[0\]\.accuracy\.value: 190\.0 is not a percentage"),
        ("weights/w.bin", "/etc/passwd", r"variants\[0\]\.weights: .* must be a path below"),
        ("weights/w.bin", "../w.bin", r"variants\[0\]\.weights: .* must be a path below"),
        ("weights/w.bin", "weights/../../w.bin", r"variants\[0\]\.weights: .* must be a path below"),
        ("weights/w.bin", "weights/none.bin", r"variants\[0\]\.weights: no file 'weights/none\.bin'"),
        ("weights/w.bin", "weights", r"variants\[0\]\.weights: no file 'weights'"),
        ('"data:load"', '"data:load"\nmetric = "bleu"', r"evaluation\.metric: 'bleu' is unknown"),
        ("[[inputs]]", "[[inputs]", r"family\.toml: not TOML"),
        ('labels = ["a", "b", "c"]', "labels = 3", r"outputs\[0\]\.labels: expected `array`"),
    ],
)
def test_a_wrong_declaration_is_refused_by_file_and_key(old: str, new: str, message: str, tmp_path: Path) -> None:
    assert old in BASE
    write(tmp_path, BASE.replace(old, new, 1))
    with pytest.raises(ConfigError, match=message) as caught:
        families.load_family(str(tmp_path))
    assert str(tmp_path / "family.toml") in str(caught.value)


def test_a_family_has_at_most_64_variants(tmp_path: Path) -> None:
    start = BASE.index("[[variants]]")
    end = BASE.index("\n[", start) + 1
    more = [BASE[start:end].replace('"only"', f'"v{number}"') for number in range(64)]
    write(tmp_path, BASE[:start] + "".join(more) + BASE[end:])
    assert len(families.load_family(str(tmp_path)).variants) == 64
    write(tmp_path, BASE[:end] + "".join(more) + BASE[end:])
    with pytest.raises(ConfigError, match="variants: 65 are more than the 64 a family may have: split it"):
        families.load_family(str(tmp_path))


@pytest.mark.parametrize("table", ["inputs", "outputs", "variants"])
def test_tensors_and_variants_are_needed_and_unique(table: str, tmp_path: Path) -> None:
    start = BASE.index(f"[[{table}]]")
    end = BASE.index("\n[", start) + 1
    block = BASE[start:end]
    write(tmp_path, BASE[:end] + block + BASE[end:])
    with pytest.raises(ConfigError, match=rf"{table}\[1\]\.name: .* is there twice"):
        families.load_family(str(tmp_path))
    write(tmp_path, f"{table} = []\n" + BASE.replace(block, "", 1))
    with pytest.raises(ConfigError, match=rf"{table}: at least one is needed"):
        families.load_family(str(tmp_path))


def test_labels_belong_to_outputs(tmp_path: Path) -> None:
    write(tmp_path, BASE.replace("max_shape = [8, 2]", 'max_shape = [8, 2]\nlabels = ["a"]'))
    with pytest.raises(ConfigError, match=r"inputs\[0\]\.labels: only outputs"):
        families.load_family(str(tmp_path))


def test_weights_may_link_inside_the_folder_but_not_out_of_it(tmp_path: Path) -> None:
    folder = write(tmp_path / "family")
    target = folder / "weights" / "w.bin"
    (folder / "weights" / "inside.bin").symlink_to(target)
    write(folder, BASE.replace("w.bin", "inside.bin"))
    assert families.load_family(str(folder)).variants[0].weights == "weights/inside.bin"
    (tmp_path / "secret").write_bytes(b"secret")
    (folder / "weights" / "outside.bin").symlink_to(tmp_path / "secret")
    write(folder, BASE.replace("w.bin", "outside.bin"))
    with pytest.raises(ConfigError, match="is a link that leaves"):
        families.load_family(str(folder))


def test_a_folder_without_a_declaration_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"family\.toml: cannot be read .*: a family is a folder with family\.toml"):
        families.load_family(str(tmp_path))


KEYS = st.sampled_from(["name", "max_batch", "inputs", "outputs", "variants", "evaluation", "version", "shape", "nmae"])
TEXT = st.text(st.characters(codec="ascii", exclude_categories=["Cc"], exclude_characters='"\\'), max_size=8)
SCALARS = st.one_of(st.integers(-10, 10), st.booleans(), TEXT)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(KEYS, inner, max_size=3)),
    max_leaves=6,
)


def as_toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, list):
        return f"[{', '.join(map(as_toml, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {as_toml(item)}" for key, item in value.items()) + "}"
    return str(value)


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.dictionaries(KEYS, VALUES, max_size=2), removed=st.sets(KEYS, max_size=1))
def test_any_declaration_loads_or_is_a_config_error(changes: dict[str, Any], removed: set[str], tmp_path: Path) -> None:
    write(tmp_path)
    table = {key: value for key, value in tomllib.loads(BASE).items() if key not in removed} | changes
    (tmp_path / "family.toml").write_text("".join(f"{key} = {as_toml(value)}\n" for key, value in table.items()))
    try:
        outcome = families.load_family(str(tmp_path)).digest
    except ConfigError as error:
        outcome = str(error)
    assert re.fullmatch(r"[0-9a-f]{64}|.*family\.toml: .*", outcome, re.DOTALL)


def test_a_wrong_precision_is_answered_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"variants\[1\].precision: 'fp61' is unknown .*fp16.*fp32, tf32, fp16"):
        with_precision(tmp_path, '"fp61"')
    with pytest.raises(ConfigError, match=r"variants\[1\].precision: 16 is unknown .*it is one of"):
        with_precision(tmp_path, "16")
    with pytest.raises(ConfigError, match="belongs to torch variants"):
        with_precision(tmp_path, '"fp16"', kind="python")
    made = msgspec.structs.replace(with_precision(tmp_path, '"fp16"'), digest="")
    wrong = msgspec.structs.replace(made.variants[1], precision="int4")
    with pytest.raises(ConfigError, match="'int4' is unknown"):
        families.load_family(msgspec.structs.replace(made, variants=(wrong,)))


EMBEDDER = """
name = "words"
openai = { embeddings = true }
inputs = [{ name = "text", datatype = "BYTES", shape = [1], max_bytes = 64 }]
outputs = [
    { name = "vector", datatype = "FP32", shape = [8] },
    { name = "tokens", datatype = "BYTES", shape = [1], max_bytes = 64 },
]
variants = [{ name = "only", loader = "model:load", kind = "python" }]
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("embeddings = true", 'embeddings = true, output = "vectr"', r"openai\.output: .*did you mean vector"),
        ("embeddings = true", "embedings = true", r"openai\.embedings: unknown key"),
        ("embeddings = true", 'embeddings = true, output = "tokens"', "openai.embeddings: 'tokens' is no vector"),
        ("shape = [8]", "shape = [2, 4]", "openai.embeddings: 'vector' is no vector"),
        ("shape = [1], max_bytes = 64 }]", "shape = [2], max_bytes = 64 }]", "openai.embeddings: needs one input"),
    ],
)
def test_a_family_embeds_text_as_a_vector(tmp_path: Path, old: str, new: str, message: str) -> None:
    file = tmp_path / "family.toml"
    file.write_text(EMBEDDER)
    found = families.load_family(str(tmp_path)).openai
    assert found is not None
    assert found.embeddings
    file.write_text(EMBEDDER.replace(old, new, 1))
    with pytest.raises(ConfigError, match=message):
        families.load_family(str(tmp_path))
