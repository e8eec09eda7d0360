"""What a service manager is told, and how a successor is started."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from clover.serve import notify, upgrade


@pytest.mark.parametrize("abstract", [False, True])
def test_the_service_manager_is_told(tmp_path: Path, abstract: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"@clover-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(name.replace("@", "\0"))
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        assert notify.ready()
        assert manager.recv(1024) == b"READY=1\nMAINPID=%d" % os.getpid()


@pytest.mark.parametrize("address", ["", "vsock:2:1234", "/there/is/no/such/socket"])
def test_without_one_nothing_happens(address: str) -> None:
    assert not notify.notify("READY=1", environ={"NOTIFY_SOCKET": address} if address else {})


def test_a_successor_gets_the_same_words_and_the_flag_once() -> None:
    words = ["python", "-m", "clover.serve", "config.toml", "--port", "9000"]
    command = upgrade.successor_command(words, "/venv/bin/python")
    assert command == ["/venv/bin/python", *words[1:], "--take-over"]
    assert upgrade.successor_command(command, "/venv/bin/python") == command


def test_it_is_started_in_the_background_with_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Any] = []
    monkeypatch.setattr(subprocess, "run", lambda command, **how: ran.append((command, how["env"])))
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "clover.serve", "a b"])
    upgrade.start_successor({"CLOVER_TOKEN": "t"})
    ((command, environ),) = ran
    assert command[:3] == ["/bin/sh", "-c", '"$@" &']
    assert command[-4:] == ["-m", "clover.serve", "a b", "--take-over"]
    assert environ == {"CLOVER_TOKEN": "t"}


def test_one_that_cannot_be_started_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object, **how: object) -> None:
        raise OSError("no shell")

    monkeypatch.setattr(subprocess, "run", fails)
    upgrade.start_successor({})
    assert "this one serves on" in caplog.text
