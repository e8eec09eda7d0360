"""One model of a Triton repository: what of its folder is taken, and what is refused."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from clover.importing import folder
from clover.importing.draft import DraftError
from clover.importing.triton_models import OpenBounds, draft_of, models_of
from tests.support.triton_models import IO, PYTHON, loaded, model

SECRET = "-----BEGIN OPENSSH PRIVATE KEY-----\n"


def python_model(root: Path, config: str = "") -> Path:
    return model(root, "m", f'backend: "python" max_batch_size: 4 {IO} {config}', model__py=PYTHON)


def named(name: str) -> Callable[[Path, Path], None]:
    def write(at: Path, secret: Path) -> None:
        file = at / "config.pbtxt"
        file.write_text(f'{file.read_text()} default_model_filename: "{name.replace("SECRET", str(secret))}"')

    return write


def linked(place: str) -> Callable[[Path, Path], None]:
    def link(at: Path, secret: Path) -> None:
        (at / place).unlink(missing_ok=True)
        (at / place).symlink_to(secret if "." in place or place.startswith("1/key") else secret.parent)

    return link


def other_version(at: Path, secret: Path) -> None:
    (at / "2").symlink_to(secret.parent)


OUTSIDE = {
    "an absolute name": named("SECRET"),
    "a name that climbs": named("../../secrets/id_rsa"),
    "a name in a folder": named("below/model.py"),
    "the folder above": named(".."),
    "a link for the model": linked("1/model.py"),
    "a link beside the model": linked("1/key"),
    "a link to a folder": linked("1/keys"),
    "a link for the version": other_version,
    "a link for the configuration": linked("config.pbtxt"),
}


@pytest.mark.parametrize("attack", OUTSIDE)
def test_no_file_from_outside_the_model_is_taken(tmp_path: Path, attack: str) -> None:
    secret = tmp_path / "secrets" / "id_rsa"
    secret.parent.mkdir()
    secret.write_text(SECRET)
    (secret.parent / "model.py").write_text(SECRET)
    at = python_model(tmp_path / "repository")
    OUTSIDE[attack](at, secret)
    with pytest.raises(DraftError, match=r"outside of|plain name|link to a folder") as refused:
        draft_of(at, OpenBounds())
    assert "BEGIN" not in str(refused.value)


@pytest.mark.parametrize("configured", [True, False])
def test_a_link_that_is_too_long_is_no_version(tmp_path: Path, configured: bool) -> None:
    (tmp_path / "1").symlink_to("a" * 300)
    (tmp_path / "config.pbtxt").write_text('backend: "python"' if configured else "")
    with pytest.raises(DraftError, match=r"it has no version|says which backend"):
        draft_of(tmp_path, OpenBounds())


@pytest.mark.parametrize("kind", ["/dev/zero", "fifo", "nowhere", "itself"])
def test_only_regular_files_are_taken(tmp_path: Path, kind: str) -> None:
    at = python_model(tmp_path)
    if kind == "fifo":
        os.mkfifo(at / "1" / "link")
    else:
        (at / "1" / "link").symlink_to("link" if kind == "itself" else kind)
    with pytest.raises(DraftError, match=r"1/link (is /dev/zero, outside of|cannot be read|is no regular file)"):
        draft_of(at, OpenBounds())


def test_what_is_taken_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at = model(tmp_path, "m", f'backend: "pytorch" max_batch_size: 4 {IO}', model__pt=b"")
    os.truncate(at / "1" / "model.pt", 1 << 40)  # a hole, which the disk need not hold
    with pytest.raises(DraftError, match=r"1099512 MB, and 68719 MB at most are copied"):
        folder.write(draft_of(at, OpenBounds()), tmp_path / "family")
    assert not (tmp_path / "family").exists()
    os.truncate(at / "config.pbtxt", folder.MOST_TEXT_BYTES + 1)
    with pytest.raises(DraftError, match=r"config\.pbtxt has 4194305 bytes, and 4194304 at most are read"):
        draft_of(at, OpenBounds())
    monkeypatch.setattr(folder, "MOST_FILES", 3)
    at = python_model(tmp_path / "many")
    for number in range(3):
        (at / "1" / f"{number}.txt").touch()
    with pytest.raises(DraftError, match=r"more than 3 files"):
        draft_of(at, OpenBounds())


def test_links_within_the_model_are_followed(tmp_path: Path) -> None:
    at = python_model(tmp_path)
    (at / "shared").mkdir()
    (at / "1" / "model.py").rename(at / "shared" / "model.py")
    (at / "1" / "model.py").symlink_to("../shared/model.py")
    (at / "1" / "table.txt").symlink_to(at / "shared" / "model.py")
    spec = folder.write(draft_of(at, OpenBounds()), tmp_path / "family")
    for name in ("model.py", "table.txt"):
        copied = Path(spec.folder, "backend", name)
        assert stat.S_ISREG(copied.lstat().st_mode)
        assert copied.read_text() == PYTHON


def test_a_model_that_lies_outside_of_its_repository_is_refused(tmp_path: Path) -> None:
    elsewhere = python_model(tmp_path / "elsewhere")
    (tmp_path / "repository").mkdir()
    (tmp_path / "repository" / "m").symlink_to(elsewhere)
    (found,) = models_of(tmp_path / "repository", OpenBounds())
    assert found.draft is None
    assert "outside of" in found.reason
    assert draft_of(tmp_path / "repository" / "m", OpenBounds()).name == "m"  # its own folder was named


def test_what_a_model_is_called_does_not_reach_the_terminal(tmp_path: Path) -> None:
    at = python_model(tmp_path / "repository")
    (at / "config.pbtxt").write_text('backend: "a\x1b[2Jb" name: "\\033"')
    (tmp_path / "repository" / "c\x1b[2Jd").mkdir()
    for found in models_of(tmp_path / "repository", OpenBounds()):
        assert found.draft is None
        assert f"{found.name}{found.reason}".isprintable()


@pytest.mark.parametrize(
    "text", ['"', "'", '"""', "\\", "\\n", "a\nb", '\\"', '"""\\', "é\u2028", "__OUTPUTS__", "__VERSION__"]
)
def test_texts_of_a_configuration_arrive_as_they_are(tmp_path: Path, text: str) -> None:
    written = "".join(f"\\{byte:03o}" for byte in text.encode())
    at = python_model(tmp_path, f'parameters {{ key: "mark" value: {{ string_value: "{written}" }} }}')
    folder.write(draft_of(at, OpenBounds()), tmp_path / "family")
    (found,) = loaded(tmp_path / "family")([np.zeros((1, 3), np.float32)])
    assert bytes(found[0, : len(text.encode())].astype(np.uint8)) == text.encode()


def test_tensors_may_have_the_names_of_places_in_a_template(tmp_path: Path) -> None:
    config = (
        'backend: "python" max_batch_size: 4\n'
        'input [ { name: "__OUTPUTS__" data_type: TYPE_FP32 dims: [ 3 ] } ]\n'
        'output [ { name: "__INPUTS__" data_type: TYPE_FP32 dims: [ 3 ] } ]'
    )
    code = PYTHON.replace('"y"', '"__INPUTS__"')
    folder.write(draft_of(model(tmp_path, "m", config, model__py=code), OpenBounds()), tmp_path / "family")
    text = (tmp_path / "family" / "model.py").read_text()
    assert "INPUTS = ('__OUTPUTS__',)" in text
    assert "OUTPUTS = ('__INPUTS__',)" in text


def test_an_ensemble_is_refused(tmp_path: Path) -> None:
    at = model(tmp_path, "m", f'platform: "ensemble" max_batch_size: 4 {IO} ensemble_scheduling {{ step [ ] }}')
    with pytest.raises(DraftError, match="ensembles are not imported: import their models"):
        draft_of(at, OpenBounds())
