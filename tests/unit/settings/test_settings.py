"""Settings: one definition in three spellings, precedence with origins, refusals that help, nothing leaked."""

from __future__ import annotations

import json
import tomllib
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from clover.config import ServerConfig, TenantConfig
from clover.errors import ConfigError
from clover.hints import did_you_mean
from clover.settings import (
    SETTINGS,
    Option,
    Setting,
    Settings,
    check,
    help_text,
    load,
    override,
    parse_cores,
    print_config,
    secrets_of,
)
from clover.settings.check import MOST_TENANTS
from clover.settings.service_links import is_service_link
from tests.support.examples import examples
from tests.support.settings_table import markdown_table

DOCS = Path(__file__).resolve().parents[3] / "docs" / "configuration.md"


def write(folder: Path, text: str) -> str:
    path = folder / "clover.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


# --- what is read off the records ---------------------------------------------------------------------------------


def test_every_setting_has_one_name_and_one_line_of_help() -> None:
    names = [setting.name for setting in SETTINGS]
    assert len(names) == len(set(names))
    assert [setting.key for setting in SETTINGS if not setting.help] == []


def test_names_follow_the_rule() -> None:
    flags = {setting.key: setting.flag for setting in SETTINGS}
    assert flags["listen.port"] == "--port"
    assert flags["carbon.source"] == "--carbon"
    assert flags["carbon.trace_speed"] == "--trace-speed"
    assert flags["log.level"] == "--log-level"
    assert flags["families.slo_ms"] == "--slo-ms"
    assert flags["limits.body_bytes"] == "--limit-body-bytes"
    assert {setting.key: setting.env for setting in SETTINGS}["listen.token"] == "CLOVER_TOKEN"
    other = [setting for setting in SETTINGS if setting.env != f"CLOVER_{setting.flag[2:].replace('-', '_').upper()}"]
    assert not other, "docs/configuration.md says that a variable is the flag in capitals"


def test_nothing_given_is_the_default_and_says_so() -> None:
    settings = load([], {})
    assert settings.config == ServerConfig()
    assert set(settings.origins.values()) == {"default"}


def test_documentation_lists_every_setting_as_it_is() -> None:
    assert markdown_table() in DOCS.read_text(encoding="utf-8"), (
        "docs/configuration.md is out of date: paste the output of `python -m tests.support.settings_table`"
    )


def test_help_names_every_flag() -> None:
    text = help_text("clover", "Serve.", [Option("--check-config", "check and leave")])
    for setting in SETTINGS:
        if setting.key != "families.family":
            assert setting.flag in text
    assert "--check-config" in text


# --- precedence ---------------------------------------------------------------------------------------------------


def test_command_line_beats_environment_beats_file_beats_default(tmp_path: Path) -> None:
    path = write(tmp_path, "[listen]\nport = 1\n[carbon]\npue = 1.1\nsource = 'static:1'\n[log]\njson = true\n")
    settings = load([path, "--port", "3"], {"CLOVER_PORT": "2", "CLOVER_PUE": "1.2", "PATH": "/bin"})
    config, origins = settings.config, settings.origins
    assert (config.listen.port, origins["listen.port"]) == (3, "--port")
    assert (config.carbon.pue, origins["carbon.pue"]) == (1.2, "env CLOVER_PUE")
    assert (config.carbon.source, origins["carbon.source"]) == ("static:1", f"file {path}")
    assert (config.log.json, config.log.level, origins["log.level"]) == (True, "info", "default")


def test_config_file_by_flag_variable_or_position(tmp_path: Path) -> None:
    path = write(tmp_path, "profile = 'require'")
    for argv, environ in (
        ([path], {}),
        (["--config", path], {}),
        ([f"--config={path}"], {}),
        ([], {"CLOVER_CONFIG": path}),
    ):
        assert load(argv, environ).config.profile == "require"
    with pytest.raises(ConfigError, match="more than one configuration file"):
        load([path, "--config", path], {})


def test_booleans_and_negation(tmp_path: Path) -> None:
    path = write(tmp_path, "[log]\njson = true\naccess = true")
    config = load([path, "--no-log-json", "--insecure"], {"CLOVER_LOG_ACCESS": "off"}).config
    assert (config.log.json, config.log.access, config.listen.insecure) == (False, False, True)


def test_families_from_the_line_take_the_tables_of_the_file(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "[[families]]\nfamily = 'fashion'\nslo_ms = 7\n[[families]]\nfamily = './other'\nname = 'other'\nshare = 2\n",
    )
    both = load([path], {}).config.families
    assert [family.family for family in both] == ["fashion", "./other"]
    (other,) = load([path, "other"], {}).config.families
    assert (other.family, other.share) == ("./other", 2.0)
    settings = load([path, "fashion", "third", "--accuracy-floor", "90"], {"CLOVER_SLO_MS": "9"})
    assert [(f.family, f.slo_ms, f.accuracy_floor) for f in settings.config.families] == [
        ("fashion", 9.0, 90.0),
        ("third", 9.0, 90.0),
    ]
    assert settings.origins["families.0.slo_ms"] == "env CLOVER_SLO_MS"
    assert settings.origins["families.1.family"] == "command line"
    assert [f.family for f in load([], {"CLOVER_FAMILIES": "a, b"}).config.families] == ["a", "b"]


def test_a_horizon_is_a_word_or_seconds(tmp_path: Path) -> None:
    path = write(tmp_path, "[[families]]\nfamily = 'fashion'\nbudget_horizon_s = 'week'\n")
    week = load(["fashion", "--budget-horizon", "week"], {}).config
    assert week == load([path], {}).config == load(["fashion"], {"CLOVER_BUDGET_HORIZON": "604800"}).config
    assert week.families[0].budget_horizon_s == 604_800.0
    with pytest.raises(ConfigError, match="must be day, week, a number >= 3600"):
        load(["fashion", "--budget-horizon", "month"], {})


def test_none_and_lists_as_text() -> None:
    config = load(["--lam", "none", "--allowed-hosts", "a.example, b.example"], {}).config
    assert config.controller.lam is None
    assert config.listen.allowed_hosts == ("a.example", "b.example")


def test_own_options_of_a_command() -> None:
    settings = load(
        ["fashion", "--quick", "--json", "out.json"], {}, options=[Option("--quick", ""), Option("--json", "", "FILE")]
    )
    assert settings.options == {"quick": "true", "json": "out.json"}


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "environ", "text"),
    [
        (["--prot", "1"], {}, "did you mean --port"),
        (["--slo", "1"], {}, "unknown flag --slo (did you mean --slo-ms?)"),
        (["--audits", "1"], {}, "did you mean --audit?"),
        (["--accuracy", "1"], {}, "(did you mean --accuracy-budget or --accuracy-floor or --accuracy-margin?)"),
        (["--port"], {}, "--port needs a value"),
        (["--port", "many"], {}, "listen.port must be an integer"),
        (["--port", "65536"], {}, "<= 65535"),
        (["--mode", "on"], {}, "one of off, observe, active"),
        (["--lam", "nan"], {}, "controller.lam"),
        (["--slo-ms", "0"], {}, "> 0"),
        (["--accuracy-floor", "0.9"], {}, "accuracy_floor 0.9 is in percent: for 90 % it is 90, not 0.9"),
        (["--host", "0.0.0.0"], {}, "--insecure"),
        (["--host", "example.org"], {}, "reachable from outside"),
        (["--tls-cert", __file__], {}, "tls_key is missing"),
        (["--tls-cert", "/nowhere", "--tls-key", "/nowhere"], {}, "no file"),
        (["--control", "tcp:1"], {}, "unix:PATH"),
        (["--cores", "3-1"], {}, "0-3,6"),
        (["--device", "cpus"], {}, "did you mean cpu"),
        (["--trace-start", "noon"], {}, "neither now nor first nor an ISO 8601 time"),
        (["a", "a"], {}, "two families"),
        (["a", "b", "--name", "x"], {}, "one name cannot serve"),
        (["a", "--name", "no/slash"], {}, "families.0.name"),
        (["nowhere.toml"], {}, "cannot read nowhere.toml"),
        ([], {"CLOVER_PROT": "1"}, "unknown variable CLOVER_PROT (did you mean CLOVER_PORT"),
        ([], {"CLOVER_LOG_JSON": "maybe"}, "env CLOVER_LOG_JSON: log.json must be true or false"),
        ([], {"CLOVER_TOKEN": "file:/nowhere"}, "listen.token: cannot read the file /nowhere"),
        (["--carbon-provider", "neso"], {}, "--carbon-provider: carbon.provider must be tables with a name"),
        ([], {"CLOVER_CARBON_PROVIDER": '[{"name": "neso", "kye": "x"}]'}, "contains unknown field `kye` - at `$[0]`"),
    ],
)
def test_refused_on_the_line_and_in_the_environment(argv: list[str], environ: dict[str, str], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(argv, environ)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("toml", "text"),
    [
        ("[lisen]\nport = 1", "unknown key lisen (did you mean listen?"),
        ("[listen]\nprot = 1", "unknown key listen.prot (did you mean listen.port?"),
        ("port = 1", "did you mean listen.port?"),
        ("[listen]\npue = 1", "did you mean carbon.pue?"),
        ("[listen]\nport = '1'", "listen.port must be an integer"),
        ("[listen]\nport = true", "listen.port must be an integer"),
        ("listen = 1", "must be a table"),
        ("families = ['fashion']", "[[families]]"),
        ("[[families]]\nslo_ms = 1", "names no family"),
        ("[[families]]\nfamily = 'a'\nslo = 1", "did you mean families.slo_ms?"),
        ("[carbon]\npue = inf", "carbon.pue"),
        ("[listen", "not valid TOML"),
    ],
)
def test_refused_in_the_file_with_its_path(tmp_path: Path, toml: str, text: str) -> None:
    path = write(tmp_path, toml)
    with pytest.raises(ConfigError) as caught:
        load([path], {})
    assert text in str(caught.value)
    assert path in str(caught.value)


def test_variables_of_the_build_and_the_client_are_left_alone() -> None:
    environ = {"CLOVER_BUILD": "checked", "CLOVER_SANITIZE": "1", "CLOVER_URL": "http://localhost"}
    assert load([], environ).config == ServerConfig()


# --- what Kubernetes sets for a Service ---------------------------------------------------------------------------


def service_links(service: str, address: str, ports: dict[str, tuple[int, str]]) -> dict[str, str]:
    """What the kubelet sets for a Service: `ports` are number and protocol by name; the first may have none."""
    name = service.upper().replace("-", "_")
    host = f"[{address}]" if ":" in address else address
    (first, protocol), *_ = ports.values()
    out = {f"{name}_SERVICE_HOST": address, f"{name}_SERVICE_PORT": str(first)}
    out[f"{name}_PORT"] = f"{protocol.lower()}://{host}:{first}"
    for port, (number, protocol) in ports.items():
        if port:
            out[f"{name}_SERVICE_PORT_{port.upper().replace('-', '_')}"] = str(number)
        link = f"{name}_PORT_{number}_{protocol}"
        out |= {link: f"{protocol.lower()}://{host}:{number}", f"{link}_PROTO": protocol.lower()}
        out |= {f"{link}_PORT": str(number), f"{link}_ADDR": address}
    return out


LABEL = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)


@pytest.mark.slow
@given(
    service=st.just("clover") | LABEL.map("clover-{}".format),
    address=st.ip_addresses().map(str),
    ports=st.dictionaries(
        LABEL, st.tuples(st.integers(1, 65535), st.sampled_from(["TCP", "UDP", "SCTP"])), min_size=1, max_size=3
    ),
)
def test_what_kubernetes_sets_for_a_service_is_ignored_and_named(
    service: str, address: str, ports: dict[str, tuple[int, str]]
) -> None:
    environ = service_links(service, address, ports)
    settings = load([], environ | {"CLOVER_PUE": "1.1"})
    assert settings.config == override(None, pue=1.1)
    assert settings.service_links == tuple(sorted(environ))


def test_a_port_is_a_setting_beside_a_service() -> None:
    environ = service_links("clover", "10.0.0.1", {"": (8080, "TCP"), "metrics": (9000, "UDP")})
    assert load([], environ).config.listen.port == 8080  # the default
    settings = load([], environ | {"CLOVER_PORT": "9000"})
    assert settings.config.listen.port == 9000
    assert settings.origins["listen.port"] == "env CLOVER_PORT"
    assert "CLOVER_PORT" not in settings.service_links
    assert load([], {"CLOVER_PORT": "9000"}).service_links == ()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CLOVER_SERVCE_HOST", "10.0.0.1"),
        ("CLOVER_SERVICE_HOST", "clover.example"),
        ("CLOVER_SERVICE_HOST", ""),
        ("CLOVER_SERVICEHOST", "10.0.0.1"),
        ("CLOVER__SERVICE", "10.0.0.1"),
        ("CLOVER_SERVICE_PORT", "http"),
        ("CLOVER_SERVICE_PORT", "65536"),
        ("CLOVER_SERVICE_PORT", "0"),
        ("CLOVER_PROT", "1"),
        ("CLOVER_PORT", "http://10.0.0.1:8080"),
        ("CLOVER_PORT", "tcp://10.0.0.1"),
        ("CLOVER_PORT", "tcp://clover:8080"),
        ("CLOVER_PORT", "tcp://10.0.0.1:8080\n"),
        ("CLOVER_API_PORT", "9000"),
        ("CLOVER_PORT_8080", "tcp://10.0.0.1:8080"),
        ("CLOVER_PORT_8080_TCP", "tcp://10.0.0.1:8081"),
        ("CLOVER_PORT_8080_TCP", "udp://10.0.0.1:8080"),
        ("CLOVER_PORT_8080_ICMP", "icmp://10.0.0.1:8080"),
        ("CLOVER_PORT_8080_TCP_PROTO", "udp"),
        ("CLOVER_PORT_8080_TCP_PORT", "80"),
        ("CLOVER_PORT_8080_TCP_ADDR", "here"),
        ("CLOVER_PORT_8080_TCP_NAME", "x"),
        ("CLOVER_ENV_PATH", "/bin"),
    ],
)
def test_what_only_looks_like_it_stays_an_error(name: str, value: str) -> None:
    with pytest.raises(ConfigError):
        load([], {name: value})


def test_no_setting_but_the_ports_has_a_name_of_that_form() -> None:
    values = ["10.0.0.1", "8080", "tcp", "tcp://10.0.0.1:8080"]
    names = {setting.env for setting in SETTINGS} | {"CLOVER_CONFIG", "CLOVER_FAMILIES", "CLOVER_URL"}
    assert {name for name in names for value in values if is_service_link(name, value)} == {
        "CLOVER_PORT",
        "CLOVER_GRPC_PORT",  # tcp://... of a Service named clover-grpc is none, 9000 is
    }


@pytest.mark.parametrize(("text", "cores"), [("", None), ("0", (0,)), ("0-3,6", (0, 1, 2, 3, 6)), ("2,0-1", (0, 1, 2))])
def test_parse_cores(text: str, cores: tuple[int, ...] | None) -> None:
    assert parse_cores(text) == cores


# --- the token ----------------------------------------------------------------------------------------------------


def test_token_is_never_shown(tmp_path: Path) -> None:
    secret = "s3cret-token"
    text = print_config(load(["--host", "0.0.0.0"], {"CLOVER_TOKEN": secret}))
    assert secret not in text
    assert "# token = ***" in text
    with pytest.raises(ConfigError) as caught:
        load(["--token", "with space"], {})
    assert "with space" not in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        load([write(tmp_path, "[listen]\ntoken = 12345")], {})
    assert "12345" not in str(caught.value)


def test_keys_of_providers_are_secrets_as_the_token_is(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("key-of-file\n", encoding="utf-8")
    given = [
        {"name": "electricity-maps", "key": f"file:{file}"},
        {"name": "watttime", "user": "me", "key": "pass-of-env"},
    ]
    settings = load([], {"CLOVER_CARBON_PROVIDER": json.dumps(given)})
    assert load(["--carbon-provider", json.dumps(given)], {}).config == settings.config
    assert override(None, carbon_provider=given) == settings.config
    assert secrets_of(settings.config) == ("key-of-file", "pass-of-env")
    for text in (print_config(settings), repr(settings.config), str(settings)):
        assert "key-of-file" not in text
        assert "pass-of-env" not in text
    tables = tomllib.loads(print_config(settings))["carbon"]["provider"]
    assert tables == [given[0], {"name": "watttime", "user": "me"}]
    path = write(tmp_path, f"[[carbon.provider]]\nname = 'electricity-maps'\nkey = 'file:{file}'\n")
    assert load([path], {}).config.carbon.provider == settings.config.carbon.provider[:1]
    file.unlink()
    with pytest.raises(ConfigError, match=f"carbon.provider electricity-maps: key: cannot read the file {file}: No"):
        load([path], {})


def test_a_token_in_a_file_and_what_beats_it(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("from-file\nsecond line\n", encoding="utf-8")
    settings = load(["--token", f"file:{file}"], {"CLOVER_TOKEN": "from-env"})
    assert settings.config.listen.token == "from-file"
    assert load(["--token", "from-line"], {"CLOVER_TOKEN": f"file:{file}"}).config.listen.token == "from-line"
    again = tomllib.loads(print_config(settings))
    assert again["listen"]["token"] == f"file:{file}"


@pytest.mark.parametrize("way", ["flag", "env", "file", "library"])
@pytest.mark.parametrize(
    ("content", "why"),
    [(None, "No such file or directory"), (b"\xff", "no text in UTF-8"), (b"", "is empty"), (b" \nsecond", "is empty")],
)
def test_a_secret_whose_file_does_not_hold_it(way: str, content: bytes | None, why: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    if content is not None:
        secret.write_bytes(content)
    token = f"file:{secret}"
    ways: dict[str, Callable[[], Any]] = {
        "flag": lambda: load(["--token", token], {}),
        "env": lambda: load([], {"CLOVER_TOKEN": token}),
        "file": lambda: load([write(tmp_path, f"[listen]\ntoken = '{token}'\n")], {}),
        "library": lambda: override(None, token=token),
    }
    with pytest.raises(ConfigError, match=f"^listen.token: .*the file {secret}.*{why}"):
        ways[way]()


# --- embedding ----------------------------------------------------------------------------------------------------


def test_override_by_name_key_and_family() -> None:
    config = override(None, ["a", "b"], port=0, slo_ms=5, log_level="debug", carbon="static:1", backends=("eager",))
    assert (config.listen.port, config.log.level, config.carbon.source) == (0, "debug", "static:1")
    assert config.workers.backends == ("eager",)
    assert [(family.family, family.slo_ms) for family in config.families] == [("a", 5.0), ("b", 5.0)]
    with pytest.raises(ConfigError, match="did you mean port"):
        override(None, prot=1)
    with pytest.raises(ConfigError, match="port must be"):
        override(None, port=-1)


def test_check_is_pure_and_passes_the_default() -> None:
    check(ServerConfig())
    with pytest.raises(ConfigError, match="no family"):
        check(ServerConfig(families=()))


@pytest.mark.parametrize(
    "device",
    [
        *("cpu", "nvidia", "nvidia:0", "nvidia:0,2", "nvidia:0-3", "nvidia:mig:0-3,6"),
        *("emulated:l4", "emulated:a100-40gb:10", "emulated:a100-40gb:8:0-3", "emulated:rtx-4090:2:1"),
    ],
)
def test_devices_that_there_may_be(device: str) -> None:
    assert load(["--device", device], {}).config.workers.device == device
    assert load([], {"CLOVER_DEVICE": device}).config.workers.device == device


@pytest.mark.parametrize(
    ("device", "text"),
    [
        ("", "give cpu, nvidia, nvidia:0,2, nvidia:0-3, nvidia:mig, mig:MIG-d7ac6ae6 or emulated"),
        ("gpu", "did you mean nvidia?"),
        ("cuda:0", "did you mean nvidia?"),
        ("nvdia", "did you mean nvidia"),
        ("nvidia:", "is no device"),
        ("nvidia:a", "is no device"),
        ("nvidia:0-", "is no device"),
        ("emulated:a100-40gb:8:", "is no device"),
        ("emulated:a100-40gb:", "is no device"),
        ("emulated:a100-40gb:0", "is no device"),
        ("emulated:../x:1", "is no device"),
        ("emulated:pod-a100", "is no device"),
        ("mig:", "is no device"),
        ("mig:GPU-1234", "is no device"),
        ("nvidia:mig:", "is no device"),
    ],
)
def test_devices_that_there_are_not(device: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        load(["--device", device], {})


def test_addresses_are_not_limited_on_gpus() -> None:
    with pytest.raises(ConfigError, match="leave it at 0"):
        load(["--device", "nvidia:0", "--memory-bytes", "1000000000"], {})
    assert load(["--memory-bytes", "1000000000"], {}).config.workers.memory_bytes == 1_000_000_000


def test_paces_belong_to_emulated_devices(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="leave one of them out"):
        load(["--pace", "p.json"], {})
    with pytest.raises(ConfigError, match="there is no file"):
        load(["--pace", str(tmp_path / "p.json"), "--device", "emulated:a100-40gb:1"], {})
    pace = tmp_path / "p.json"
    pace.write_text("{}", encoding="utf-8")
    assert load(["--pace", str(pace), "--device", "emulated:a100-40gb:1"], {}).config.workers.pace == str(pace)


# --- round trips --------------------------------------------------------------------------------------------------

_FREE = [
    setting
    for setting in SETTINGS
    if setting.key
    not in {
        "listen.host",
        "listen.control",
        "listen.token",
        "listen.tls_cert",
        "listen.tls_key",
        "workers.device",
        "workers.pace",
        "workers.cores",
        "workers.backends",
        "families.resident",
        "carbon.trace_start",
        "carbon.provider",
        "otel.endpoint",
        "families.family",
        "families.name",
        "ledger.name",
        "families.queue_rows",
    }
]
"""Settings whose value is bound by no rule with another."""

_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


def values_of(setting: Setting) -> st.SearchStrategy[Any]:
    limits = setting.limits or msgspec.Meta()
    if setting.choices:
        base: st.SearchStrategy[Any] = st.sampled_from(setting.choices)
    elif setting.base is bool:
        base = st.booleans()
    elif setting.base is int:
        low = limits.ge if limits.ge is not None else 0
        base = st.integers(int(low), int(limits.le) if limits.le is not None else 2**40)
    elif setting.base is float:
        base = st.floats(
            float(limits.ge if limits.ge is not None else limits.gt or 0),
            float(limits.le if limits.le is not None else limits.lt or 1e9),
            exclude_min=limits.ge is None,
            exclude_max=limits.le is None,
        )
    elif typing.get_origin(setting.base) is tuple:
        base = st.lists(_TEXT, max_size=3)
    else:
        base = _TEXT
    return base


@pytest.mark.slow
@hypothesis_settings(max_examples=examples(60), deadline=None)
@given(
    st.fixed_dictionaries({}, optional={setting.name: values_of(setting) for setting in _FREE}).filter(
        lambda values: not 0.0 < (values.get("accuracy_floor") or 0.0) < 1.0  # refused: meant as a fraction
    )
)
def test_printed_configuration_reads_back_as_itself(tmp_path_factory: Any, values: dict[str, Any]) -> None:
    config = override(None, ["fashion"], **values)
    origins = dict.fromkeys(load([], {}).origins, "default")
    text = print_config(Settings(config, origins))
    path = tmp_path_factory.mktemp("round") / "clover.toml"
    path.write_text(text, encoding="utf-8", newline="")
    assert load([str(path)], {}).config == config


def test_no_hint_is_sought_for_a_long_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """Words come from clients too, and the search takes time with their length."""
    assert did_you_mean("prot", ["port"]) == " (did you mean port?)"
    monkeypatch.setattr("difflib.get_close_matches", lambda *given, **others: pytest.fail("it was sought"))
    assert did_you_mean("port" * 1000, ["port"]) == ""


@hypothesis_settings(max_examples=examples(60), deadline=None)
@given(st.sampled_from([s for s in _FREE if s.base in (int, float, bool) or s.choices]), st.data())
def test_flag_and_variable_mean_the_same(setting: Setting, data: st.DataObject) -> None:
    value = data.draw(values_of(setting))
    text = str(value).lower() if isinstance(value, bool) else str(value)
    by_flag = load([f"{setting.flag}={text}"], {}).config
    assert by_flag == load([], {setting.env: text}).config == override(None, **{setting.name: value})


# --- tenants ----------------------------------------------------------------------------------------------------------

DIGEST = "ab" * 32


def tenants_of(tmp_path: Path, text: str) -> Settings:
    path = tmp_path / "clover.toml"
    path.write_text(text, encoding="utf-8")
    return load([str(path)], {})


def test_tenants_are_tables_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "b.token").write_text("from-a-file\nand no more\n")
    found = tenants_of(
        tmp_path,
        f"""
        [[tenant]]
        name = "acme"
        token_sha256 = "{DIGEST}"
        rate = 5
        burst = 20
        priority = 3
        min_accuracy = 90
        timeout_ms = 250
        [[tenant]]
        name = "b"
        token = "file:{tmp_path / "b.token"}"
        may_control = true
        """,
    )
    acme, b = found.config.tenants
    assert (acme.rate, acme.burst, acme.priority, acme.min_accuracy, acme.timeout_ms) == (5.0, 20, 3, 90.0, 250.0)
    assert (b.token, b.rate, b.priority, b.may_control) == ("from-a-file", 0.0, 1, True)
    text = print_config(found)
    assert "from-a-file" not in text
    assert DIGEST not in text
    assert f'token = "file:{tmp_path / "b.token"}"' in text


def test_embedded_tenants_may_have_tokens_in_files(tmp_path: Path) -> None:
    (tmp_path / "b.token").write_text("from-a-file\n")
    config = ServerConfig(tenants=(TenantConfig(name="b", token=f"file:{tmp_path / 'b.token'}"),))
    assert override(config).tenants[0].token == "from-a-file"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("[tenant]\nname = 'a'", "tenants must be tables, each under [[tenant]]"),
        ("[[tenant]]\ntoken = 'a'", "tenant.0 has no name"),
        ("[[tenant]]\nname = 'a'\ntokn = 'a'", "unknown key tenant.tokn (did you mean token?)"),
        ("[[tenant]]\nname = 'a'", "tenant a: give token or token_sha256"),
        (f"[[tenant]]\nname = 'a'\ntoken = 't'\ntoken_sha256 = '{DIGEST}'", "and only one"),
        ("[[tenant]]\nname = 'a b'\ntoken = 't'", "must be 1 to 128 of A-Z a-z 0-9 . _ -"),
        ("[[tenant]]\nname = ''\ntoken = 't'", "must be 1 to 128 of A-Z a-z 0-9 . _ -"),
        ("[[tenant]]\nname = 'a'\ntoken = 't u'", "printable ASCII without spaces"),
        ("[[tenant]]\nname = 'a'\ntoken_sha256 = 'xy'", "64 hexadecimal digits"),
        ("[[tenant]]\nname = 'a'\ntoken = 't'\nburst = 4", "burst 4 without a rate"),
        ("[[tenant]]\nname = 'a'\ntoken = 't'\nmin_accuracy = 0.9", "min_accuracy 0.9 is in percent: for 90 % it is"),
        ("[[tenant]]\nname = 'a'\ntoken = 't'\npriority = 101", "tenant.priority must be an integer >= 1 and <= 100"),
        ("[[tenant]]\nname = 'a'\ntoken = 't'\nrate = -1", "tenant.rate must be a number >= 0"),
        ("[[tenant]]\nname = 'a'\ntoken = 5", "tenant.token must be a string"),
        ("[[tenant]]\nname = 'a'\ntoken = 't'\n[[tenant]]\nname = 'a'\ntoken = 'u'", "two tenants are called 'a'"),
        ("[[tenant]]\nname = 'a'\ntoken = 't'\n[[tenant]]\nname = 'b'\ntoken = 't'", "is another tenant's"),
        ("[listen]\ntoken = 't'\n[[tenant]]\nname = 'b'\ntoken = 't'", "or listen.token: use another"),
        (
            "[[tenant]]\nname = 'b'\ntoken = 'file:/nowhere/at/all'",
            "tenant b: token: cannot read the file",
        ),
    ],
)
def test_tenants_that_cannot_be_used(tmp_path: Path, text: str, error: str) -> None:
    with pytest.raises(ConfigError) as raised:
        tenants_of(tmp_path, text)
    assert error in str(raised.value)
    assert DIGEST not in str(raised.value)


def test_how_many_variants_a_worker_holds() -> None:
    most = {text: load(["--resident", text], {}).config.families[0].most_resident(5) for text in ("off", "3", "9")}
    assert (most, load([], {}).config.families[0].most_resident(5)) == ({"off": 1, "3": 3, "9": 5}, 5)
    for text in ("", "0", "-1", "all", "2.5"):
        with pytest.raises(ConfigError, match="must be auto, off or a number from 1"):
            load([f"--resident={text}"], {})


def test_tenants_are_bounded_and_their_tokens_open_a_bind(tmp_path: Path) -> None:
    text = "".join(f"[[tenant]]\nname = 't{i}'\ntoken = 't{i}'\n" for i in range(MOST_TENANTS))
    assert len(tenants_of(tmp_path, text + "[listen]\nhost = '0.0.0.0'\n").config.tenants) == MOST_TENANTS
    with pytest.raises(ConfigError, match="257 tenants are configured: a server has at most 256"):
        tenants_of(tmp_path, text + "[[tenant]]\nname = 'one-more'\ntoken = 'x'\n")


# --- tokens -----------------------------------------------------------------------------------------------------------


def with_tokens(tmp_path: Path, text: str) -> ServerConfig:
    path = tmp_path / "tokens.toml"
    path.write_text(text, encoding="utf-8")
    return load([str(path)], {}).config


def test_tokens_are_read_with_their_files_and_are_never_shown(tmp_path: Path) -> None:
    (tmp_path / "ops").write_text("ops-1\nnot this\n", encoding="utf-8")
    text = f"[[token]]\nname = 'ops'\ntoken = 'file:{tmp_path}/ops'\nscopes = ['control']\n"
    text += "[[token]]\nname = 'app'\ntoken = 'app-1'\n"
    found = with_tokens(tmp_path, text)
    assert [(one.name, one.token, one.scopes) for one in found.tokens] == [
        ("ops", "ops-1", ("control",)),
        ("app", "app-1", ("infer", "read")),
    ]
    shown = print_config(load([str(tmp_path / "tokens.toml")], {}))
    assert "[[token]]" in shown
    assert "ops-1" not in shown + repr(found)
    assert "app-1" not in shown + repr(found)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name = 'a'", "give token or token_sha256"),
        ("name = 'a'\ntoken = 'x y'", "printable ASCII"),
        ("name = 'a'\ntoken = 'x'\nscopes = ['inferr']", "there is no scope 'inferr' (did you mean infer?)"),
        ("name = 'a'\ntoken = 'x'\nscopes = []", "permits nothing"),
        ("name = 'a'\ntoken = 'x'\nrate = 3", "unknown key token.rate"),
        ("token = 'x'", "token.0 has no name"),
        ("name = 'a b'\ntoken = 'x'", "must be 1 to 128 of"),
        ("name = 'a'\ntoken = 'x'\n[[token]]\nname = 'a'\ntoken = 'y'", "two tokens are called 'a'"),
        ("name = 'a'\ntoken = 'x'\n[[token]]\nname = 'b'\ntoken = 'x'", "its token is another token's"),
        ("name = 'a'\ntoken = 'x'\n[listen]\ntoken = 'x'", "or listen.token"),
        ("name = 'a'\ntoken = 'x'\n[[tenant]]\nname = 't'\ntoken = 'x'", "its token is another token's, or"),
    ],
)
def test_tokens_that_cannot_be_used_are_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        with_tokens(tmp_path, f"[[token]]\n{text}\n")
    assert said in str(caught.value)


def test_a_token_is_enough_for_an_open_bind(tmp_path: Path) -> None:
    open_bind = "[listen]\nhost = '0.0.0.0'\n"
    assert with_tokens(tmp_path, open_bind + "[[token]]\nname = 'a'\ntoken = 'x'\n").listen.host == "0.0.0.0"
    with pytest.raises(ConfigError, match="set a token"):
        with_tokens(tmp_path, open_bind)
