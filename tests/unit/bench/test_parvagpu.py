"""`bench.parvagpu` on a small artifact of two invented networks."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("scipy", reason="HiGHS, which proves the fewest GPUs, comes with SciPy")

from bench import parvagpu

PROFILE = "Mig instance,Batch size,Workload Number,Throughput,Latency\n"
DEPLOYED = "Num instance,Num GPU,Model,Placement,Instance size,Batch size,Num proc\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """`a` serves 100 rows a second for each compute slice, `b` the same on one slice and on seven; a second process
    brings a quarter, and batches of two take longer than the SLO allows."""
    for name, whole in (("a", 7), ("b", 1)):
        rows = [
            f"{n},1,1,{100 * min(n, whole)},0.01\n{n},1,2,{62.5 * min(n, whole)},0.016\n{n},2,1,900,0.05\n{n},2,2,0,0\n"
            for n in (1, 2, 3, 4, 7)
        ]
        (tmp_path / "prof_data").mkdir(exist_ok=True)
        (tmp_path / "prof_data" / f"{name}.csv").write_text(PROFILE + "".join(rows))
    (tmp_path / "SLO").mkdir()
    (tmp_path / "SLO" / "SLO_latency.csv").write_text("100,100\nN/A,100\n")
    (tmp_path / "SLO" / "SLO_req_rate.csv").write_text("400,900\nN/A,700")
    for at, row in ((1, "0,0,a,0,4,1,1\n0,1,b,0,1,1,2\n"), (2, "0,0,b,0,1,1,1\n1,0,b,0,1,1,1\n")):
        (tmp_path / "deployment" / f"SLO{at}").mkdir(parents=True)
        (tmp_path / parvagpu._deployment(at)).write_text(DEPLOYED + row)
    return tmp_path


def test_gpus_of_a_set_by_each_way_of_packing(folder: Path) -> None:
    both, alone = parvagpu.load_sets(folder)
    assert [network.name for network in alone.networks] == ["b"]
    assert (both.gpus, alone.gpus) == (2, 2)
    assert both.covers == pytest.approx(125 / 900)
    # b takes nine slices of 1g, a the four that are left beside them or a 4g; b alone fills one GPU exactly.
    figures = parvagpu.packed(both)
    assert (figures["joint"], figures["least"], figures["own_gpus"]) == (2, 2, 3)
    assert parvagpu.packed(alone)["joint"] == 1
    # With two processes a slice eight slices of b do, but four beside a's are still two GPUs.
    assert figures["processes"] == "2 2 2 2 2"
    # At a utilisation of .85, b needs eleven slices and a five: two GPUs have fourteen.
    assert figures["with_room"] == 3


def test_what_the_folder_lacks_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / parvagpu._deployment(2)).unlink()
    with pytest.raises(SystemExit) as error:
        parvagpu.main([str(folder)])
    assert error.value.code == 2
    assert "lacks deployment/SLO2/SLO2_ParvaGPU_deploy.csv" in capsys.readouterr().err
