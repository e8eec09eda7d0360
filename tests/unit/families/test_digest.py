"""Digests follow what a family, or one variant, consists of."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import pytest

from clover import families
from clover.errors import ConfigError
from clover.types import VariantSpec
from tests.support.family_folder import BASE, fixture, with_precision, write


def test_the_digest_follows_declaration_python_and_weights_not_the_place(tmp_path: Path) -> None:
    first, second = write(tmp_path / "first"), write(tmp_path / "second")
    digest = families.load_family(str(first)).digest
    assert families.load_family(str(second)).digest == digest
    (second / "README.md").write_text("notes")
    (second / "__pycache__").mkdir()
    (second / "__pycache__" / "x.py").write_text("")
    assert families.load_family(str(second)).digest == digest
    seen = {digest}
    for file, content in (
        ("parts.py", "def scale(x):\n    return x * 3\n"),
        ("weights/w.bin", "other"),
        ("family.toml", BASE.replace("max_batch = 4", "max_batch = 5")),
    ):
        (second / file).write_text(content)
        seen.add(families.load_family(str(second)).digest)
    assert len(seen) == 4


def test_the_digest_of_a_variant_ignores_its_siblings(tmp_path: Path) -> None:
    more = BASE + '\n[[variants]]\nname = "more"\nloader = "model:load"\nweights = "weights/m.bin"\n'
    folder = write(tmp_path, BASE)
    (folder / "weights" / "m.bin").write_bytes(b"m")
    alone = families.load_family(str(folder))
    only = families.digest_of_variant(alone, "only")
    (folder / "family.toml").write_text(more.replace("90.0", "91.0"))
    both = families.load_family(str(folder))
    assert families.digest_of_variant(both, both.variant("only")) == only
    other = families.digest_of_variant(both, "more")
    assert other != only
    (folder / "weights" / "m.bin").write_bytes(b"n")
    assert families.digest_of_variant(both, "only") == only
    assert families.digest_of_variant(both, "more") != other
    (folder / "weights" / "w.bin").write_bytes(b"n")
    assert families.digest_of_variant(both, "only") != only
    with pytest.raises(KeyError):
        families.digest_of_variant(both, "none")


def test_a_family_may_be_served_with_some_of_its_variants_only() -> None:
    whole = fixture("toy")
    names = [variant.name for variant in whole.variants]
    assert families.chosen(whole, ()) is whole
    assert families.chosen(whole, names[::-1]) is whole
    some = families.chosen(whole, names[-1:])
    assert [variant.name for variant in some.variants] == names[-1:]
    assert some.digest not in ("", whole.digest)
    assert families.chosen(some, names[-1:]) is some
    assert families.load_family(some).digest == some.digest, "a worker finds the same"
    with pytest.raises(ConfigError, match=f"family 'toy' has no variant 'huge'; it has {', '.join(names)}"):
        families.chosen(whole, ["huge"])


def test_precision_is_part_of_a_variant(tmp_path: Path) -> None:
    digests = set()
    for precision in ("fp32", "tf32", "fp16"):
        spec = with_precision(tmp_path, f'"{precision}"')
        assert [variant.precision for variant in spec.variants] == ["fp32", precision]
        digests.add(families.digest_of_variant(spec, "half"))
        digests.add(families.structure_of_variant(spec, "half"))
        digests.add(spec.digest)
    assert len(digests) == 9


def test_new_weights_leave_the_structure(tmp_path: Path) -> None:
    weights = tmp_path / "w"
    weights.write_bytes(b"1")
    spec = with_precision(tmp_path, '"fp32"')
    with_weights = msgspec.structs.replace(spec.variants[1], weights="w", version="1")

    def seen(variant: VariantSpec) -> tuple[str, str]:
        return families.digest_of_variant(spec, variant), families.structure_of_variant(spec, variant)

    digest, structure = seen(with_weights)
    weights.write_bytes(b"2")
    (tmp_path / "v").write_bytes(b"2")
    for changed in (with_weights, msgspec.structs.replace(with_weights, weights="v", version="2")):
        assert seen(changed)[0] != digest
        assert seen(changed)[1] == structure
    other = msgspec.structs.replace(with_weights, parameters={"layers": "large"})
    assert seen(other)[1] != structure


def test_the_digest_of_a_family_without_confidence_is_what_it_was_before_there_was_any() -> None:
    spec = families.load_family(msgspec.structs.replace(fixture("simple"), folder=""))
    declared = msgspec.to_builtins(msgspec.structs.replace(spec, digest=""))
    assert declared.pop("confidence") is None
    assert declared.pop("steps") is None
    assert declared.pop("manifest") == ""
    assert [(variant.pop("published"), variant.pop("untrained")) for variant in declared["variants"]] == [(None, False)]
    assert [(variant.pop("inputs"), variant.pop("outputs")) for variant in declared["variants"]] == [((), ())]
    assert spec.digest == hashlib.sha256(msgspec.json.encode(declared, order="sorted")).hexdigest()
