"""The units of packaging/systemd: as systemd reads them, and as Clover's command line and limits are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from clover import settings
from tests.support import units
from tests.support.family_folder import write

needs_systemd = pytest.mark.skipif(not units.ANALYZE, reason="systemd-analyze is not installed (Debian: systemd)")


@needs_systemd
def test_systemd_reads_the_units_without_a_word(tmp_path: Path) -> None:
    for name in units.UNITS:
        text = (units.FOLDER / name).read_text(encoding="utf-8").replace(units.PYTHON, sys.executable)
        (tmp_path / name).write_text(text, encoding="utf-8")
    drop = tmp_path / "clover.service.d"
    drop.mkdir()
    (drop / "gpu.conf").write_text((units.FOLDER / "gpu.conf").read_text(encoding="utf-8"), encoding="utf-8")
    named = [str(tmp_path / name.replace("@.", "@north.")) for name in units.UNITS]
    done = subprocess.run(
        [units.ANALYZE, "verify", "--man=no", *named], capture_output=True, text=True, timeout=60, check=False
    )
    ours = [line for line in done.stderr.splitlines() if "clover" in line]
    assert (done.returncode, ours) == (0, [])
    # And it would say so if something were wrong.
    (tmp_path / "clover.service").write_text("[Service]\nExecStart=/bin/true\nProtectSistem=strict\n", encoding="utf-8")
    wrong = subprocess.run(
        [units.ANALYZE, "verify", "--man=no", named[0]], capture_output=True, text=True, timeout=60, check=False
    )
    assert "ProtectSistem" in wrong.stderr


@needs_systemd
@pytest.mark.parametrize("name", units.UNITS)
def test_a_unit_is_exposed_to_little(name: str, tmp_path: Path) -> None:
    path = tmp_path / name.replace("@.", "@north.")
    path.write_text((units.FOLDER / name).read_text(encoding="utf-8"), encoding="utf-8")
    done = subprocess.run(
        [units.ANALYZE, "security", "--offline=true", "--threshold=20", str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-300:]


@pytest.mark.parametrize("name", units.UNITS)
def test_a_unit_s_command_line_is_one_that_clover_takes(name: str, tmp_path: Path) -> None:
    family = write(tmp_path / "models")
    config_file = "config.toml" if name == "clover.service" else "north.toml"
    (tmp_path / config_file).write_text(f'[[families]]\nfamily = "{family}"\n', encoding="utf-8")
    (tmp_path / "token").write_text("a-token-of-the-tests\n", encoding="utf-8")
    places = {"%d": str(tmp_path), "%C": "/var/cache", "%S": "/var/lib", "%t": "/run", "/etc/clover": str(tmp_path)}
    python, *words = units.command(name, places, "north")
    assert python == units.PYTHON
    assert words[:2] == ["-m", "clover.serve"]
    config = settings.load(words[2:], {}).config
    own = "clover" if name == "clover.service" else "clover-north"
    assert (config.cache_dir, config.state_dir) == (f"/var/cache/{own}", f"/var/lib/{own}")
    assert config.listen.control == f"unix:/run/{own}/control.sock"
    found = units.directives(name)
    for kind in ("Cache", "State", "Runtime"):
        assert [value.replace("%i", "north") for value in found[f"{kind}Directory"]] == [own]
        assert found[f"{kind}DirectoryMode"] == ["0700"]
    assert config.limits.drain_delay_s + config.limits.drain_s + 10.0 <= float(found["TimeoutStopSec"][0])
    assert found["LoadCredential"] == ["token:/etc/clover/token"]


@pytest.mark.parametrize("name", units.UNITS)
def test_nothing_is_forbidden_that_workers_need(name: str) -> None:
    found = units.directives(name)
    assert found["OOMPolicy"] == ["continue"]  # else a worker that the kernel ends would end the server
    assert found["KillMode"] == ["mixed"]
    assert not found.keys() & {"MemoryDenyWriteExecute", "ProcSubset", "ProtectProc", "PrivateUsers"}


def test_both_units_forbid_the_same() -> None:
    one, other = (units.directives(name) for name in units.UNITS)
    differing = {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)}
    assert differing == {
        "Description", "EnvironmentFile", "CacheDirectory", "StateDirectory", "RuntimeDirectory", "WorkingDirectory",
        "ExecStart", "Slice",
    }  # fmt: skip
