"""What a server is made of: its parts, and how they are made, from the bottom up.

Each part is whole once it is made, and knows only those above it in `Parts`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from clover import carbon, energy, families
from clover.accounting import Account
from clover.cache import cache_folder
from clover.carbon.chain import SourceChain
from clover.carbon.grid import Grid
from clover.config import ServerConfig
from clover.control.controller import Controller
from clover.control.solver.client import SolverClient
from clover.control.state.context import LeastSaving
from clover.control.state.ledger_files import LedgerFiles, budgets_folder
from clover.http.audit import Operators
from clover.http.batches import why_not
from clover.http.loop_lag import LagWindows
from clover.profiles import ProfileStore
from clover.runtime.workers.pool import Pool
from clover.server.cluster_follower import ClusterFollower
from clover.server.control import ServerControl
from clover.server.families import ServedFamilies
from clover.server.footprint import Footprint
from clover.server.ledger import ServerLedger
from clover.server.ledger_source import LedgerSource
from clover.server.life import Life
from clover.server.loading import Loading
from clover.server.machine import NEVER_NS, Machine
from clover.server.periodic import EnergyWindows, Periodic
from clover.server.rollout_files import RolloutFiles
from clover.server.rollouts import RollOuts
from clover.server.sleeper import Sleeper
from clover.server.totals import ServerTotals
from clover.server.waiting import build_runner
from clover.telemetry import otel
from clover.tenants import Tenants
from clover.types import FamilySpec
from clover.waiting.runner import BatchRunner
from clover.waiting.store import BatchStore


@dataclass(frozen=True)
class Parts:
    """The parts of a server.  `lag` takes how long requests wait for the front end's loop; `ledger` is None if none is
    kept, `otel` if nothing is exported."""

    config: ServerConfig
    loop: asyncio.AbstractEventLoop
    pool: Pool
    life: Life
    tenants: Tenants
    operators: Operators
    account: Account
    machine: Machine
    footprint: Footprint
    chain: SourceChain
    grid: Grid
    families: ServedFamilies
    lag: LagWindows
    controller: Controller
    loading: Loading
    cluster: ClusterFollower
    ledger: ServerLedger | None
    batches: BatchStore
    waiting: BatchRunner
    windows: EnergyWindows
    rollouts: RollOuts
    sleeper: Sleeper
    totals: ServerTotals
    control: ServerControl
    periodic: Periodic
    otel: otel.OpenTelemetry | None

    def close(self) -> None:
        """Give back what the parts of a server hold that was never started."""
        self.families.close()
        self.machine.close()


def _idle_w(account: Account) -> float:
    """Return the idle power of the machine with its GPUs, in watts."""
    return sum(float(line["idle_w"]) for line in account.devices().values())


def build(config: ServerConfig, given: Mapping[str, FamilySpec], pool: Pool, *, boxes: Path | None = None) -> Parts:
    """Make the parts of a server in the running loop; raises ConfigError or DeviceError, and nothing is left then.

    `given` are family specs by name that need not be loaded.  `boxes` is the folder of the emulated GPUs of a server
    that starts beside another one, whose place it is to take: idle power, counters and files are that one's until then.
    """
    loop = asyncio.get_running_loop()
    life = Life()
    tenants = Tenants(config.tenants)
    operators = Operators.from_config(config)
    cache = cache_folder(config.cache_dir)
    beside = boxes is not None
    account = Account(pue=config.carbon.pue, core_w=energy.cpu_power(config.energy).core_w)
    machine = Machine(config, boxes or cache, account)
    devices = machine.devices
    with contextlib.ExitStack() as failed:
        failed.callback(machine.close)
        footprint = Footprint(config, devices, account)
        if beside:
            machine.stand_beside()
            footprint.begin(NEVER_NS)
        files = RolloutFiles.from_config(config)
        all_families = ServedFamilies(config, pool=pool, devices=devices, account=account, tenants=tenants, loop=loop)
        failed.callback(all_families.close)
        chain, grid_clock = carbon.build(config.carbon)
        grid = Grid(chain, grid_clock.now)
        for item in config.families:
            all_families.serve(item, families.chosen(given.get(item.family) or files.serve(item), item.only))
        lag = LagWindows()
        solver = SolverClient()
        controller = Controller(
            config.controller,
            devices=devices,
            grid=grid,
            solver=solver,
            store=ProfileStore(cache),
            ledger_files=LedgerFiles(budgets_folder(config), beside=beside),
            front_lag=lag.typical,
            alternatives=solver.alternatives,
            fewest_cores=solver.fewest_cores,
            least_saving=LeastSaving(core_w=account.core_w, idle_w=lambda: _idle_w(account)),
        )
        loading = Loading(
            controller,
            all_families.unplanned,
            drain_s=config.limits.drain_s,
            changed=partial(all_families.follow, controller.context),
        )
        cluster = ClusterFollower(
            controller.context, account.totals, lambda device: float(account.devices()[device]["idle_w"])
        )
        batches = BatchStore.from_config(
            config, clock=grid.now, check=lambda endpoint, model: why_not(all_families.models, endpoint, model)
        )
        waiting = build_runner(config, batches, all_families, account, grid, tenants)
        ledger: ServerLedger | None = None
        if config.ledger.keep == "on":
            source = LedgerSource(account, machine, all_families.served, controller, operators.audit, waiting.waited)
            ledger = ServerLedger(config, source, account, footprint.hardware)
        windows = EnergyWindows(grid, all_families, machine, account, controller, footprint, ledger)
        rollouts = RollOuts(config, files, all_families, controller, loading, life, forget=windows.forget)
        sleeper = Sleeper(
            all_families.served,
            controller,
            limit_bytes=config.workers.total_bytes,
            core_w=account.core_w,
            held=rollouts.involves,
        )
        totals = ServerTotals(
            account, footprint, machine, all_families, tenants, controller, ledger, rollouts, cluster, sleeper, waiting
        )
        parts = Parts(
            config=config,
            loop=loop,
            pool=pool,
            life=life,
            tenants=tenants,
            operators=operators,
            account=account,
            machine=machine,
            footprint=footprint,
            chain=chain,
            grid=grid,
            families=all_families,
            lag=lag,
            controller=controller,
            loading=loading,
            cluster=cluster,
            ledger=ledger,
            batches=batches,
            waiting=waiting,
            windows=windows,
            rollouts=rollouts,
            sleeper=sleeper,
            totals=totals,
            control=ServerControl(controller, rollouts, cluster, totals.report),
            periodic=Periodic(windows, all_families, machine, controller, loading, rollouts, cluster, sleeper),
            otel=_open_telemetry(config, loop, account, machine),
        )
        failed.pop_all()
    return parts


def _open_telemetry(
    config: ServerConfig, loop: asyncio.AbstractEventLoop, account: Account, machine: Machine
) -> otel.OpenTelemetry | None:
    """Return what `otel.endpoint` asks for, None if it is empty; raises ConfigError."""
    if not config.otel.endpoint:
        return None
    from clover.telemetry.otel.energy import DeviceEnergy

    def devices() -> list[DeviceEnergy]:
        shapes = machine.shapes()
        return [
            DeviceEnergy(
                name,
                "cpu" if shapes[name].kind == "cpu" else "gpu",
                shapes[name].label,
                str(line["method"]),
                float(line["measured_j"]),
                account.grams(name),
            )
            for name, line in account.devices().items()
            if name in shapes
        ]

    return otel.build(config.otel, loop, devices)
