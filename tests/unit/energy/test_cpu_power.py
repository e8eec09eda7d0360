"""The table of watts by processor: which row is taken, what is said of it, and how far off it may be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from clover.config import EnergyConfig
from clover.energy import build, cpu_power, gpu_meter_key, meter_key
from clover.energy.cpu_power import row_of, table
from clover.energy.gpu_probe import Failure, Value
from clover.errors import ConfigError

SECOND = 1_000_000_000


def x86(vendor: str, family: int, model: int, stepping: int = 0) -> str:
    return (
        f"processor\t: 0\nvendor_id\t: {vendor}\ncpu family\t: {family}\nmodel\t\t: {model}\n"
        f"model name\t: some CPU @ 2.50GHz\nstepping\t: {stepping}\n\nprocessor\t: 1\nmodel\t\t: 999\n"
    )


def arm(implementer: str, part: str) -> str:
    return (
        f"processor\t: 0\nBogoMIPS\t: 243.75\nCPU implementer\t: {implementer}\nCPU architecture: 8\n"
        f"CPU variant\t: 0x3\nCPU part\t: {part}\nCPU revision\t: 1\n"
    )


@pytest.mark.parametrize(
    ("cpuinfo", "name"),
    [
        (x86("GenuineIntel", 6, 85, 4), "Skylake (server)"),
        (x86("GenuineIntel", 6, 85, 7), "Cascade Lake"),
        (x86("GenuineIntel", 6, 85, 11), None),  # Cooper Lake
        (x86("GenuineIntel", 6, 106), "Ice Lake (server)"),
        (x86("GenuineIntel", 6, 143), "Sapphire Rapids"),
        (x86("GenuineIntel", 6, 207), "Emerald Rapids"),
        (x86("AuthenticAMD", 23, 49), "EPYC 2nd generation (Zen 2)"),
        (x86("AuthenticAMD", 25, 1), "EPYC 3rd generation (Zen 3)"),
        (x86("AuthenticAMD", 25, 17), "EPYC 4th generation (Zen 4)"),
        (x86("AuthenticAMD", 26, 2), "EPYC 5th generation (Zen 5)"),
        (x86("AuthenticAMD", 6, 85, 4), None),
        (arm("0x41", "0xd0c"), "Neoverse N1 (Graviton2, Altra)"),
        (arm("0x41", "0xd40"), "Neoverse V1, N2 or V2 (Graviton3, Graviton4, Grace)"),
        (arm("0x61", "0xd0c"), None),
        ("", None),
        ("vendor_id: GenuineIntel\nmodel: what\n", None),
    ],
)
def test_the_row_is_that_of_the_processor(cpuinfo: str, name: str | None) -> None:
    row = row_of(cpuinfo)
    assert (row.name if row is not None else None) == name


def test_every_figure_lies_in_its_range_and_has_a_source() -> None:
    known = table()
    seen: set[tuple[str, int, int, int]] = set()
    for row in (*known.rows, known.generic):
        assert row.source in known.sources
        for middle, low, high in (row.idle_w, row.core_w):
            assert 0.0 < low <= middle <= high < 15.0, row.name
        assert known.generic.idle_w[1] <= known.generic.idle_w[2]
        for cpus in row.cpus:
            for model in cpus.models:
                for stepping in cpus.steppings or (-1,):
                    cpu = (cpus.vendor, cpus.family, model, stepping)
                    assert cpu not in seen, "a processor in two rows"
                    seen.add(cpu)


@pytest.fixture
def milan(tmp_path: Path) -> Path:
    file = tmp_path / "cpuinfo"
    file.write_text(x86("AuthenticAMD", 25, 1))
    return file


def test_watts_are_published_ones_unless_the_operator_sets_them(milan: Path, tmp_path: Path) -> None:
    power = cpu_power(EnergyConfig(), milan)
    assert (power.idle_w, power.core_w) == (0.42, 1.48)
    assert power.idle_range == pytest.approx((0.33 / 0.42, 0.62 / 0.42))
    assert power.why == (
        "watts a CPU of EPYC 3rd generation (Zen 3), 28 published servers: 0.42 (0.33 to 0.62) at rest, "
            "1.48 (1.3 to 1.71) more while busy"
    )
    power = cpu_power(EnergyConfig(core_w=5.0), milan)
    assert (power.idle_w, power.core_w, power.core_range) == (0.42, 5.0, (1.0, 1.0))
    assert power.why.endswith("; 5 W a busy CPU as configured")
    power = cpu_power(EnergyConfig(idle_w=0.0, core_w=5.0), milan)
    assert (power.idle_w, power.core_w, power.why) == (0.0, 5.0, "watts as configured")
    unknown = cpu_power(EnergyConfig(), tmp_path / "none")
    assert (unknown.idle_w, unknown.core_w) == (0.63, 2.56)
    assert "a server of 2017 or later, since this processor is not in the table" in unknown.why
    with pytest.raises(ConfigError, match=r"energy\.core_w must be a number of watts"):
        cpu_power(EnergyConfig(core_w=-1.0), milan)


def test_what_was_never_published_says_so(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(arm("0x41", "0xd4f"))
    assert "(no server of it was published: those of a related one)" in cpu_power(EnergyConfig(), file).why


def test_the_range_stands_beside_modelled_joules(milan: Path, tmp_path: Path) -> None:
    cpu_s = [0.0]
    options = {"cores": 4, "cpu_seconds": lambda: cpu_s[0], "clock": lambda: 0, "powercap": tmp_path / "none"}
    meter = build(EnergyConfig(), cpuinfo=milan, **options)  # type: ignore[arg-type]
    assert "Zen 3" in meter.why
    assert meter.sample(0).uncertainty == pytest.approx((0.33 / 0.42 - 1.0, 0.62 / 0.42 - 1.0))
    cpu_s[0] = 20.0
    sample = meter.sample(10 * SECOND)
    assert sample.total_j == pytest.approx(4 * 0.42 * 10 + 1.48 * 20)
    assert sample.uncertainty is not None
    low, high = (sample.total_j * (1.0 + part) for part in sample.uncertainty)
    assert low == pytest.approx(4 * 0.33 * 10 + 1.3 * 20)
    assert high == pytest.approx(4 * 0.62 * 10 + 1.71 * 20)
    given = build(EnergyConfig(idle_w=1.0, core_w=2.0), cpuinfo=milan, **options)  # type: ignore[arg-type]
    assert given.sample(SECOND).uncertainty is None


def test_another_meter_has_another_key(milan: Path, tmp_path: Path) -> None:
    zone = tmp_path / "powercap" / "intel-rapl:0"
    zone.mkdir(parents=True)
    for name, text in (("name", "package-0"), ("energy_uj", "1"), ("max_energy_range_uj", "1000000")):
        (zone / name).write_text(text)

    def key(root: str = "none", cpuinfo: Path = milan, **config: object) -> str:
        return meter_key(EnergyConfig(**config), powercap=tmp_path / root, cpuinfo=cpuinfo)  # type: ignore[arg-type]

    assert key() == "modelled, 1.48 W a busy CPU"
    assert key("powercap") == "RAPL of package-0, idle measured"
    assert key("powercap", idle_w=3.0) == "RAPL of package-0, idle 3 W a CPU"
    assert key("powercap", meter="modelled") == key()
    assert key(idle_w=3.0) == key(), "the profile has active energy alone"
    assert key(core_w=1.48) == key()
    assert key(core_w=5.0) != key() != key(cpuinfo=tmp_path / "none")


class FakeGpu:
    """A GPU whose energy counter and power answer as they are told to; it is its own session."""

    name, uuid = "gpu0", "GPU-0"

    def __init__(
        self, counter: Value | Failure, power: Value | Failure | None = None, *, emulated: bool = False
    ) -> None:
        self.emulated = emulated
        self.answers = {"counter": counter, "power": power or Value(0, 1, "power")}

    def call_sync(self, function: Any, /, *arguments: object) -> Value | Failure:
        return self.answers[function.__name__]


def test_gpus_are_told_apart_by_what_their_meter_reads() -> None:
    counter, power = Value(0, 1, "energy counter"), Failure("unsupported", "Not Supported")
    gpus = [FakeGpu(counter), FakeGpu(power), FakeGpu(counter, emulated=True)]
    gpus.append(FakeGpu(power, Failure("unsupported", "Not Supported")))
    keys = [gpu_meter_key(EnergyConfig(), gpu, gpu) for gpu in gpus]  # type: ignore[arg-type]
    kinds = ("NVML counter", "NVML power", "emulated", "modelled GPU")
    assert keys == [f"{kind}, idle measured, with a context measured" for kind in kinds]
    gpu = FakeGpu(counter)
    config = EnergyConfig(gpu_idle_w=50.0, gpu_resident_w=90.0)
    assert gpu_meter_key(config, gpu, gpu) == "NVML counter, idle 50 W, with a context 90 W"  # type: ignore[arg-type]
    config = EnergyConfig(gpu_meter="modelled")
    assert gpu_meter_key(config, gpu, gpu).startswith("modelled GPU, idle")  # type: ignore[arg-type]
