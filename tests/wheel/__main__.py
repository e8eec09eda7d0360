"""Installs Clover's wheel in bare environments, and serves and asks families as their cards show."""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from tests.support.cards import ANSWERS, UNTRAINED, card, first_commands
from tests.support.fenced import ROOT
from tests.support.process_groups import end, free_ports

START_S = 1800.0
"""Seconds that a first start may take: it measures, and others may use the machine."""
ASK_S = 120.0
ENVIRONMENTS = ROOT / ".venv-wheel"
CARRIED = re.compile(r"PYTHON|CLOVER_|XDG_|VIRTUAL_ENV")
"""Variables that would bring something of this environment into the bare one."""


def python_of(folder: Path) -> str:
    """Return the interpreter of an environment."""
    return str(folder / "bin" / "python")


def pip(folder: Path, *words: str) -> None:
    """Run pip in an environment.  Raises CalledProcessError if it fails; what it says comes through."""
    subprocess.run([python_of(folder), "-m", "pip", "--disable-pip-version-check", *words], check=True)


def base_environment(wheel: Path) -> Path:
    """Return an environment with the wheel and what it requires; it is made anew for another wheel."""
    folder, digest = ENVIRONMENTS / "base", hashlib.sha256(wheel.read_bytes()).hexdigest()
    ready = folder / ".ready"
    if not ready.exists() or ready.read_text() != digest:
        shutil.rmtree(ENVIRONMENTS, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pip(folder, "install", "--quiet", str(wheel))
        ready.write_text(digest)
    return folder


def card_environment(base: Path, packages: str, wheel: Path) -> Path:
    """Return an environment that adds to `base` the `packages` that a card installs, and nothing else; cards with
    the same packages share it.  Raises CalledProcessError if a requirement of any package is missing then."""
    folder = ENVIRONMENTS / packages
    ready = folder / ".ready"
    if not ready.exists():
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        asked = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
        own, below = (
            subprocess.run([python_of(one), "-c", asked], check=True, capture_output=True, text=True).stdout.strip()
            for one in (folder, base)
        )
        (Path(own) / "zz-base.pth").write_text(below + "\n")
        pip(folder, "install", "--quiet", packages.replace("clover-inference", str(wheel)))
        pip(folder, "--quiet", "check")
        ready.touch()
    return folder


def until_ready(process: subprocess.Popen[bytes], url: str) -> float:
    """Return the seconds until a server is ready.  Raises RuntimeError if it ends, or is not in time."""
    began = time.monotonic()
    while True:
        try:
            with urllib.request.urlopen(f"{url}/v2/health/ready", timeout=10):
                return time.monotonic() - began
        except OSError as error:
            if process.poll() is not None:
                raise RuntimeError(f"the server ended with {process.returncode}") from error
            if time.monotonic() - began > START_S:
                raise RuntimeError(f"not ready after {START_S:.0f} s: {error}") from error
            time.sleep(1.0)


def tried(name: str, environment: Path, folder: Path) -> str:
    """Serve a family in `folder` and ask it as its card does; return how that went.

    Raises RuntimeError, with what was answered, if that is not what the card says.
    """
    commands, (port,) = first_commands(card(name)), free_ports(1)
    environ = {key: value for key, value in os.environ.items() if not CARRIED.match(key)}
    environ |= {"HOME": str(folder), "PATH": f"{environment / 'bin'}:{os.environ['PATH']}", "COLUMNS": "80"}
    serve, *asks = (re.sub(r"\b8000\b", str(port), command) for command in (commands.serve, *commands.asks))
    with (folder / "log").open("wb") as log:
        words = ["bash", "-c", f"exec {serve}"]
        process = subprocess.Popen(words, cwd=folder, env=environ, stdout=log, stderr=log, start_new_session=True)
        try:
            took = until_ready(process, f"http://127.0.0.1:{port}")
            output = b"".join(
                subprocess.run(
                    ["bash", "-o", "pipefail", "-c", ask], cwd=folder, env=environ, timeout=ASK_S, check=True, stdout=-1
                ).stdout
                for ask in asks
            ).decode(errors="replace")
        finally:
            end(process)
    answer = re.search((ANSWERS | UNTRAINED)[name], output, re.MULTILINE)
    if answer is None:
        raise RuntimeError(f"not what the card says: {output}")
    return f"ready after {took:.0f} s, answered {answer[0].strip()}"


def newest_wheel() -> Path | None:
    """Return the wheel of dist/ that was made last."""
    return max(ROOT.glob("dist/clover_inference-*.whl"), key=lambda path: path.stat().st_mtime, default=None)


def main() -> int:
    """Try each; return 1 if one does not answer as its card says."""
    parser = argparse.ArgumentParser(prog="python -m tests.wheel", description=__doc__)
    parser.add_argument("family", nargs="*", help=f"{', '.join(ANSWERS)}; without weights: {', '.join(UNTRAINED)}")
    parser.add_argument("--wheel", type=Path, help="the wheel [the newest of dist/]")
    given = parser.parse_args()
    if unknown := set(given.family) - (ANSWERS | UNTRAINED).keys():
        parser.error(f"no such family: {', '.join(sorted(unknown))}")
    wheel = given.wheel or newest_wheel()
    if wheel is None or not wheel.is_file():
        parser.error(f"no wheel at {wheel or ROOT / 'dist'}: make build makes one")
    base = base_environment(wheel.resolve())
    subprocess.run([python_of(base), "-P", "-m", "clover", "--version"], cwd="/", check=True)
    failed = 0
    for name in given.family or ANSWERS:
        with tempfile.TemporaryDirectory(prefix="clover-wheel-") as place:
            try:
                environment = card_environment(base, first_commands(card(name)).packages, wheel.resolve())
                print(f"{name}: ok, {tried(name, environment, Path(place))}", flush=True)
            except (OSError, RuntimeError, subprocess.SubprocessError) as error:
                log = Path(place) / "log"
                print(f"{name}: FAILED: {error}\n{log.read_text()[-3000:] if log.exists() else ''}", flush=True)
                failed += 1
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
