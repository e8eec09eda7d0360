"""The daemon of MPS, asked by its command line: an emulated one on the PATH, and programs that misbehave."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from clover.devices import nvml
from clover.devices.mps_control import MpsControl, SmPartition, SmTable, parsed
from clover.devices.mps_emulated import MpsConnection, MpsRefused
from clover.devices.nvml import NvmlError
from clover.errors import DeviceError
from tests.support.mps_program import control, install
from tests.support.worker_pools import until

GPU = "GPU-74d43ed3-cdf7-e667-3644-bf5b4f46ed65"


@pytest.fixture
def static(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MpsControl]:
    """A daemon with static partitions on a board of 27 chunks."""
    install(short_path, monkeypatch)
    found = control(short_path)
    found.start(GPU, static=True)
    yield found
    found.quit()


def client(running: MpsControl, partition: str = "") -> MpsConnection:
    variables = {"CUDA_MPS_SM_PARTITION": f"{GPU}/{partition}"} if partition else {}
    return MpsConnection(str(running.pipe), variables)


def test_partitions_are_made_listed_and_removed(static: MpsControl) -> None:
    assert static.table(GPU) == SmTable(free=27, partitions=())
    name = static.add(GPU, 6)
    assert "/" in name, "names may have slashes of their own"
    table = static.table(GPU)
    assert table == SmTable(free=21, partitions=(SmPartition(name=name, chunks=6),))
    assert table.chunks == 27
    with pytest.raises(NvmlError, match="no partition of 22 chunks") as refused:
        static.add(GPU, 22)
    assert refused.value.code == nvml.INSUFFICIENT_RESOURCES
    static.remove(GPU, name)
    static.remove(GPU, name)  # gone already
    assert static.table(GPU) == SmTable(free=27, partitions=())
    assert static.table("GPU-other") is None


def test_a_partition_that_a_client_uses_stays(static: MpsControl) -> None:
    name = static.add(GPU, 6)
    used = client(static, name)
    with pytest.raises(NvmlError, match="clients use it") as refused:
        static.remove(GPU, name)
    assert refused.value.code == nvml.IN_USE
    used._socket.close()

    def removed() -> bool:
        with contextlib.suppress(NvmlError):  # until the daemon has seen that its client is gone
            static.remove(GPU, name)
            return True
        return False

    assert until(removed, 10.0)
    with pytest.raises(MpsRefused, match="no such SM partition"):
        client(static, name)


def test_clients_are_known_ended_and_ended_together_by_a_fault(static: MpsControl) -> None:
    name = static.add(GPU, 6)
    assert static.servers() == ()
    assert static.clients() == {}
    assert not static.faulted()
    one = client(static, name)
    (server,) = static.servers()
    assert static.clients() == {os.getpid(): server}
    one.begin()
    one.end()
    static.ask(f"fault {os.getpid()}")
    assert static.faulted()
    with pytest.raises(MpsRefused, match="719"):
        one.begin()
    with pytest.raises(MpsRefused, match="807"):
        client(static, name)
    one._socket.close()
    assert not static.faulted(), "it is well once all have gone"
    two = client(static, name)
    two.begin()
    assert static.terminate(os.getpid()) == ""
    with pytest.raises(MpsRefused, match="810"):
        two.end()
    two._socket.close()
    assert not static.faulted(), "work that was ended first is no fault"
    assert static.terminate(os.getpid()) == "", "it has no work there"


def test_a_client_that_goes_while_it_computes_is_a_fault(static: MpsControl) -> None:
    name = static.add(GPU, 6)
    one, two = client(static, name), client(static, name)
    one.begin()
    one._socket.close()
    assert static.faulted()
    with pytest.raises(MpsRefused, match="719"):
        two.begin()
    two._socket.close()
    assert not static.faulted()


def test_a_daemon_starts_once_runs_and_ends(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(short_path, monkeypatch, chunk=0)
    found = control(short_path)
    assert not found.runs()
    with pytest.raises(DeviceError, match="-d -S does not start: static partitioning is not supported"):
        found.start(GPU, static=True)
    found.start(GPU, static=False)
    assert found.runs()
    assert found.table(GPU) is None
    with pytest.raises(DeviceError, match="already running"):
        found.start(GPU, static=False)
    assert found.quit()
    assert not found.runs()
    with pytest.raises(NvmlError, match=r"does not answer 'lspart': Cannot find MPS control daemon"):
        found.table(GPU)
    assert found.quit(), "there is none"


def test_a_pipe_directory_is_short_enough_for_sockets(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(short_path, monkeypatch)
    with pytest.raises(DeviceError, match="of 88 at most: give a shorter --cache-dir"):
        control(short_path, "p" * 88).start(GPU, static=False)


def test_a_program_that_is_missing_comes_with_the_driver(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(short_path))
    with pytest.raises(NvmlError, match="comes with the NVIDIA driver") as error:
        control(short_path).ask("lspart")
    assert error.value.code == nvml.LIBRARY_NOT_FOUND


def test_a_daemon_that_never_answers_is_given_up(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(short_path, monkeypatch, script="exec sleep 60 #")
    found = control(short_path, timeout_s=0.05)
    with pytest.raises(NvmlError, match=r"did not answer 'terminate_client 1 2' within 0.05 s") as error:
        found.ask("terminate_client 1 2")
    assert error.value.code == nvml.TIMEOUT
    assert "did not answer" in found.terminate(2)


def test_a_daemon_that_is_busy_is_asked_again(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = short_path / "said"
    script = f'cat >/dev/null; if [ -e {said} ]; then echo 0; else touch {said}; echo "Cannot send command to it"; fi #'
    install(short_path, monkeypatch, script=script)
    assert control(short_path).ask("terminate_client 1 2") == "0"
    install(short_path, monkeypatch, script="cat >/dev/null; echo Cannot send command #")
    with pytest.raises(NvmlError, match="Cannot send command"):
        control(short_path).ask("lspart")


def test_only_zero_is_an_ended_client(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = "case $(cat) in get_server_list) echo 7;; get_client_list*) echo 2;; *) echo 201;; esac #"
    install(short_path, monkeypatch, script=script)
    assert control(short_path).terminate(2) == "terminate_client answers '201'"
    assert control(short_path).terminate(3) == "", "no client of it"


def test_commands_wait_for_each_other(static: MpsControl) -> None:
    answers: list[str] = []
    asking = [threading.Thread(target=lambda: answers.append(static.ask("lspart"))) for _ in range(4)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    assert len(answers) == 4
    assert len(set(answers)) == 1


@pytest.mark.parametrize(
    ("text", "table"),
    [
        (
            "GPU Partition free used free used clients\nchunk chunk SM SM\n"  # noqa: ISC004
            "GPU-74d43ed3 - 9 7 76 56 -\nGPU-74d43ed3 Dx4AAA/AA= - 7 - 56 Yes\n",
            SmTable(free=9, partitions=(SmPartition(name="Dx4AAA/AA=", chunks=7),)),
        ),
        (
            "GPU-f6b31fa7 0 18 0 72\nGPU-f6b31fa7 X 18 72 No\nGPU-74d43ed3 16 0 132 0\nGPU-74d43ed3 Dy 4 32 No\n",
            SmTable(free=16, partitions=(SmPartition(name="Dy", chunks=4),)),
        ),
        ("", None),
        ("Unrecognized command: lspart", None),
    ],
)
def test_both_forms_of_the_list_are_read(text: str, table: SmTable | None) -> None:
    assert parsed(text, GPU) == table
