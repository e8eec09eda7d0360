"""The manifest of a family: what it lists, what it refuses, and what may not change between check and use."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clover import families
from clover.__main__ import main
from clover.errors import ConfigError
from clover.families import manifest
from clover.families.manifest import MANIFEST
from tests.support.family_folder import write

DIGEST = "0" * 64


def listed(folder: Path) -> Path:
    """Return a family's folder with its manifest."""
    write(folder)
    (folder / MANIFEST).write_text(manifest.text_of(folder))
    return folder


def test_a_family_with_its_manifest_is_loaded_and_is_the_same(tmp_path: Path) -> None:
    without = families.load_family(str(write(tmp_path / "echo")))
    found = families.load_family(str(listed(tmp_path / "echo")))
    assert len(found.manifest) == 64
    assert (without.manifest, without.digest) == ("", found.digest), "profiles and artifacts stay valid"
    assert msgspec.json.decode(msgspec.json.encode(found), type=type(found)) == found


def changed(folder: Path) -> str:
    (folder / "model.py").write_text("print('hello')\n")
    return "different: model.py"


def missing(folder: Path) -> str:
    (folder / "model.py").unlink()
    return "missing: model.py"


def extra(folder: Path) -> str:
    for name in ("a.py", "b.bin", "c", "d"):
        (folder / name).write_text("")
    return "not listed: a.py, b.bin, c and 1 more"


def extra_below(folder: Path) -> str:
    (folder / "part").mkdir()
    (folder / "part" / "x.py").write_text("")
    return "not listed: part/x.py"


def edited(folder: Path) -> str:
    (folder / "family.toml").write_text((folder / "family.toml").read_text() + "\n# and more\n")
    return "different: family.toml"


def linked(folder: Path) -> str:
    (folder / "outside").symlink_to("/etc/hostname")
    return "outside is a link that leaves the folder"


def linked_folder(folder: Path) -> str:
    (folder / "real").mkdir()
    (folder / "also").symlink_to("real")
    return "also is a link to a folder"


def piped(folder: Path) -> str:
    os.mkfifo(folder / "pipe")
    return "'pipe' is no file"


@pytest.mark.parametrize(
    "fault",
    [changed, missing, extra, extra_below, edited, linked, linked_folder, piped],
    ids=lambda fault: fault.__name__,
)
def test_what_differs_is_refused_by_name(tmp_path: Path, fault: object) -> None:
    folder = listed(tmp_path / "echo")
    said = fault(folder)  # type: ignore[operator]
    with pytest.raises(ConfigError) as caught:
        manifest.check(folder)
    assert said in str(caught.value)
    if fault is not missing:  # whose loader is not found at first
        with pytest.raises(ConfigError):
            families.load_family(str(folder))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "lists no file"),
        ("abc  x\n", "line 1 is not of the form"),
        (f"{DIGEST}  x\n{DIGEST}  x\n", "line 2 lists x again"),
        (f"{DIGEST}  x\n\n{DIGEST}  y\n", "line 2 is not of the form"),
        ("\ud800", "is not UTF-8"),
    ],
)
def test_a_manifest_that_is_none_is_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        manifest.parse(text.encode("utf-8", "surrogatepass"), "here")


NAMES = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1).filter(str.isprintable)


@given(st.dictionaries(NAMES, st.binary(min_size=32, max_size=32).map(bytes.hex), min_size=1))
def test_what_is_written_is_read(files: dict[str, str]) -> None:
    text = "".join(f"{digest}  {name}\n" for name, digest in files.items())
    assert manifest.parse(text.encode(), "here") == files


@given(st.binary(max_size=300))
def test_any_bytes_are_a_manifest_or_an_error(data: bytes) -> None:
    try:
        found = manifest.parse(data, "here")
    except ConfigError:
        return
    assert found
    assert all(len(digest) == 64 for digest in found.values())


def test_bytecode_and_git_are_left_out(tmp_path: Path) -> None:
    folder = listed(tmp_path / "echo")
    for name in ("__pycache__", ".git"):
        (folder / name).mkdir()
        (folder / name / "x").write_text("")
    assert manifest.check(folder) is not None


def test_a_worker_takes_the_manifest_that_the_server_read_and_no_other(tmp_path: Path) -> None:
    folder = listed(tmp_path / "echo")
    spec = families.load_family(str(folder))
    assert manifest.check(folder, expected=spec.manifest) is not None
    (folder / "more").write_text("")
    (folder / MANIFEST).write_text(manifest.text_of(folder))  # whoever changed the files wrote it anew
    with pytest.raises(ConfigError, match="another one than the server read"):
        manifest.check(folder, expected=spec.manifest)
    (folder / MANIFEST).unlink()
    with pytest.raises(ConfigError, match="is gone since the server read it"):
        manifest.check(folder, expected=spec.manifest)


@pytest.mark.parametrize("how", ["in place", "replaced", "removed"])
def test_a_file_that_changes_while_it_is_loaded_is_found(tmp_path: Path, how: str) -> None:
    folder = listed(tmp_path / "echo")
    checked = manifest.check(folder)
    assert checked is not None
    checked.check_unchanged()
    model = folder / "model.py"
    before, times = model.read_bytes(), model.stat()
    if how == "in place":
        model.write_bytes(before)
        os.utime(model, ns=(times.st_atime_ns, times.st_mtime_ns))  # the kernel's own time is not for the user to set
    elif how == "replaced":
        shutil.copy2(model, folder / "copy")
        os.replace(folder / "copy", model)
    else:
        model.unlink()
    with pytest.raises(ConfigError, match="was changed while the family was loaded"):
        checked.check_unchanged()


def test_python_that_changes_after_the_check_is_not_run(tmp_path: Path) -> None:
    folder = listed(tmp_path / "echo")
    spec = families.load_family(str(folder))
    ran = tmp_path / "ran"
    (folder / "model.py").write_text(f"open({str(ran)!r}, 'w')\n")
    with pytest.raises(ConfigError, match="was changed after it was checked"):
        families.resolve(spec.variants[0].loader, folder)
    assert not ran.exists()


def test_sha256sum_reads_it(tmp_path: Path) -> None:
    folder = listed(tmp_path / "echo")
    checker = shutil.which("sha256sum")
    if checker is None:
        pytest.skip("there is no sha256sum here")
    assert (
        subprocess.run([checker, "--check", "--strict", "--quiet", MANIFEST], cwd=folder, check=False).returncode == 0
    )


def test_the_command_writes_checks_and_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path / "echo")
    assert main(["family", "manifest", str(folder), "--check"]) == 3
    assert f"has no {MANIFEST}" in capsys.readouterr().err
    assert main(["family", "manifest", str(folder)]) == 0
    assert f"wrote {folder / MANIFEST}" in capsys.readouterr().out
    assert main(["family", "manifest", str(folder), "--check"]) == 0
    (folder / "x").write_text("")
    assert main(["family", "manifest", str(folder), "--check"]) == 3
    assert "not listed: x" in capsys.readouterr().err
    assert main(["family", "manifest", str(folder)]) == 0, "it is written anew after a change"
    assert main(["family", "manifest"]) == 2
    assert main(["family", "manifest", str(tmp_path / "nowhere")]) == 3


def test_one_that_is_required_and_missing_is_named_with_the_remedy(tmp_path: Path) -> None:
    spec = families.load_family(str(write(tmp_path / "echo")))
    families.check_manifest(spec, required=False)
    with pytest.raises(ConfigError, match="clover family manifest"):
        families.check_manifest(spec, required=True)
    families.check_manifest(families.load_family(str(listed(tmp_path / "echo"))), required=True)
