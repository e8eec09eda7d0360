"""`cluster.toml`: what is taken, and errors that name the key and its line."""

from __future__ import annotations

import contextlib
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clover.cluster.cluster_file import line_of, parse, read, render_carbon
from clover.cluster.cluster_records import ClusterFile
from clover.config import CarbonConfig, ProviderConfig
from clover.errors import ConfigError
from clover.settings import load

EXAMPLE = """\
[cluster]
name = "demo"
survive = "node"

[[region]]
name = "north"
listen = "127.0.0.1:8090"
latency_ms = { south = 20 }
carbon = { source = "static:100" }

[[region]]
name = "south"
[region.carbon]
source = "trace:south.csv"
trace_speed = 60

[[node]]
name = "north-1"
region = "north"
port = 8081

[[node]]
name = "south-1"
region = "south"
port = 8082
config = "south.toml"

[[family]]
family = "fashion"
accuracy_floor = 84.0
slo_ms = 50.0
[family.regions]
south = ["south"]
"""


def test_the_example() -> None:
    file = parse(EXAMPLE)
    assert [node.name for node in file.node] == ["north-1", "south-1"]
    assert file.region_of("south-1").carbon.trace_speed == 60.0
    assert file.family[0].regions == {"south": ("south",)}
    assert (file.cluster.survive, file.cluster.lease_s, file.ingress) == ("node", 30.0, None)


def test_relative_paths_count_from_the_folder_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "cluster.toml").write_text(EXAMPLE.replace('survive = "node"', 'store = "file:state.json"'))
    with pytest.raises(ConfigError, match=r"south\.csv: there is no such file"):
        read(tmp_path / "cluster.toml")
    (tmp_path / "south.csv").write_text(
        "datetime_utc,carbon_intensity_gco2_per_kwh\n2026-01-01T00:00:00Z,100\n2026-01-01T01:00:00Z,90\n"
    )
    file = read(tmp_path / "cluster.toml")
    assert file.node[1].config == str(tmp_path / "south.toml")
    assert file.region[1].carbon.source == f"trace:{tmp_path / 'south.csv'}"
    assert file.cluster.store == f"file:{tmp_path / 'state.json'}"


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        ("port = 8082", "prot = 8082", r"node\[2\].prot is no key.*did you mean port"),
        ("port = 8082", "port = 99999", r"node\[2\].port must be int <= 65535, not 99999"),
        ("port = 8082", 'port = "x"', r"node\[2\].port must be int, not 'x'"),
        ("port = 8082", "port = 8081", r"127.0.0.1:8081 is that of node\[1\] too"),
        ('region = "south"', 'region = "suoth"', "did you mean south"),
        ('name = "south-1"', 'name = "north-1"', "the name of two"),
        ('name = "south-1"', 'name = "../x"', "1 to 63 of"),
        ('south = ["south"]', 'south = ["sud"]', r"family\[1\].regions.south names 'sud'"),
        ('south = ["south"]', "south = []", "no region to be answered in"),
        ("slo_ms = 50.0", "", r"family\[1\].slo_ms is missing"),
        ("slo_ms = 50.0", "slo_ms = 0", r"family\[1\].slo_ms must be float > 0.0, not 0"),
        ("latency_ms = { south = 20 }", "latency_ms = { suth = 20 }", "did you mean south"),
        ("latency_ms = { south = 20 }", "latency_ms = { south = -1 }", "at least 0"),
        ("latency_ms = { south = 20 }", "latency_ms = { south = nan }", "at least 0"),
        ('listen = "127.0.0.1:8090"', 'listen = "8090"', "must read HOST:PORT"),
        ('source = "static:100"', 'source = "statik:100"', r"region\[1\].carbon cannot be used"),
        ("trace_speed = 60", "trace_sped = 60", "did you mean trace_speed"),
        ('survive = "node"', 'survive = "all"', r"cluster.survive .*'all'"),
        ('survive = "node"', 'store = "redis://x"', "must read file:PATH"),
        ('survive = "node"', "lease_s = 9.9", "must be at least twice step_s"),
        ('name = "demo"', 'nmae = "demo"', "did you mean name"),
        ("port = 8082", 'arguments = ["--port=1"]', "may not give --port"),
        ("port = 8082", "devices = { a100 = 0 }", "has 0 of a100"),
    ],
)
def test_errors_name_the_key_and_its_line(before: str, after: str, why: str) -> None:
    """The line is that of what was changed; of what is missing, that of its table."""
    head, _, tail = EXAMPLE.rpartition(before)
    line = head.count("\n") + 1 if after else EXAMPLE[: EXAMPLE.index("[[family]]")].count("\n") + 1
    with pytest.raises(ConfigError, match=why) as caught:
        parse(head + after + tail)
    assert f"cluster.toml, line {line}: " in str(caught.value)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", r"there is no \[\[region\]\]"),
        ("region = 3\n", "under "),
        ("[[region]]\nname =\n", "not valid TOML"),
        ('[[region]]\nname = "a"\n', r"there is no \[\[node\]\]"),
        ("[ingress]\n" + EXAMPLE.replace('listen = "127.0.0.1:8090"\n', ""), "nothing to listen on"),
        (EXAMPLE.replace("127.0.0.1:8090", "127.0.0.1:90909"), "must read HOST:PORT"),
        (EXAMPLE.replace('south = ["south"]', 'north = ["west"]'), "west"),
    ],
)
def test_what_cannot_be_used_is_refused(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        parse(text)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        read(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="not valid TOML"):
        read(tmp_path / "bad.toml")


def test_secrets_come_from_their_files_and_are_not_shown(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("s3cret\n")
    provider = '{ name = "electricity-maps", key = "file:key" }'
    carbon = f'carbon = {{ source = "electricity-maps:DE", provider = [{provider}] }}'
    text = EXAMPLE.replace('carbon = { source = "static:100" }', carbon).replace("trace:south.csv", "static:1")
    file = parse(text, folder=tmp_path)
    assert load([], render_carbon(file.region[0].carbon)).config.carbon.provider == (
        ProviderConfig(name="electricity-maps", key="s3cret"),
    )
    assert "s3cret" not in repr(file)
    (tmp_path / "key").write_text("")
    with pytest.raises(ConfigError, match="is empty"):
        parse(text, folder=tmp_path)


def test_a_server_gets_the_carbon_section_of_its_region_as_variables() -> None:
    found = render_carbon(CarbonConfig(source="trace:x.csv", trace_speed=60.0, pue=1.2))
    assert found == {"CLOVER_CARBON": "trace:x.csv", "CLOVER_TRACE_SPEED": "60.0", "CLOVER_PUE": "1.2"}


NAMES = st.from_regex(r"[a-z][a-z0-9-]{0,8}", fullmatch=True)


@st.composite
def clusters(draw: st.DrawFn) -> dict[str, Any]:
    regions = draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
    nodes = draw(st.lists(NAMES, min_size=1, max_size=5, unique=True))
    families = draw(st.lists(NAMES, min_size=1, max_size=3, unique=True))
    positive = st.floats(0.5, 1e4, allow_nan=False)
    return {
        "cluster": {"name": draw(NAMES), "survive": draw(st.sampled_from(["none", "node", "region"]))},
        "region": [
            {"name": name, "latency_ms": {other: draw(positive) for other in draw(st.sets(st.sampled_from(regions)))}}
            for name in regions
        ],
        "node": [
            {"name": name, "region": draw(st.sampled_from(regions)), "port": 8000 + at, "wake_s": draw(positive)}
            for at, name in enumerate(nodes)
        ],
        "family": [
            {"family": name, "accuracy_floor": draw(st.floats(0, 100)), "slo_ms": draw(positive)} for name in families
        ],
    }


def written(data: dict[str, Any]) -> str:
    """The TOML of such a cluster, one key a line."""

    def value(of: Any) -> str:
        if isinstance(of, dict):
            return "{ " + ", ".join(f'"{key}" = {value(item)}' for key, item in of.items()) + " }"
        return f'"{of}"' if isinstance(of, str) else repr(of)

    lines = []
    for name, table in data.items():
        for entry in table if isinstance(table, list) else [table]:
            lines.append(f"[[{name}]]" if isinstance(table, list) else f"[{name}]")
            lines += [f"{key} = {value(item)}" for key, item in entry.items()]
    return "\n".join(lines) + "\n"


@settings(max_examples=settings().max_examples // 3)
@given(clusters())
def test_what_is_written_is_what_is_read(data: dict[str, Any]) -> None:
    text = written(data)
    assert tomllib.loads(text) == data
    assert parse(text) == msgspec.convert(data, ClusterFile)


@settings(max_examples=settings().max_examples // 3)
@given(clusters(), st.data())
def test_an_unknown_key_is_found_at_its_line(data: dict[str, Any], draws: st.DataObject) -> None:
    lines = written(data).splitlines()
    headers = [number for number, line in enumerate(lines) if line.startswith("[")]
    at = draws.draw(st.sampled_from(headers))
    lines.insert(at + 1, "zzz = 1")
    with pytest.raises(ConfigError, match="zzz is no key") as caught:
        parse("\n".join(lines))
    assert f"line {at + 2}: " in str(caught.value)


@settings(max_examples=settings().max_examples * 3)
@given(st.text(max_size=200) | st.text(alphabet='[]{}="\n.ab1# ', max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(ConfigError):
        parse(text)
    assert line_of(text, ("node", 1, "port")) >= 1
