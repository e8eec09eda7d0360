"""An ingress of HAProxy: configured once, steered by its runtime API, restarted if it dies (docs/cluster.md)."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import signal
from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from pathlib import Path
from time import monotonic

import msgspec

from clover.cluster.ingress.config import (
    TOKEN_VARIABLE,
    IngressSettings,
    Upstream,
    backends,
    check_name,
    check_settings,
    description,
    render,
    split_url,
)
from clover.cluster.ingress.process import (
    HAProxyProcess,
    alerts,
    check_configuration,
    find_program,
    private_folder,
    shorten_log,
    write_private,
)
from clover.cluster.ingress.runtime import IngressGone, IngressRefused, RuntimeApi, check_reply
from clover.cluster.ingress.sockets import HeldSockets
from clover.cluster.ingress.state import (
    Servers,
    WantedIngress,
    differences,
    leftovers,
    settled,
    wanted_of,
    weights_key,
    whole_weights,
)
from clover.errors import ClusterError, ConfigError
from clover.settings.secrets import read_secret

log = logging.getLogger("clover.cluster")

_START_S = 10.0
_LOOK_S = 5.0
"""Seconds between two looks whether HAProxy still has what it was given."""
_DELETE_S = 1.0
_LONGEST_PAUSE_S = 5.0
_STILL_USED = "connections attached"
_SOCKET_PATH_BYTES = 107


class HAProxyIngress:
    """The `Ingress` of a cluster by HAProxy on this machine.

    `start` adopts a HAProxy that an earlier controller left running in the same folder, with the nodes and weights
    that it has; nothing is assumed.  All methods raise ClusterError if HAProxy refuses or does not answer.  What is
    wanted is kept here, so a HAProxy that was killed is started again with the last nodes and weights.
    """

    def __init__(self, settings: IngressSettings) -> None:
        check_settings(settings)
        self.settings = settings
        self._wanted = WantedIngress()
        self._servers: Servers = {}
        self._process: HAProxyProcess | None = None
        self._replaced: list[HAProxyProcess] = []  # these still answer what they have
        self._listening = HeldSockets()
        self._program = ""
        self._folder = private_folder(settings.folder)
        self._socket = str(self._folder / "haproxy.sock")
        if len(os.fsencode(self._socket)) > _SOCKET_PATH_BYTES - 16:  # HAProxy binds a longer name and renames it
            raise ClusterError(f"the path of the ingress's folder is too long for a socket: {self._folder}")
        self._api = RuntimeApi(self._socket)
        self._lock = asyncio.Lock()
        self._keeper: asyncio.Task[None] | None = None
        self.restarts = 0

    async def start(self) -> bool:
        """Start HAProxy, or adopt the one that runs; return whether one was adopted as it is.

        One that runs with other settings is replaced without refusing a connection.  ClusterError if there is no
        haproxy, it does not take the configuration, or an address is taken."""
        async with self._lock:
            try:
                adopted = await self._begin()
            except BaseException:
                self._forget()  # an old one keeps running
                raise
        self._keeper = asyncio.create_task(self._keep())
        return adopted

    async def _begin(self) -> bool:
        self._program = find_program(self.settings.haproxy)
        try:
            info = await self._api.info()
        except IngressGone:
            info = {}
        adopted = False
        if info:
            said = info.get("Description") or info.get("description", "")
            if not said.startswith("clover-ingress-"):
                raise ClusterError(f"another haproxy uses the socket {self._socket}")
            self._servers = await self._own_servers()
            self._wanted = wanted_of(self.settings, self._servers)
            self._process = HAProxyProcess(int(info["Pid"]))
            adopted = said == description(render(self.settings, socket=self._socket, read=self._files()))
        if adopted:
            await self._hold()
        else:
            await self._launch()
        await self._converge()
        return adopted

    async def _hold(self) -> None:
        """Hold the listening sockets of the HAProxy that runs, so that no connection is refused if it is killed."""
        await asyncio.to_thread(self._listening.hold, self._socket)

    async def reload(self) -> None:
        """Have certificates and token read again: a new HAProxy replaces the one that runs, without refusing a
        connection."""
        async with self._lock:
            if self._process is None:
                raise ClusterError("the ingress was not started")
            await self._launch()
            await self._converge()

    async def close(self) -> None:
        """Let go of HAProxy, which keeps running as it is; the next `start` adopts it."""
        await self._end_keeper()
        self._forget()

    async def stop(self, drain_s: float = 30.0) -> None:
        """End HAProxy: it takes no new connections, and ends when the open ones have, after `drain_s` at the latest."""
        await self._end_keeper()
        process = self._process
        if process is None:
            return
        self._listening.close()  # connections that come from now on are refused
        for number, seconds in ((signal.SIGUSR1, drain_s), (signal.SIGTERM, 2.0), (signal.SIGKILL, 2.0)):
            if seconds > 0:
                process.send(number)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(process.ended.wait(), seconds)
        self._forget()

    async def admit(self, name: str, url: str, grpc_url: str) -> None:
        """Add a node, which gets rows once it is healthy and has a weight; a known one has its address changed."""
        upstream = await self._resolve(check_name(name, "the node"), url, grpc_url)
        if upstream.secure and not self.settings.ca_file:
            raise ClusterError(f"node {name} is reached by https: give the ingress the ca_file of its certificate")
        async with self._lock:
            wanted = self._wanted
            await self._want(
                msgspec.structs.replace(
                    wanted, upstreams={**wanted.upstreams, name: upstream}, draining=wanted.draining - {name}
                ),
                {name},
            )

    async def weigh(self, origin: str, weights: Mapping[str, float]) -> None:
        """Set how the rows that clients of a region send are shared; a node without a weight gets none."""
        await self._weigh(origin, "", weights)

    async def weigh_family(self, origin: str, family: str, weights: Mapping[str, float]) -> None:
        """Set how the rows of one family that clients of a region send are shared."""
        if family not in self.settings.families:
            raise ClusterError(f"the ingress does not share {family!r} by itself: name it among its families")
        await self._weigh(origin, family, weights)

    async def _weigh(self, origin: str, family: str, weights: Mapping[str, float]) -> None:
        if origin not in {known.name for known in self.settings.origins}:
            raise ClusterError(f"the ingress has no origin {origin!r}")
        whole = whole_weights(weights)
        async with self._lock:
            wanted = self._wanted
            unknown = sorted(name for name, weight in whole.items() if weight and name not in wanted.upstreams)
            if unknown:
                raise ClusterError(f"the ingress has no node {unknown[0]!r}: admit it before it is given a weight")
            shares = {name: weight for name, weight in whole.items() if weight}
            await self._want(
                msgspec.structs.replace(wanted, weights={**wanted.weights, weights_key(origin, family): shares})
            )

    async def drain(self, name: str) -> None:
        """Give a node nothing new; what it has is answered.  `admit` ends the drain."""
        async with self._lock:
            self._known(name)
            await self._want(msgspec.structs.replace(self._wanted, draining=self._wanted.draining | {name}), {name})

    async def open_connections(self, name: str) -> int:
        """Return how many requests of clients a node still has from here; 0 if the node is not known."""
        async with self._lock:
            self._servers = await self._own_servers()
            servers = [
                (backend, servers_of[name].number)
                for backend, servers_of in self._servers.items()
                if name in servers_of
            ]
            rows = await self._api.server_statistics(servers) if servers else []
        return sum(int(row.get("scur", 0)) + int(row.get("qcur", 0)) for row in rows if row.get("svname") == name)

    async def remove(self, name: str) -> None:
        """Forget a node: it gets nothing new, and is deleted as soon as what it has was answered."""
        async with self._lock:
            wanted = self._wanted
            await self._want(
                WantedIngress(
                    upstreams={key: value for key, value in wanted.upstreams.items() if key != name},
                    draining=wanted.draining - {name},
                    weights={
                        which: {key: value for key, value in shares.items() if key != name}
                        for which, shares in wanted.weights.items()
                    },
                ),
                {name},
                _DELETE_S,
            )

    async def nodes(self) -> dict[str, bool]:
        """Return the nodes and whether HAProxy finds them healthy, in all backends that they are in."""
        async with self._lock:
            self._servers = await self._own_servers()
            up: dict[str, bool] = {}
            for servers_of in self._servers.values():
                for name, server in servers_of.items():
                    if name in self._wanted.upstreams:
                        up[name] = up.get(name, True) and server.up
            return up

    async def healthy(self, name: str) -> bool:
        """Return whether HAProxy's checks find a node ready now; False for one that it does not have."""
        return (await self.nodes()).get(name, False)

    async def information(self) -> dict[str, str]:
        """Return what HAProxy says of itself (`show info`): Pid, Version, Uptime, CurrConns and more."""
        return await self._api.info()

    def weights(self) -> dict[str, dict[str, int]]:
        """Return the weights in force by node, for each origin and each ORIGIN:FAMILY that has its own."""
        return {origin: dict(shares) for origin, shares in self._wanted.weights.items()}

    async def origin_requests(self) -> dict[str, dict[str, int]]:
        """Return how many requests of each origin each node was given since HAProxy was started or the node admitted.

        With the rows that a node counts by family, this says how many of them came from which origin."""
        origins = {backend.name: backend.origin for backend in backends(self.settings)}
        sums: dict[str, dict[str, int]] = {origin: {} for origin in origins.values()}
        for row in await self._api.server_statistics():
            if (origin := origins.get(str(row["pxname"]))) is not None:
                name = str(row["svname"])
                sums[origin][name] = sums[origin].get(name, 0) + int(row["stot"])
        return sums

    async def _end_keeper(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
            self._keeper = None

    def _forget(self) -> None:
        """Watch no process any more."""
        for process in (*self._replaced, self._process):
            if process is not None:
                process.forget()
        self._replaced, self._process = [], None
        self._listening.close()

    def _known(self, name: str) -> None:
        if name not in self._wanted.upstreams:
            raise ClusterError(f"the ingress has no node {name!r}")

    async def _want(self, wanted: WantedIngress, names: Collection[str] | None = None, wait_s: float = 0.0) -> None:
        """Have HAProxy be as wanted.  If it has died, it is started that way; if it refuses, what was wanted before
        stands."""
        if self._process is None:
            raise ClusterError("the ingress was not started")
        before, self._wanted = self._wanted, wanted
        try:
            await self._converge(names, wait_s)
        except IngressGone:
            await self._revive()
        except ClusterError:
            self._wanted = before
            raise

    async def _converge(self, names: Collection[str] | None = None, wait_s: float = 0.0) -> None:
        """Run the commands that lead to what is wanted, of some nodes or (if None) of all, and delete what is not, if
        it has no connections any more or loses them within `wait_s`."""
        for last in (False, False, True):
            changed = (
                {*self._wanted.upstreams, *chain.from_iterable(self._servers.values())} if names is None else names
            )
            commands = differences(self.settings, self._wanted, self._servers, changed)
            gone = leftovers(self.settings, self._wanted, self._servers)
            if not commands and not gone:
                return
            try:
                await self._api.change(commands)
            except IngressRefused:
                # It may have been for something that somebody else changed: look again.
                self._servers, seen = await self._own_servers(), self._servers
                if last or seen == self._servers:
                    raise
                continue
            self._servers = settled(self.settings, self._wanted, self._servers, changed)
            if gone:
                left = await self._delete(gone, wait_s)
                self._servers = await self._own_servers()
                if left:
                    return

    async def _delete(self, servers: Sequence[str], wait_s: float) -> bool:
        """Remove servers; return whether some still have connections after `wait_s`."""
        end = monotonic() + wait_s
        while servers:
            commands = [f"del server {server}" for server in servers]
            still = []
            for server, command, reply in zip(servers, commands, await self._api.replies(commands), strict=True):
                if _STILL_USED in reply:
                    still.append(server)
                else:
                    check_reply(command, reply)
            servers = still
            if servers and monotonic() >= end:
                return True
            if servers:
                await asyncio.sleep(0.1)
        return False

    async def _own_servers(self) -> Servers:
        states = await self._api.server_states()
        return {backend.name: states.get(backend.name, {}) for backend in backends(self.settings)}

    async def _launch(self) -> None:
        """Start HAProxy with what is wanted; it takes the place of one that runs."""
        draining = self._wanted.draining
        weights = {
            backend.name: {
                name: weight for name, weight in self._wanted.shares(backend).items() if name not in draining
            }
            for backend in backends(self.settings)
        }
        text = render(self.settings, self._wanted.upstreams.values(), weights, self._socket, self._files())
        file, log = self._folder / "haproxy.cfg", self._folder / "haproxy.log"
        environment = self._environment()
        await asyncio.to_thread(write_private, file, text)
        await check_configuration(self._program, file, environment)
        arguments = [self._program, "-db", "-f", str(file)]
        old = self._process
        if old is not None and not old.ended.is_set():
            arguments += ["-x", self._socket] if os.path.exists(self._socket) else []
            arguments += ["-sf", str(old.pid)]
        elif self._listening:  # connections wait in the sockets of the one that was killed
            async with self._listening.offered(self._folder / "held.sock"):
                await self._run([*arguments, "-x", str(self._folder / "held.sock")], log, environment)
            return
        await self._run(arguments, log, environment)

    async def _run(self, arguments: list[str], log: Path, environment: dict[str, str]) -> None:
        """Start HAProxy by its command line, and return once it answers."""
        old = self._process
        shorten_log(log)
        said_before = log.stat().st_size if log.exists() else 0
        process = HAProxyProcess.launch(arguments, log, environment)
        try:
            async with asyncio.timeout(_START_S):
                while (await self._pid()) != process.pid:
                    if process.ended.is_set():
                        said = log.read_bytes()[said_before:].decode(errors="replace")
                        raise ClusterError(f"haproxy does not start: {alerts(said)}")
                    await asyncio.sleep(0.02)
        except TimeoutError:
            process.send(signal.SIGKILL)
            raise ClusterError(f"haproxy was not ready within {_START_S:g} s") from None
        except BaseException:
            process.send(signal.SIGKILL)
            raise
        if old is not None:
            self._replaced = [one for one in (*self._replaced, old) if not one.ended.is_set()]
        self._process = process
        self._servers = await self._own_servers()
        await self._hold()

    async def _pid(self) -> int:
        try:
            return int((await self._api.info()).get("Pid", "0"))
        except (IngressGone, ValueError):
            return 0

    def _files(self) -> bytes:
        """Return what HAProxy reads at its start: certificates, and the token."""
        found = [self._token().encode()]
        for path in filter(None, (self.settings.tls_cert, self.settings.ca_file)):
            try:
                found.append(Path(path).read_bytes())
            except OSError as error:
                raise ClusterError(f"the ingress cannot read {path}: {error.strerror}") from error
        return b"".join(found)

    def _token(self) -> str:
        """Return the token for health checks; raises ClusterError."""
        try:
            return read_secret(self.settings.token, "ingress.token")
        except ConfigError as error:
            raise ClusterError(str(error)) from error

    def _environment(self) -> dict[str, str]:
        environment = {name: os.environ[name] for name in ("PATH", "LANG", "TZ") if name in os.environ}
        if token := self._token():
            environment[TOKEN_VARIABLE] = token
        return environment

    async def _revive(self) -> None:
        """Start HAProxy again if it has died; adopt one that something else started in its place."""
        self.restarts += 1
        pid = await self._pid()
        if pid:
            if self._process is not None:
                self._process.forget()
            self._process = HAProxyProcess(pid)
            self._servers = await self._own_servers()
            await self._hold()
        else:
            log.warning("haproxy has ended: it is started again with %d nodes", len(self._wanted.upstreams))
            await self._launch()
        await self._converge()

    async def _keep(self) -> None:
        """Restart HAProxy whenever it ends, and give it back what it lost otherwise."""
        pause = 0.1
        while True:
            process = self._process
            assert process is not None
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.ended.wait(), _LOOK_S)
            try:
                async with self._lock:
                    if self._process is not process:
                        continue
                    if process.ended.is_set():
                        await self._revive()
                    else:
                        self._servers = await self._own_servers()
                        await self._converge()
                pause = 0.1
            except Exception as error:  # whatever it is: without this watch nothing starts HAProxy again
                expected = isinstance(
                    error, (ClusterError, OSError)
                )  # OSError: no space for its configuration, no memory
                log.warning("the ingress: %s; tried again in %g s", error, pause, exc_info=None if expected else error)
                if self._process is not None and self._process.ended.is_set():
                    self._listening.close()  # clients learn that nobody is there; HAProxy binds its addresses itself
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_S)

    async def _resolve(self, name: str, url: str, grpc_url: str) -> Upstream:
        host, port, secure = split_url(url)
        grpc_host, grpc_port, grpc_secure = split_url(grpc_url) if grpc_url else ("", 0, secure)
        if grpc_url and "://" in grpc_url and grpc_secure != secure:
            raise ClusterError(f"node {name}: HTTP and gRPC must both be with TLS, or neither")
        return Upstream(
            name=name,
            host=await _address_of(host),
            port=port,
            secure=secure,
            grpc_host=await _address_of(grpc_host) if grpc_host else "",
            grpc_port=grpc_port,
        )


async def _address_of(host: str) -> str:
    """Return the IP address of a host: HAProxy resolves no names of servers that are added at run time."""
    with contextlib.suppress(ValueError):
        return str(ipaddress.ip_address(host))
    try:
        addresses = await asyncio.get_running_loop().getaddrinfo(host, None)
    except OSError as error:
        raise ClusterError(f"the host {host!r} of a node has no address: {error.strerror}") from error
    return str(addresses[0][4][0])
