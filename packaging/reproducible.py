"""Builds the wheel twice and says whether both have the same bytes.

    python packaging/reproducible.py [--out dist] [--kernels histogram,random]

The files that git knows are copied to two folders of different names and depths, and a wheel is built in each, in
another time zone, language and order of hashes.  What is the same for both: compiler, Python, Cython, NumPy, setuptools
(those beside this interpreter), the mask of file modes, and SOURCE_DATE_EPOCH, which is the time of the last commit
unless it is set.  The extensions hold no paths and no times; the source distribution is not compared, because
setuptools writes the time of the build into it.

Exit codes: 0 the same, 1 not (with each member that differs), 2 a build failed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILDS: dict[str, dict[str, str]] = {
    "first": {"TZ": "UTC", "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "1"},
    "second/and/deeper": {"TZ": "Pacific/Auckland", "LC_ALL": "C", "PYTHONHASHSEED": "2"},
}


def main(argv: list[str] | None = None) -> int:
    """Build, compare, and print what came of it; return the exit code."""
    parser = argparse.ArgumentParser(description="Build the wheel twice and compare the bytes.")
    parser.add_argument(
        "--kernels", help="compile these alone, as histogram,random: a quick try, of a wheel that lacks"
    )
    parser.add_argument("--out", type=Path, help="folder to leave the wheel in if both builds gave the same")
    given = parser.parse_args(argv)
    environ = {**os.environ, "SOURCE_DATE_EPOCH": os.environ.get("SOURCE_DATE_EPOCH") or last_commit()}
    os.umask(0o022)
    wheels = []
    with tempfile.TemporaryDirectory(prefix="clover-reproducible-") as scratch:
        tree = Path(scratch, "tree")  # of one moment, though files may change while wheels are built
        copy_tracked(tree, given.kernels)
        for place, others in BUILDS.items():
            shutil.copytree(tree, Path(scratch, place))
            wheel = build(Path(scratch, place), {**environ, **others})
            if wheel is None:
                return 2
            print(f"{digest(wheel)}  {wheel.name} ({place})", flush=True)
            wheels.append(wheel)
        found = differences(*wheels)
        if digest(wheels[0]) != digest(wheels[1]):
            print("\n".join(found or ["the archives differ in their order, times or modes"]), file=sys.stderr)
            return 1
        if given.out is not None:
            given.out.mkdir(parents=True, exist_ok=True)
            shutil.copy2(wheels[0], given.out)
    print(f"the same bytes twice, with SOURCE_DATE_EPOCH={environ['SOURCE_DATE_EPOCH']}")
    return 0


def last_commit() -> str:
    """Return the time of the last commit, Unix seconds."""
    command = ["git", "log", "-1", "--format=%ct"]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def copy_tracked(folder: Path, kernels: str | None) -> None:
    """Copy the files that git knows to `folder`, those of all extensions or of these `kernels`."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        source, target = ROOT / name, folder / name
        if kernels is not None and not wanted(Path(name), kernels.split(",")):
            continue
        if source.is_file():  # one that was removed and not committed is listed still
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            target.chmod(0o755 if os.access(source, os.X_OK) else 0o644)


def build(folder: Path, environ: Mapping[str, str]) -> Path | None:
    """Build a wheel in `folder`; return it, or None with the builder's words printed."""
    out = folder / "dist"
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-deps"]
    command += ["--no-build-isolation", "--wheel-dir", str(out), "."]
    made = subprocess.run(command, cwd=folder, env=dict(environ), capture_output=True, text=True, check=False)
    if made.returncode:
        print(made.stdout, made.stderr, sep="\n", file=sys.stderr)
        return None
    (wheel,) = out.glob("*.whl")
    return wheel


def wanted(name: Path, kernels: Sequence[str]) -> bool:
    """Return whether a file is to be there if no extensions but `kernels` are built."""
    if name.suffix == ".pyx":
        return name.stem in kernels
    return name.suffix != ".pxd" or name.parent.name == "_native"


def differences(first: Path, second: Path) -> list[str]:
    """Return a line for each member that only one of two wheels has, or that differs."""
    with zipfile.ZipFile(first) as one, zipfile.ZipFile(second) as other:
        names, others = set(one.namelist()), set(other.namelist())
        found = [f"only in one of them: {name}" for name in sorted(names ^ others)]
        for name in sorted(names & others):
            if one.read(name) != other.read(name):
                found.append(f"differs: {name}")
    return found


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
