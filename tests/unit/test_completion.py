"""The script of completions: bash takes it, and completes commands, options, their values and shipped families."""

from __future__ import annotations

import subprocess

import pytest

from clover.completion import main

WORDS = {
    "se": "serve",
    "serve fa": "fashion",
    "serve --slo": "--slo-ms",
    "serve --profile f": "force",
    "family list la": "language",
    "ctl fr": "freeze",
    "doctor --cal": "--calibrate",
    "infer - x --ur": "--url",
}


def test_bash_completes_commands_options_and_families(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab", reason="needs shtab (pip install shtab)")
    assert main(["bash"]) == 0
    lines = [capsys.readouterr().out]
    for words in WORDS:
        lines.append(f"COMP_WORDS=(clover {words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); COMPREPLY=()")
        lines.append("_shtab_clover clover ${COMP_WORDS[COMP_CWORD]} x; echo ${COMPREPLY[@]}")
    done = subprocess.run(["bash"], input="\n".join(lines), capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == list(WORDS.values())
