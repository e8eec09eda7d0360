"""What Landlock is asked for, by version of the kernel, and which paths a worker keeps."""

from __future__ import annotations

import ctypes
import struct
from pathlib import Path

import pytest

from clover import families
from clover.config import ListenConfig, ServerConfig, WorkersConfig
from clover.errors import StartError, WorkerError
from clover.runtime.workers import sandboxes
from clover.types import SandboxOrder
from clover.worker import landlock, sandbox, seccomp
from clover.worker.frames import WorkerOrder
from clover.worker.landlock import Rule

FAMILY = Path(__file__).parents[2] / "families" / "simple"


def order(**wanted: object) -> WorkerOrder:
    spec = families.load_family(str(FAMILY))
    confined = SandboxOrder(**wanted)  # type: ignore[arg-type]
    return WorkerOrder(
        family=spec, variant=spec.variants[0].name, backend="eager", cores=(0,), max_batch=1, sandbox=confined
    )


@pytest.mark.parametrize(
    ("version", "words"),
    [
        (1, [0x1FFF]),
        (2, [0x3FFF]),
        (3, [0x7FFF]),
        (4, [0x7FFF, 3]),
        (5, [0xFFFF, 3]),
        (6, [0xFFFF, 3, 3]),
        (9, [0xFFFF, 3, 3]),
    ],
)
def test_each_kernel_is_asked_for_what_it_knows(version: int, words: list[int]) -> None:
    assert landlock.attributes(version) == struct.pack(f"<{len(words)}Q", *words)


def test_a_worker_keeps_its_family_and_may_change_nothing() -> None:
    asked = order()
    assert asked.sandbox is not None
    found = {rule.path: rule.rights for rule in sandbox.rules(asked, asked.sandbox)}
    assert found[str(FAMILY)] == landlock.READ
    changing = {path for path, rights in found.items() if rights & ~landlock.READ}
    assert {path for path in changing if not path.startswith(("/dev/", "/proc/"))} == set()
    assert "/" not in found
    assert not any(path.startswith("/dev/nvidia") for path in found)


def test_what_is_configured_is_added(tmp_path: Path) -> None:
    asked = order(read=(str(tmp_path / "weights"),), write=(str(tmp_path),), processes=True)
    assert asked.sandbox is not None
    found = {rule.path: rule.rights for rule in sandbox.rules(asked, asked.sandbox)}
    assert found[str(tmp_path / "weights")] == landlock.READ | landlock.EXECUTE
    assert found[str(tmp_path)] == landlock.CHANGE | landlock.EXECUTE
    assert found["/usr"] & landlock.EXECUTE


def test_of_the_folder_that_it_was_started_in_only_modules_are_read(tmp_path: Path) -> None:
    for name in (
        *("token", "notes.txt", "model.py", "data.d/secret", "package/__init__.py", "ledger/x.db", "token.libs"),
        *("package.libs/libblas.so", "package-1.0.dist-info/METADATA"),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    assert set(sandbox.import_roots([str(tmp_path), str(tmp_path / "nowhere"), *sandbox.installed()])) == {
        Rule(str(tmp_path), landlock.READ_DIR),
        Rule(str(tmp_path / "model.py"), landlock.READ),
        Rule(str(tmp_path / "package"), landlock.READ),
        Rule(str(tmp_path / "package.libs"), landlock.READ),
        Rule(str(tmp_path / "package-1.0.dist-info"), landlock.READ),
        Rule(str(tmp_path / "nowhere"), landlock.READ_DIR),
    }


def test_a_kernel_without_it_is_refused_or_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sandbox, "_settle_temporary_files", lambda wanted: None)  # both are for a whole process
    monkeypatch.setattr(sandbox, "give_up_privileges", lambda: None)
    monkeypatch.setattr(landlock, "abi", lambda: 0)
    monkeypatch.setattr(seccomp, "available", lambda: False)
    assert sandbox.confine(order()) == "none"
    with pytest.raises(WorkerError, match="this kernel has no Landlock and seccomp filters"):
        sandbox.confine(order(required=True))
    sandboxes.check(WorkersConfig(), gpu=False)
    assert (
        "models are not kept from files, sockets and processes of this user: this kernel has no Landlock" in caplog.text
    )
    assert sandboxes.report(WorkersConfig(), gpu=False)["landlock"] is False
    with pytest.raises(StartError, match=r"workers\.sandbox is on"):
        sandboxes.check(WorkersConfig(sandbox="on"), gpu=False)
    caplog.clear()
    sandboxes.check(WorkersConfig(sandbox="off"), gpu=False)
    assert not caplog.text


def test_packages_that_are_links_are_read_where_they_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    installed, store = tmp_path / "venv" / "site-packages", tmp_path / "store"
    (installed / "own").mkdir(parents=True)
    (store / "linked").mkdir(parents=True)
    (store / "module.py").write_text("")
    (installed / "linked").symlink_to(store / "linked")
    (installed / "module.py").symlink_to(store / "module.py")
    (installed / "gone").symlink_to(store / "gone")
    request.addfinalizer(sandbox.installed.cache_clear)
    sandbox.installed.cache_clear()
    monkeypatch.setattr("sys.path", [str(installed), str(store)])
    found = {path for path in sandbox.installed() if Path(path).is_relative_to(tmp_path)}
    assert found == {str(installed), str(store / "linked"), str(store / "module.py")}


def test_a_folder_that_is_named_twice_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    (tmp_path / "lib" / "more").mkdir(parents=True)
    request.addfinalizer(sandbox.installed.cache_clear)
    sandbox.installed.cache_clear()
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{tmp_path}/lib:{tmp_path}/lib/:{tmp_path}/lib/more/:/")
    found = [path for path in sandbox.installed() if Path(path).is_relative_to(tmp_path)]
    assert found == [f"{tmp_path}/lib"]
    assert "/" not in sandbox.installed()


def test_a_refused_link_is_said_with_where_it_leads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = tmp_path / "weights"
    link.symlink_to("/data/weights")
    assert sandbox.hint(order(), PermissionError(13, "Permission denied", str(link))).startswith(
        " (a link to /data/weights); the sandbox of workers keeps models from files"
    )
    assert sandbox.hint(order(), PermissionError(13, "Permission denied", "/etc")).startswith("; the sandbox")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert "without capabilities root reads" in sandbox.hint(
        order(), PermissionError(13, "Permission denied", "/home/a")
    )
    monkeypatch.chdir(tmp_path)
    for named in ("table", b"table", 7):
        assert sandbox.hint(order(), PermissionError(13, "Permission denied", named)).startswith("; the sandbox"), named


def test_a_library_that_may_not_be_read_is_said_with_the_setting(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"libblas\.so") as refused:
        ctypes.CDLL(str(tmp_path / "libblas.so"))
    error = ImportError("package needs its libraries")
    error.__cause__ = refused.value
    assert "workers.sandbox_read" in sandbox.hint(order(), error)
    assert sandbox.hint(order(), ImportError("No module named 'package'")) == ""


def test_a_path_that_is_not_there_is_no_setting() -> None:
    with pytest.raises(StartError, match=r"workers\.sandbox_write: there is no file or folder /nowhere"):
        sandboxes.check(WorkersConfig(sandbox_write=("/nowhere",)), gpu=False)


def test_a_secret_among_what_models_read_is_said(tmp_path: Path) -> None:
    family = tmp_path / "family"
    family.mkdir()
    outside, inside = tmp_path / "token", family / "token"
    config = ServerConfig(
        listen=ListenConfig(tls_key=str(inside)),
        secret_files=(
            ("listen.token", str(outside)),
            ("token ops: token", str(tmp_path / "data" / ".." / "family" / "ops")),
        ),
    )
    found = sandboxes.exposed(config, [str(family), ""])
    assert [line.partition(": /")[0] for line in found] == ["listen.tls_key", "token ops: token"]
    assert sandboxes.exposed(config, []) == []
    wider = ServerConfig(
        listen=config.listen, secret_files=config.secret_files, workers=WorkersConfig(sandbox_read=(str(tmp_path),))
    )
    assert len(sandboxes.exposed(wider, [])) == 3


def test_code_of_the_server_that_models_may_change_is_said(tmp_path: Path) -> None:
    """A link in such a folder would let them read where it leads, once the server starts again."""
    code = Path(sandbox.__file__).resolve().parents[1]

    def found(path: Path) -> list[str]:
        return sandboxes.exposed(ServerConfig(workers=WorkersConfig(sandbox_write=(str(path),))), [])

    (tmp_path / "link").symlink_to(code)
    for path in (code.parent, code, code / "worker", tmp_path / "link"):
        (line,) = found(path)
        assert line.startswith(f"workers.sandbox_write lets models change {path}, and the server runs code of ")
    assert found(tmp_path) == []


def test_workers_on_gpus_are_confined_only_if_that_is_asked(caplog: pytest.LogCaptureFixture) -> None:
    assert sandboxes.order_of(WorkersConfig(), gpu=True) is None
    assert sandboxes.order_of(WorkersConfig(sandbox="on"), gpu=True) == SandboxOrder(required=True)
    assert sandboxes.order_of(WorkersConfig(sandbox="off"), gpu=False) is None
    sandboxes.check(WorkersConfig(), gpu=True)
    assert "workers on GPUs are confined" in caplog.text
