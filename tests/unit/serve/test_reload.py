"""A reload while the server serves: its loop turns, and nothing that the configuration names can end it."""

from __future__ import annotations

import asyncio
import logging
import os
import select
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from clover import families, settings
from clover.config import TokenConfig
from clover.errors import ConfigError, Conflict
from clover.families.evaluation import load_evaluation
from clover.families.loaders import resolve
from clover.http.audit import AuditLog
from clover.serve.checking import check_apart
from clover.serve.command import OPTIONS
from clover.serve.reload import Reload
from clover.server.life import Life
from tests.support import family_folder


def reloading(check: Callable[[Any], object], after: tuple[str, ...] = ("a",)) -> Reload:
    made = Reload(lambda: settings.load(list(after), {}, options=OPTIONS), check, settings.load(["a"], {}))
    made.server = SimpleNamespace(engine=None)  # type: ignore[assignment]
    return made


def test_the_loop_turns_while_a_configuration_is_checked() -> None:
    turned = threading.Event()
    found: list[bool] = []

    async def main() -> None:
        own = reloading(lambda config: found.append(turned.wait(10)))
        asyncio.get_running_loop().call_later(0.01, turned.set)
        await own.run()

    asyncio.run(main())
    assert found == [True]


@pytest.mark.parametrize(
    ("failure", "text"),
    [
        (ConfigError("no such trace"), "nothing was changed: no such trace"),
        (SystemExit(3), "nothing was changed: something in it called sys.exit(3)"),
        (ZeroDivisionError("why"), "nothing was changed: the configuration cannot be read"),
    ],
)
def test_no_failure_of_a_check_is_silent_nor_ends_the_server(
    failure: BaseException, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    def check(config: Any) -> None:
        raise failure

    async def main() -> None:
        own = reloading(check, ("a", "--mode", "off"))
        own.start()
        assert own._task is not None
        await own._task

    asyncio.run(main())
    assert text in caplog.text


def test_a_failure_while_it_is_applied_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    asyncio.run(reloading(lambda config: None, ("a", "--mode", "off")).run())  # there is no engine to ask
    assert "SIGHUP: not everything was changed" in caplog.text
    assert "AttributeError" in caplog.text


def test_a_token_that_was_taken_back_is_not_left_valid_by_another_setting_that_failed(tmp_path: Path) -> None:
    words = [str(tmp_path / "c.toml")]
    valid: list[tuple[str, ...]] = []

    async def refuses(*_: object) -> None:
        raise Conflict("no plan keeps that")

    def use_tokens(token: str, configs: Iterable[TokenConfig]) -> None:
        valid.append((token, *(one.name for one in configs)))

    def read() -> settings.Settings:
        return settings.load(list(words), {}, options=OPTIONS)

    def write(*names: str, slo: str = "") -> None:
        rows = (f'[[token]]\nname = "{name}"\ntoken = "{name * 16}"\nscopes = ["read"]\n' for name in names)
        (tmp_path / "c.toml").write_text(f'families = [{{family = "a"{slo}}}]\n' + "".join(rows))

    write("a")
    made = Reload(read, lambda config: None, read())
    engine = SimpleNamespace(
        served={"a": None},
        life=Life(),
        frontend=None,
        use_tokens=use_tokens,
        control=lambda: SimpleNamespace(command=refuses),
        operators=SimpleNamespace(audit=AuditLog()),
    )
    made.server = SimpleNamespace(engine=engine)  # type: ignore[assignment]
    write("a", "b", slo=", slo_ms = 1")
    asyncio.run(made.run())
    write("a")
    asyncio.run(made.run())
    assert valid == [("", "a", "b"), ("", "a")]
    assert engine.life.reloads == 2
    assert [record.status for record in engine.operators.audit.records] == [409, 200]


def test_what_one_family_refuses_does_not_hide_what_another_has_taken(tmp_path: Path) -> None:
    taken: list[dict[str, Any]] = []

    async def command(verb: str, arguments: dict[str, Any], who: str) -> None:
        if arguments["model"] == "b":
            raise Conflict("no plan keeps that")
        taken.append(arguments)

    def read() -> settings.Settings:
        return settings.load([str(tmp_path / "c.toml")], {}, options=OPTIONS)

    def write(slo_ms: int) -> None:
        rows = ", ".join(f'{{family = "{name}", slo_ms = {slo_ms}}}' for name in ("a", "b"))
        (tmp_path / "c.toml").write_text(f"families = [{rows}]\n")

    write(10)
    made = Reload(read, lambda config: None, read())
    engine = SimpleNamespace(
        served={"a": None, "b": None},
        life=Life(),
        frontend=None,
        control=lambda: SimpleNamespace(command=command),
        operators=SimpleNamespace(audit=AuditLog()),
    )
    made.server = SimpleNamespace(engine=engine)  # type: ignore[assignment]
    for slo_ms in (20, 10):
        write(slo_ms)
        asyncio.run(made.run())
    assert [one["slo_ms"] for one in taken] == [20, 10]


def test_the_end_of_a_server_does_not_wait_for_a_check() -> None:
    never = threading.Event()

    async def main() -> None:
        own = reloading(lambda config: never.wait(60))
        own.start()
        await asyncio.sleep(0)

    asyncio.run(asyncio.wait_for(main(), 10))
    never.set()


# --- the check itself -------------------------------------------------------------------------------------------------


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    monkeypatch.syspath_prepend(tmp_path)

    def write(text: str) -> None:
        (tmp_path / "hostile_reload_family.py").write_text(text)
        sys.modules.pop("hostile_reload_family", None)

    return write


REF = "hostile_reload_family:family"


@pytest.mark.slow
def test_a_check_apart(module: Callable[[str], None], tmp_path: Path) -> None:
    provider = '[{"name": "electricity-maps", "key": "sesame"}]'
    environ = {**os.environ, "CLOVER_TOKEN": "sesame", "SEEN": str(tmp_path / "seen")}
    check_apart(["fashion"], environ, ("sesame",))
    check_apart(["fashion", "--port", "8001"], environ | {"CLOVER_TOKEN": "0"}, ("0",))  # a weak one hides nothing else
    with pytest.raises(ConfigError, match=r"\Ano family 'fashoin' \(did you mean fashion\?\)"):
        check_apart(["fashoin"], environ, ("sesame",))
    module("import sys\nsys.exit(3)")
    with pytest.raises(ConfigError, match=r"module hostile_reload_family cannot be imported: it called sys.exit\(3\)"):
        check_apart([REF], environ, ("sesame",))
    module("import os\nos.abort()")
    with pytest.raises(ConfigError, match=r"the check failed \(SIGABRT\)"):
        check_apart([REF], environ, ("sesame",))
    module(
        "import os\nshown = [os.environ['CLOVER_TOKEN'], os.environ['CLOVER_CARBON_PROVIDER']]\n"
        "shown += [name for name in os.environ if 'HEADERS' in name]\n"
        "open(os.environ['SEEN'], 'w').write(' '.join(shown))\nraise RuntimeError('x')"
    )
    environ |= dict.fromkeys(("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS"), "key=sesame")
    environ["CLOVER_CARBON_PROVIDER"] = provider
    with pytest.raises(ConfigError, match="RuntimeError: x"):
        check_apart([REF, "--token", "sesame"], environ, ("sesame",))
    assert (tmp_path / "seen").read_text() == f"****** {provider.replace('sesame', '******')}"
    module("import time\ntime.sleep(60)")
    with pytest.raises(ConfigError, match=r"the check took more than 0.2 s"):
        check_apart([REF], environ, ("sesame",), 0.2)


@pytest.mark.slow
def test_a_check_ends_with_the_server_that_asked_for_it(tmp_path: Path) -> None:
    (tmp_path / "endless_reload_family.py").write_text(
        "import os, time\nopen(os.environ['SEEN'], 'w').write(str(os.getpid()))\ntime.sleep(600)"
    )
    os.mkfifo(tmp_path / "seen")
    script = (
        "import os, sys\n"
        "from clover.serve.checking import check_apart\n"
        "check_apart(['endless_reload_family:family'], dict(os.environ))\n"
    )
    paths = os.pathsep.join((str(tmp_path), str(family_folder.ROOT)))
    environ = {**os.environ, "PYTHONPATH": paths, "SEEN": str(tmp_path / "seen")}
    with subprocess.Popen([sys.executable, "-c", script], env=environ, cwd=tmp_path) as server:
        pid = int((tmp_path / "seen").read_text())
        watch = os.pidfd_open(pid)
        server.kill()
    assert select.select([watch], [], [], 10)[0]
    os.close(watch)


# --- `sys.exit` in the Python of a family -----------------------------------------------------------------------------


def test_a_module_that_exits_is_an_error_with_its_name(module: Callable[[str], None], tmp_path: Path) -> None:
    module("import sys\nsys.exit(7)")
    with pytest.raises(ConfigError, match=r"module hostile_reload_family .*sys.exit\(7\)"):
        families.load_family(REF)
    module("def family():\n    raise SystemExit\n")
    with pytest.raises(ConfigError, match=r"family of module hostile_reload_family failed: it called sys.exit\(None\)"):
        families.load_family(REF)
    module("raise ValueError('why')")
    with pytest.raises(ConfigError, match="module hostile_reload_family cannot be imported: ValueError: why"):
        families.load_family(REF)
    folder = family_folder.write(tmp_path / "family")
    (folder / "model.py").write_text("import sys\nsys.exit(5)")
    with pytest.raises(ConfigError, match=r"loader 'model:load': module model cannot be imported: .*sys.exit\(5\)"):
        resolve("model:load", folder)
    (folder / "data.py").write_text("import sys\n\n\ndef load(folder, split):\n    sys.exit(9)\n")
    with pytest.raises(ConfigError, match=r"evaluation loader 'data:load': it called sys.exit\(9\)"):
        load_evaluation(families.load_family(str(folder)), "held_out")


def test_the_log_names_what_failed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)

    def check(config: Any) -> None:
        check_apart(["fashoin"], dict(os.environ))

    asyncio.run(reloading(check).run())
    assert "SIGHUP: nothing was changed: no family 'fashoin'" in caplog.text
