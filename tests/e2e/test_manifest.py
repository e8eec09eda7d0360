"""A family with a manifest: its worker checks the files once more, after the server."""

from __future__ import annotations

from pathlib import Path

import pytest

from clover import families
from clover.errors import WorkerError
from clover.families import manifest
from clover.runtime.memory.slab import Layout, Slab
from clover.types import SandboxOrder
from tests.support import hostile_family
from tests.support.worker_pools import client_of, order, run, started


@pytest.mark.usefixtures("forked_zygotes")
def test_a_worker_refuses_what_was_changed_after_the_server_checked_it(tmp_path: Path) -> None:
    folder = Path(hostile_family.write(tmp_path / "family"))
    (folder / manifest.MANIFEST).write_text(manifest.text_of(folder))
    spec = families.load_family(str(folder))

    async def main() -> None:
        slab = Slab.create(Layout(spec, 8))
        confined = SandboxOrder()
        async with started() as pool, client_of(pool) as client:
            worker = await pool.spawn(order(spec, sandbox=confined), slab)
            slab.input(0)[0] = hostile_family.ECHO
            assert await client.infer(worker, 0) == 0
            await worker.drain_and_exit()
            (folder / "weights.bin").write_bytes(b"poison")
            with pytest.raises(WorkerError, match=r"not listed: weights\.bin"):
                await pool.spawn(order(spec, sandbox=confined), slab)
            (folder / "weights.bin").unlink()
            changing = "import os\nos.utime(__file__)\n"  # as if the file were replaced while it is loaded
            (folder / "model.py").write_text(changing + hostile_family.MODEL)
            (folder / manifest.MANIFEST).write_text(manifest.text_of(folder))
            again = families.load_family(str(folder))
            with pytest.raises(WorkerError, match="was changed while the family was loaded"):
                await pool.spawn(order(again), slab)
        slab.close()

    run(main())
