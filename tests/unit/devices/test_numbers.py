"""Which GPUs of a machine a server has: `nvidia:0-3,6`, `emulated:a100-40gb:8:0-3`."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clover import devices
from clover.config import WorkersConfig
from clover.devices.cpu import ranges
from clover.errors import ConfigError, DeviceError


@given(st.sets(st.integers(0, 300), min_size=1))
def test_what_is_written_as_ranges_is_read(wanted: set[int]) -> None:
    text = ranges(tuple(sorted(wanted)))
    assert devices.parse(f"nvidia:{text}").indices == tuple(sorted(wanted))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("nvidia:3-1", "from the lower number"),
        ("nvidia:0-3,2", "names a GPU twice"),
        ("nvidia:0-", "numbers of GPUs"),
        ("nvidia:-1", "numbers of GPUs"),
        ("emulated:a100-40gb:8:7-8", "the box has 0 to 7"),
        ("emulated:a100-40gb:8:", "numbers of GPUs"),
        ("emulated:a100-40gb:8:x", "numbers of GPUs"),
    ],
)
def test_what_cannot_be_meant_is_refused(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        devices.parse(text)


def test_servers_share_a_box_each_with_its_own_gpus(tmp_path: Path) -> None:
    first = devices.build(WorkersConfig(device="emulated:a100-40gb:4:0-1"), tmp_path)
    try:
        assert list(first) == ["gpu0", "gpu1"]
        second = devices.build(WorkersConfig(device="emulated:a100-40gb:4:2,3"), tmp_path)
        assert list(second) == ["gpu2", "gpu3"]
        devices.close(second)
        with pytest.raises(DeviceError, match="another"):
            devices.build(WorkersConfig(device="emulated:a100-40gb:4:1-2"), tmp_path)
    finally:
        devices.close(first)
