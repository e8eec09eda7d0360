"""The counters of `/proc/stat`."""

from __future__ import annotations

import pytest

from clover.proc_stat import PROC_STAT, cpu_times


def test_the_times_of_all_cpus_and_of_each_are_read() -> None:
    counted = cpu_times("cpu  9 9 9 9 9 9 9 9 9 9\ncpu0 1 2 4 70 10 3 5 5 50 0\nintr 1 2\n")
    assert list(counted) == ["cpu", "cpu0"]
    assert (counted["cpu0"].idle, counted["cpu0"].total, counted["cpu0"].stolen) == (80, 100, 5), "no guest's twice"
    assert "cpu0" in cpu_times(PROC_STAT.read_text(encoding="ascii"))


@pytest.mark.parametrize("text", ["cpu  100", "cpu  1 2 3 4 5 6 7 some\n"])
def test_what_is_no_counter_is_a_fault(text: str) -> None:
    with pytest.raises(ValueError, match=r"counters|invalid literal"):
        cpu_times(text)
