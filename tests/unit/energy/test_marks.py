"""Meters that go on where another server's stood: together they have every joule once."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clover.energy import ModelledMeter, RaplMeter
from clover.energy.marks import MeterMark

SECOND = 1_000_000_000
Steps = list[tuple[int, int, int]]


class Process:
    """The CPU time of one server."""

    def __init__(self) -> None:
        self.cpu_s = 0.0

    def meter(self, now_ns: int, **more: object) -> ModelledMeter:
        return ModelledMeter(idle_w=10.0, core_w=4.0, cpu_seconds=lambda: self.cpu_s, now_ns=now_ns, **more)  # type: ignore[arg-type]


steps = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=12)


@given(before=steps, after=steps, late_s=st.integers(0, 5))
def test_two_modelled_meters_have_idle_power_once_and_the_work_of_each(
    before: Steps, after: Steps, late_s: int
) -> None:
    old_one, new_one = Process(), Process()
    old, new, now_s = old_one.meter(0), new_one.meter(0), 0
    new.count_idle(1 << 62)
    idle_j, last_ns = 0.0, 0

    def sampled() -> float:
        """Joules of the new one so far; its idle ones are what the account makes of them."""
        nonlocal idle_j, last_ns
        found = new.sample(now_s * SECOND)
        if found.at_ns > last_ns:  # else the window stays open
            idle_j += found.idle_w * (found.at_ns - last_ns) / SECOND
            last_ns = found.at_ns
        return found.total_j

    for passed_s, old_cpu, new_cpu in before:
        now_s += passed_s
        old_one.cpu_s += old_cpu
        new_one.cpu_s += new_cpu
        assert sampled() == pytest.approx(4.0 * new_one.cpu_s), "idle power is the other's"
        old.sample(now_s * SECOND)
    mark = old.mark()
    now_s += late_s  # until it is known that the old one has ended
    sampled()
    new.count_idle(mark.at_ns)
    for passed_s, _, new_cpu in (*after, (1, 0, 0)):
        now_s += passed_s
        new_one.cpu_s += new_cpu
        sampled()
    assert idle_j == pytest.approx(10.0 * (now_s - mark.at_ns / SECOND))
    total_j = old.sample(mark.at_ns).total_j + sampled()
    assert total_j == pytest.approx(10.0 * now_s + 4.0 * (old_one.cpu_s + new_one.cpu_s))


@given(rises=st.lists(st.integers(0, 400), min_size=1, max_size=12), at=st.integers(0, 11), start=st.integers(0, 999))
def test_counters_are_read_on_where_the_other_server_stopped(
    rises: list[int], at: int, start: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("powercap")
    folder = root / "intel-rapl:0"
    folder.mkdir()
    (folder / "name").write_text("package-0\n")
    (folder / "max_energy_range_uj").write_text("1000\n")
    counter = folder / "energy_uj"
    counter.write_text(str(start))
    meters = [RaplMeter(idle_w=1.0, now_ns=0, root=root)]
    risen, totals = start, 0.0
    for number, rise in enumerate(rises, 1):
        risen += rise
        counter.write_text(str(risen % 1000))
        if number == at:
            totals += meters[-1].sample(number).total_j
            mark = meters[-1].mark()
            risen += 7  # while the state is on its way
            counter.write_text(str(risen % 1000))
            meters.append(RaplMeter(idle_w=1.0, now_ns=number, root=root))
            assert meters[-1].take_over(mark).total_j == 0.0
        else:
            meters[-1].sample(number)
    totals += meters[-1].sample(len(rises) + 1).total_j
    assert round(totals * 1e6) == risen - start


def test_another_meters_mark_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "intel-rapl:0"
    folder.mkdir()
    for name, text in (("name", "package-0"), ("max_energy_range_uj", "1000"), ("energy_uj", "5")):
        (folder / name).write_text(f"{text}\n")
    meter = RaplMeter(idle_w=1.0, now_ns=0, root=tmp_path)
    modelled = Process().meter(0)
    for mark, words in (
        (modelled.mark(), "other counters"),
        (MeterMark(device="cpu0", method="measured", at_ns=0, counters=(1, 2)), "other counters"),
        (MeterMark(device="cpu0", method="measured", at_ns=0, counters=(1001,)), "beyond their range"),
    ):
        with pytest.raises(ValueError, match=words):
            meter.take_over(mark)
