"""Fuzzes the product, target by target: `make fuzz`.

    python -m tests.fuzz [TARGET ...] [--seconds 60] [--keep]

Three quarters of the time guided by branches with atheris (the extra `dev`), on the source of compiled modules, and
the rest by mutation of the corpora, on the compiled form; without atheris all of it so, and it says so.  What is found
goes through both forms afterwards, which must say the same.  Inputs that reach something new gather in
build/fuzz/TARGET; --keep adds them to the corpus in the repository.  A finding is written to build/fuzz and ends its
target; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from tests.fuzz.engine import HERE, MOST_BYTES, NAMES, Mutator, corpus, load, write_corpus

ROOT = HERE.parents[1]
BUILD = ROOT / "build" / "fuzz"
_MOST_KEPT = 120
_MOST_KEPT_BYTES = 1024


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("targets", nargs="*", help=f"of {', '.join(NAMES)}; all by default")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each target")
    parser.add_argument("--keep", action="store_true", help="add what is found to the corpora in tests/fuzz/corpora")
    options = parser.parse_args()
    if unknown := set(options.targets) - set(NAMES):
        parser.error(f"no target {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    guided = importlib.util.find_spec("atheris") is not None
    if not guided:
        print("atheris is not installed (pip install 'clover-inference[dev]'): inputs are mutated without guidance")
    failed = []
    print(f"{'target':12} {'executions':>12} {'minutes':>8} {'inputs':>7}  outcome", flush=True)
    for name in options.targets or NAMES:
        begun = time.monotonic()
        executions, trouble = with_atheris(name, options.seconds * 0.75) if guided else (0, "")
        if not trouble:
            more, trouble = by_mutation(name, options.seconds * (0.25 if guided else 1.0))
            executions += more
        trouble = trouble or disagreement(name)
        minutes = (time.monotonic() - begun) / 60
        inputs = len(list((BUILD / name).iterdir()))
        print(f"{name:12} {executions:12} {minutes:8.1f} {inputs:7}  {trouble or 'no finding'}", flush=True)
        failed += [name] if trouble else []
        if options.keep and not trouble:
            keep(name)
    return 1 if failed else 0


def with_atheris(name: str, seconds: float) -> tuple[int, str]:
    """Run a target under libFuzzer; return the number of executions, and what it found."""
    folder = _folder(name)
    for at, case in enumerate([*corpus(name), *load(name).seeds()]):
        (folder / f"seed-{at:04}").write_bytes(case)
    words = BUILD / f"{name}.dict"
    words.write_text("".join(f'"{_quoted(word)}"\n' for word in dict.fromkeys(load(name).DICTIONARY) if word))
    log = BUILD / f"{name}.log"
    options = (
        *(f"-max_total_time={seconds:.0f}", f"-max_len={MOST_BYTES}", "-timeout=30", "-rss_limit_mb=4096"),
        *(f"-dict={words}", f"-artifact_prefix={BUILD}/{name}-", "-print_final_stats=1", str(folder)),
    )  # fmt: skip
    with log.open("w") as out:
        command = [sys.executable, "-m", "tests.fuzz.guided", name, *options]
        code = subprocess.run(
            command, cwd=ROOT, env={**os.environ, "CLOVER_SOURCE": "1"}, stdout=out, stderr=out
        ).returncode
    text = log.read_text(errors="replace")
    counted = re.findall(r"number_of_executed_units: (\d+)", text) or re.findall(r"^#(\d+)", text, re.M) or ["0"]
    if code == 0:
        return int(counted[-1]), ""
    raised = re.findall(r"^(\w*(?:Error|Exception|Timeout|libFuzzer: .*).*)$", text, re.M) or [f"exit code {code}"]
    written = re.findall(r"Test unit written to (\S+)", text)
    return int(counted[-1]), f"{raised[-1][:300]} (see {written[-1] if written else log})"


def by_mutation(name: str, seconds: float) -> tuple[int, str]:
    """Run a target on neighbours of its corpus; return the number of executions, and what was found."""
    folder, target = _folder(name), load(name)
    seen: set[str] = set()
    cases = [*corpus(name), *target.seeds()]
    mutator = Mutator(cases, target.DICTIONARY, time.time_ns())
    end, count = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        case = mutator.case()
        count += 1
        try:
            came_to = target.check(case)[:200]
        except Exception as error:  # whatever it is, it is a finding
            written = BUILD / f"{name}-crash"
            written.write_bytes(case)
            return count, f"{type(error).__name__}: {error!s:.300} (see {written})"
        if came_to not in seen and len(seen) < 2000:
            seen.add(came_to)
            (folder / f"found-{len(seen):04}").write_bytes(case)
    return count, ""


def disagreement(name: str) -> str:
    """Return in which case the compiled modules and their source come to something else; empty if in none."""
    said = []
    for form in ("0", "1"):
        command = [sys.executable, "-m", "tests.fuzz.replay", name, str(BUILD / name)]
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, "CLOVER_SOURCE": form}, capture_output=True, text=True
        )
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["ended"]
            return f"{'source' if form == '1' else 'compiled'}: {lines[-1][:300]}"
        said.append(done.stdout.split())
    differ = [at for at, (one, other) in enumerate(zip(*said, strict=True)) if one != other]
    return f"compiled and source differ in case {differ[0]} of {len(said[0])}" if differ else ""


def keep(name: str) -> None:
    """Add short inputs that were found to the corpus in the repository, evenly over their lengths."""
    found = {path.read_bytes() for path in (BUILD / name).iterdir() if not path.name.startswith("seed")}
    short = sorted(
        (case for case in {*found, *corpus(name)} if len(case) <= _MOST_KEPT_BYTES), key=lambda c: (len(c), c)
    )
    step = max(1.0, len(short) / _MOST_KEPT)
    write_corpus(name, (short[int(at * step)] for at in range(min(len(short), _MOST_KEPT))))


def _folder(name: str) -> Path:
    folder = BUILD / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _quoted(word: bytes) -> str:
    return "".join(chr(byte) if 32 < byte < 127 and byte not in b'"\\' else f"\\x{byte:02x}" for byte in word)


if __name__ == "__main__":
    sys.exit(main())
