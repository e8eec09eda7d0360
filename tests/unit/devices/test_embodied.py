"""What is published of making hardware, and what is not."""

from __future__ import annotations

import pytest

from clover.devices import tables
from clover.devices.embodied import of_gpu, per_cpu


def test_the_figure_of_a_cpu_is_the_cited_rule() -> None:
    def server(cpus: int, memory_gb: int) -> float:
        return 1000 + 100 * (cpus - 1) + 533 / 384 * (memory_gb - 16)

    figure = per_cpu()
    assert figure.kg == pytest.approx(server(2, 384) / 96, abs=0.05)
    assert figure.low == pytest.approx(server(2, 1024) / 256, abs=0.05)
    assert figure.high == pytest.approx(4283 / 96, abs=0.05)
    assert "Cloud Carbon Footprint" in figure.cited()


def test_boards_have_the_figures_that_were_published_and_others_none() -> None:
    known = {name: of_gpu(tables.table(name).product) for name in tables.names()}
    assert {name: figure.kg for name, figure in known.items() if figure is not None} == {
        "a100-40gb": 127.6,
        "a100-80gb": 143.0,
        "h100-sxm-80gb": 1312 / 8,
        "h100-pcie-80gb": 273.0,
        "b200-180gb": 2274 / 8,
    }
    assert of_gpu("NVIDIA H200") is None


def test_every_figure_lies_within_its_bounds_and_names_sources() -> None:
    for figure in (per_cpu(), *filter(None, (of_gpu(tables.table(name).product) for name in tables.names()))):
        assert (figure.low or figure.kg) <= figure.kg <= (figure.high or figure.kg)
        assert figure.cited()
