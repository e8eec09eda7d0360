"""The command `doctor`: what it finds of a machine and a configuration, and the constants that calibration prints."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from clover import devices
from clover.carbon.grid import GridClock
from clover.cli.doctor import command, gpu, machine, main, service, software
from clover.cli.doctor.findings import Finding
from clover.cli.mig.state import GpuState
from clover.config import CarbonConfig, EnergyConfig, OtelConfig, ServerConfig, WorkersConfig
from clover.devices.nvml import LIBRARY_NOT_FOUND, Nvml
from clover.emulation import emulated
from clover.energy.calibrate import Calibration, CalibrationStep
from clover.types import MemoryMeasurement, Reading
from clover.worker import landlock, seccomp
from tests.support.calibrated_host import CalibratedHost
from tests.support.fake_nvml import Board, FakeNvml
from tests.support.profiles_fixture import profile

# --- calibration ------------------------------------------------------------------------------------------------------


@pytest.fixture
def four_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clover.cli.doctor.command.available_cores", lambda: (0, 1, 2, 3))
    monkeypatch.setattr("os.cpu_count", lambda: 8)


@pytest.mark.usefixtures("four_cpus")
def test_calibration_prints_settings_to_paste(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    host = CalibratedHost(tmp_path, lambda busy: 60.0 + 3.5 * busy)
    assert main(["--calibrate", "--seconds", "2"], instruments=host.instruments()) == 0
    text = capsys.readouterr().out
    pasted = tomllib.loads(text[text.index("[energy]") :])["energy"]
    assert pasted == {"idle_w": 7.5, "core_w": 3.5}
    config = EnergyConfig(**pasted)
    assert config.idle_w is not None
    assert config.idle_w * 8 == pytest.approx(60.0)
    assert "at rest    60.00 W +- 0.00 W" in text
    assert "warning" not in text
    assert text.count("\n        4") == 1


@pytest.mark.usefixtures("four_cpus")
def test_a_busy_machine_is_said_to_be_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    host = CalibratedHost(tmp_path, lambda busy: 60.0 + 3.5 * busy, others=2.0)
    assert main(["--calibrate"], instruments=host.instruments()) == 0
    assert "warning: other programs kept 2.0 CPUs busy all the time" in capsys.readouterr().out


def test_constants_that_are_hardly_known_are_doubted() -> None:
    steps = (CalibrationStep(0, 0.0, 50.0), CalibrationStep(1, 1.0, 60.0))
    sure = Calibration(steps, idle_w=50.0, idle_error_w=1.0, core_w=10.0, core_error_w=0.5)
    assert command.doubts(sure) == []
    unsure = Calibration(steps, idle_w=50.0, idle_error_w=1.0, core_w=10.0, core_error_w=2.0)
    assert command.doubts(unsure) == [
        "the power of a busy CPU is known to +- 2.00 W only: measure again on a quieter machine, or for longer"
    ]


def test_without_a_counter_calibration_is_refused_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--calibrate"], powercap=tmp_path) == 3
    error = capsys.readouterr().err
    assert "there is no energy counter to calibrate by" in error
    assert "no package zone (a virtual machine, or no driver)" in error
    assert "set energy.idle_w and energy.core_w here" in error


# --- the whole --------------------------------------------------------------------------------------------------------


def found_by(
    capsys: pytest.CaptureFixture[str], argv: list[str], **options: Any
) -> tuple[int, dict[str, list[Finding]]]:
    """Run the command, and return its exit code and findings by topic."""
    code = main([*argv, "--json"], **options)
    answer = json.loads(capsys.readouterr().out)
    assert answer["good"] is (code == 0)
    by_topic: dict[str, list[Finding]] = {}
    for item in answer["findings"]:
        by_topic.setdefault(item["topic"], []).append(Finding(**item))
    return code, by_topic


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own, a port that is free, and no settings in the environment."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("CLOVER_SOURCE", raising=False)
    return tmp_path


def test_it_says_how_energy_is_known(own_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = found_by(capsys, ["--port", "0"], powercap=own_folder)
    assert code == 0
    (energy,) = found["energy"]
    assert energy.state == "note"
    assert energy.text.startswith("modelled: RAPL is not readable")
    assert "doctor --calibrate" in energy.remedy
    assert "kgCO2e of a machine of" in found["embodied"][0].text
    CalibratedHost(own_folder / "host", lambda busy: 10.0)
    _, found = found_by(capsys, ["--port", "0"], powercap=own_folder / "host")
    assert found["energy"][0].state == "works"
    assert found["energy"][0].text.startswith("measured: RAPL: package-0")


def test_it_says_where_grams_go_and_what_would_save_most(own_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, found = found_by(capsys, ["--port", "0"], powercap=own_folder)
    assert [item.state for item in found["grams"]] == ["absent"]
    folder = own_folder / "cache" / "clover" / "profiles"
    folder.mkdir(parents=True)
    measured = msgspec.structs.replace(profile(), family="fashion")
    (folder / "fashion-0123456789abcdef.json").write_bytes(msgspec.json.encode(measured))
    words = ["--port", "0", "--energy-idle-w", "10", "--energy-core-w", "10"]
    _, found = found_by(capsys, words, powercap=own_folder)
    where, *more = found["grams"]
    # 20 W at 400 g/kWh and a PUE of 1.5
    assert "idle power (288 g a day)" in where.text
    assert where.text.endswith("front end with the workers', 400 gCO2e/kWh")
    assert 1 <= len(more) <= 4
    assert all(item.state == "note" and "g a day less (" in item.text and item.remedy for item in more)


def test_it_says_what_sleep_would_give_back(own_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, found = found_by(capsys, ["--port", "0"], powercap=own_folder)
    assert "unload_after_s" not in found["family"][0].text
    folder = own_folder / "cache" / "clover" / "profiles"
    folder.mkdir(parents=True)

    def keep(place: str, count: int) -> None:
        held = MemoryMeasurement(
            variant="small", profile=place, backend="eager", weights_bytes=10**6, peak_bytes=2 * 10**6
        )
        measured = msgspec.structs.replace(
            profile(),
            family="fashion",
            base=msgspec.structs.replace(profile().base, profile=place, count=count),
            memory=(held, msgspec.structs.replace(held, backend="openvino")),
            context_bytes={place: 70 * 10**6},
        )
        (folder / "fashion-0123456789abcdef.json").write_bytes(msgspec.json.encode(measured))

    keep("2c", 2)
    _, found = found_by(capsys, ["--port", "0"], powercap=own_folder)
    words = found["family"][0].text.partition("; ")[2]
    assert words == "while nobody asks it, unload_after_s would give back 146 MB (by its profile)"
    _, found = found_by(capsys, ["--port", "0", "--unload-after-s", "600"], powercap=own_folder)
    assert "unload_after_s" not in found["family"][0].text
    keep("7g.40gb", 1)
    _, found = found_by(capsys, ["--port", "0"], powercap=own_folder)
    assert "73 MB (by its profile), and of a GPU that no other family uses 35 to 60 W" in found["family"][0].text


def test_it_reads_well_in_eighty_columns(
    own_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["--port", "0"], powercap=own_folder) == 0
    lines = capsys.readouterr().out.splitlines()
    long = [line for line in lines if len(line) > 80 and str(own_folder) not in line]
    assert long == []
    assert any(line.startswith("  ok     kernel      Linux ") for line in lines)
    assert "  0 faults, " in lines[-1]


def test_what_cannot_work_is_a_fault(
    own_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLOVER_PROT", "1")
    monkeypatch.setenv("CLOVER_SERVICE_HOST", "10.0.0.1")
    (own_folder / "cache").mkdir(mode=0o777)
    (own_folder / "cache").chmod(0o777)
    words = ["fashoin", "--carbon", "trace:/nowhere.csv", "--port", "0", "--energy-meter", "rapl"]
    code, found = found_by(capsys, words, powercap=own_folder)
    assert code == 1
    faults = {topic: item.text for topic, items in found.items() for item in items if item.state == "fault"}
    assert set(faults) == {"settings", "energy", "family", "folder", "carbon"}
    assert "CLOVER_PROT (did you mean CLOVER_PORT?)" in faults["settings"]
    assert "fashion" in faults["family"]
    assert "chmod go-w" in faults["folder"]
    monkeypatch.delenv("CLOVER_PROT")
    _, found = found_by(capsys, ["--port", "0"], powercap=own_folder)
    assert found["settings"][0].state == "works"
    assert "CLOVER_SERVICE_HOST" in found["settings"][0].text


@pytest.mark.parametrize("argv", [["--seconds", "0"], ["--second"], ["--seconds", "x"], ["--device", "gpu"]])
def test_a_wrong_command_line_is_refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    assert "clover doctor: " in capsys.readouterr().err


def test_its_help_names_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(option.flag in text for option in command.OPTIONS)


# --- the machine ------------------------------------------------------------------------------------------------------


def test_a_quota_of_a_fraction_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/pod\n")
    pod = tmp_path / "sys/fs/cgroup/pod"
    pod.mkdir(parents=True)
    (pod / "cpu.max").write_text("250000 100000\n")
    (pod / "memory.max").write_text("600000000\n")
    (tmp_path / "proc/meminfo").write_text("MemTotal: 16000000 kB\nMemAvailable: 8000000 kB\n")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3})
    cores = next(machine.cores(ServerConfig(), tmp_path))
    assert cores.state == "note"
    assert cores.text.startswith("2 for Clover (0-1)")
    assert "a quota of 2.5 CPUs" in cores.text
    memory = machine.memory(tmp_path)
    assert memory.state == "note"
    assert "a limit of 0.6 GB" in memory.text
    (pod / "memory.max").write_text("max\n")
    assert machine.memory(tmp_path).state == "works"


def test_clocks_and_descriptors() -> None:
    assert machine.clock(0).state == "works"
    assert machine.clock(0x40).remedy.startswith("timedatectl")
    assert machine.clock(None).state == "note"
    assert machine.descriptors(8192, lambda _: (1024, 4096)).state == "note"
    assert machine.descriptors(1000, lambda _: (1024, 4096)).state == "works"


# --- GPUs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("knows", "built_for", "state"),
    [((12, 8), "12.8", "works"), ((12, 4), "12.8", "note"), ((12, 8), "13.0", "fault"), ((12, 8), None, "fault")],
)
def test_a_driver_and_torch(knows: tuple[int, int], built_for: str | None, state: str) -> None:
    finding = gpu.match("550.1", knows, built_for, wanted=True)
    assert finding.state == state
    assert bool(finding.remedy) == (state != "works")


def test_no_driver_is_a_fault_only_if_gpus_are_wanted(tmp_path: Path) -> None:
    for device, state in (("cpu", "absent"), ("nvidia", "fault")):
        library = FakeNvml()
        library.faults["nvmlInit"] = [LIBRARY_NOT_FOUND]
        with contextlib.closing(Nvml(library)) as session:
            config = ServerConfig(workers=WorkersConfig(device=device))
            (finding,) = gpu.examine(config, tmp_path, session=session)
        assert (finding.topic, finding.state) == ("gpu", state)
        assert "libnvidia-ml.so.1" in finding.text


def test_mig_modes_and_what_to_do() -> None:
    plain: dict[str, Any] = {"device": "gpu0", "index": 0, "uuid": "GPU-a", "product": "A100", "memory_mib": 40960}

    def finding(**others: Any) -> Finding:
        return gpu._gpu(GpuState(**plain, **others))

    assert finding(supported=False).state == "works"
    assert "-mig 1 &&" in finding(needs_reset=True).remedy
    assert "--gpu-reset" in finding(pending=True).remedy
    assert finding(enabled=True, pending=True).state == "works"
    assert finding(enabled=True, pending=True, hidden=True).state == "note"
    assert finding(lost=True).state == "fault"
    broken = finding(error="the driver refused: Unknown Error")
    assert (broken.state, broken.remedy) == ("fault", "the driver refused: Unknown Error")
    assert "after a reboot it is off" in finding(needs_reset=False).text


def test_instances_that_may_not_be_changed_serve(tmp_path: Path) -> None:
    board = Board()
    board.put("2g.10gb", 0)
    board.put("1g.5gb", 4)
    board.privileged = False
    with contextlib.closing(Nvml(FakeNvml(board))) as session:
        config = ServerConfig(workers=WorkersConfig(device="mig:MIG-GPU-a-1"))
        _, found, rights = gpu.examine(config, tmp_path, session=session)
    assert (found.topic, found.state) == ("gpu", "works")
    assert "1 x 2g.10gb, 1 x 1g.5gb, fixed: not permitted to change instances: served on as they are" in found.text
    assert (rights.topic, rights.state) == ("mig rights", "note")
    assert "none is needed to serve on instances that somebody else made" in rights.remedy


def test_a_missing_node_of_cuda_is_said(tmp_path: Path) -> None:
    (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
    for there in (False, True):
        with contextlib.closing(Nvml(FakeNvml(Board(mig=None)))) as session:
            config = ServerConfig(workers=WorkersConfig(device="nvidia"))
            found = [item.topic for item in gpu.examine(config, tmp_path, tmp_path, session)]
        assert ("gpu nodes" in found) is not there
        (tmp_path / "dev").mkdir(exist_ok=True)
        (tmp_path / "dev/nvidia-uvm").touch()


def test_who_may_cut_instances(tmp_path: Path) -> None:
    assert gpu.rights(tmp_path, uid=0).state == "works"
    assert "cannot be read" in gpu.rights(tmp_path, uid=1000).text
    capability = tmp_path / "proc/driver/nvidia/capabilities/mig/config"
    capability.parent.mkdir(parents=True)
    capability.write_text("DeviceFileMinor: 1\nDeviceFileMode: 256\n")
    assert "/dev/nvidia-caps/nvidia-cap1 cannot be opened" in gpu.rights(tmp_path, uid=1000).text
    device = tmp_path / "dev/nvidia-caps/nvidia-cap1"
    device.parent.mkdir(parents=True)
    device.write_text("")
    assert gpu.rights(tmp_path, uid=1000).state == "works"


@pytest.mark.slow
def test_an_emulated_box_is_looked_at(tmp_path: Path) -> None:
    words = ["clover", "mig", "emulate", "a100-40gb:1", "--state", str(tmp_path / "box"), "--", sys.executable, "-m"]
    words += ["clover", "doctor", "--json", "--port", "0", "--device", "nvidia", "--cache-dir", str(tmp_path / "cache")]
    ran = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True)
    found = {item["topic"]: item for item in json.loads(ran.stdout)["findings"]}
    assert found["gpu"]["text"].startswith("gpu0: NVIDIA A100-SXM4-40GB, 40960 MiB, MIG on")
    assert found["driver"]["text"].startswith("580.emul, CUDA 13.0")


@pytest.mark.parametrize(
    ("device", "text"),
    [
        ("emulated:foo:1", "there is no table of a GPU 'foo'; known: a100-40gb, "),
        ("emulated:pod-9g.1gb", "device 'emulated:pod-9g.1gb': no GPU has a profile '9g.1gb'; known: "),
        ("emulated:a100-40gb:2", ""),
        ("emulated:l4", ""),
    ],
)
def test_an_emulated_device_is_one_or_a_fault(tmp_path: Path, device: str, text: str) -> None:
    config = ServerConfig(workers=WorkersConfig(device=device), cache_dir=str(tmp_path))
    (finding,) = gpu.examine(config, tmp_path / "mig")
    assert finding.topic == "gpu"
    if text:
        assert finding.state == "fault"
        assert finding.text.startswith(text)
    else:
        assert (finding.state, finding.text) == ("works", f"{device}: made when a server starts on it")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_an_emulated_box_that_exists_is_opened(tmp_path: Path) -> None:
    def look() -> list[str]:
        command = [sys.executable, "-c", LOOK, str(tmp_path)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()

    box = devices.box_path(devices.parse("emulated:a30-24gb:2"), tmp_path)
    emulated.create_box(box, "a30-24gb", 2)
    assert look() == [f"works gpu{n}: NVIDIA A30, 24576 MiB, MIG on, 0 instances" for n in (0, 1)]
    content = bytearray(box.read_bytes())
    content[8] -= 1
    box.write_bytes(content)
    assert look() == [
        f"fault {box} holds an emulated machine of another version of Clover: end what uses it, and remove the file"
    ]


LOOK = """
import sys
from pathlib import Path
from clover.cli.doctor import gpu
from clover.config import ServerConfig, WorkersConfig
config = ServerConfig(workers=WorkersConfig(device="emulated:a30-24gb:2"), cache_dir=sys.argv[1])
for found in gpu.examine(config, Path(sys.argv[1]) / "mig"):
    print(found.state, found.text)
"""


# --- software and service ---------------------------------------------------------------------------------------------


def test_extras_follow_the_metadata() -> None:
    required = [
        "torch>=2.6",
        'onnxruntime>=1.20; extra == "onnx"',
        'onnx>=1.17; extra == "onnx"',
        'matplotlib>=3.8 ; extra == "analysis"',
        'pytest>=8; extra == "test"',
        'newthing; extra == "later"',
    ]
    found = list(software.extras(required, {"onnxruntime": "1", "matplotlib": "3"}.get))
    assert [(item.state, item.text.partition(":")[0]) for item in found] == [
        ("absent", "onnx"),
        ("works", "analysis"),
        ("absent", "later"),
    ]
    assert found[0].text.startswith("onnx: onnx missing; with it: the backend onnxruntime")
    assert found[0].remedy == "pip install 'clover-inference[onnx]'"


def test_a_carbon_source_is_asked(tmp_path: Path) -> None:
    assert service.source(ServerConfig(carbon=CarbonConfig(source="static:250"))).text.startswith(
        "static: 250 gCO2e/kWh"
    )
    invented = service.source(ServerConfig())
    assert invented.state == "note"
    assert "INVENTED" in invented.text
    wrong = service.source(ServerConfig(carbon=CarbonConfig(source=f"trace:{tmp_path / 'none.csv'}")))
    assert wrong.state == "fault"


def test_a_source_that_fails_is_noted_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    class Chain:
        last_error = "grid: 401, not in your plan"
        closed = False

        async def read(self, grid_s: float) -> Reading:
            return Reading(g_per_kwh=400.0, at_s=0.0, provider="stand-in", method="stand-in", state="configured")

        async def close(self) -> None:
            self.closed = True

    chain = Chain()
    monkeypatch.setattr("clover.carbon.build", lambda config: (chain, GridClock(0.0, 1.0)))
    finding = service.source(ServerConfig(carbon=CarbonConfig(source="static:1")))
    assert finding.state == "note"
    assert finding.text.startswith(
        "static:1 gives no value of now (grid: 401, not in your plan); instead 400 gCO2e/kWh (a stand-in, "
    )
    assert chain.closed


def test_a_folder_of_the_ledger(tmp_path: Path) -> None:
    made = service.state_of(str(tmp_path / "new" / "state"))
    assert made.state == "works"
    assert "(will be made)" in made.text
    (tmp_path / "file").write_text("")
    assert service.state_of(str(tmp_path / "file" / "below")).state == "note"


def test_a_collector_is_named_without_its_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra otel is not installed")
    config = ServerConfig(otel=OtelConfig(endpoint="env"))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://me:hunter2@127.0.0.1:{port}/key?key=hunter2")
        assert service.collector(config).text == f"http://127.0.0.1:{port} takes connections"
    found = service.collector(config)
    assert (found.state, found.text.partition(": ")[0]) == ("note", f"http://127.0.0.1:{port} cannot be connected to")
    assert "hunter2" not in found.text
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://me:hun/ter2@127.0.0.1")
    found = service.collector(config)
    assert (found.state, found.text) == ("fault", "spans are sent to the collector, whose URL cannot be read")


def test_a_port_that_is_taken_is_noted() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        assert service.port("127.0.0.1", number).state == "note"
    assert service.port("127.0.0.1", 0).state == "works"
    assert service.port("192.0.2.1", 8080).state == "fault"


def test_a_kernel_that_cannot_confine_models_is_noted_or_a_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = machine.confinement(WorkersConfig(sandbox="off"))
    assert (found.topic, found.state) == ("sandbox", "note")
    assert "workers.sandbox is off" in found.text
    monkeypatch.setattr(landlock, "abi", lambda: 0)
    assert machine.confinement(WorkersConfig()).state == "note"
    assert machine.confinement(WorkersConfig(sandbox="on")).state == "fault"
    monkeypatch.setattr(landlock, "abi", lambda: 7)
    monkeypatch.setattr(seccomp, "available", lambda: True)
    assert machine.confinement(WorkersConfig(sandbox="on")).state == "works"
