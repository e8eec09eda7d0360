"""The text of HAProxy's configuration, and settings that would make a wrong or an unsafe one."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clover.cluster.ingress.config import (
    IngressOrigin,
    backends,
    check_every_ms,
    check_settings,
    description,
    render,
    server_words,
    split_url,
)
from clover.errors import ClusterError
from tests.support.ingress_fixture import settings, upstream


def sections(text: str) -> dict[str, list[str]]:
    """Return the lines of each section by its head."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if not line.startswith(" "):
            found[line] = []
        else:
            found[[*found][-1]].append(line.strip())
    return found


def test_each_origin_has_a_frontend_and_a_backend_of_its_own() -> None:
    found = sections(render(settings()))
    assert [*found][2:] == [
        *("frontend from_http_north", "frontend from_grpc_north", "frontend from_http_south"),
        *("backend http:north", "backend grpc:north", "backend http:south"),
        "backend answered_by",
    ]
    assert "http-request set-header x-clover-origin south" in found["frontend from_http_south"]
    assert "default_backend http:south" in found["frontend from_http_south"]
    assert "bind 127.0.0.1:9000 proto h2" in found["frontend from_grpc_north"]
    assert not [line for line in render(settings()).splitlines() if line.startswith("  server ")]


def test_nodes_and_weights_that_it_begins_with() -> None:
    nodes = [upstream("a"), upstream("b", grpc_host="", grpc_port=0)]
    found = sections(render(settings(), nodes, {"http:north": {"a": 7}, "grpc:north": {"a": 7}}))
    for backend, lines in (("http:north", {"a": "7", "b": "0"}), ("grpc:north", {"a": "7"}), ("http:south", None)):
        servers = [line.split() for line in found[f"backend {backend}"] if line.startswith("server ")]
        assert {words[1]: words[-1] for words in servers} == (lines or {"a": "0", "b": "0"})


def test_the_digest_is_of_the_settings_and_not_of_the_nodes() -> None:
    bare = description(render(settings()))
    assert re.fullmatch(r"clover-ingress-[0-9a-f]{16}", bare)
    assert description(render(settings(), [upstream()])) == bare
    assert description(render(settings(retries=1))) != bare


def test_a_body_of_the_longest_that_is_sent_again_fits_into_the_buffer() -> None:
    text = render(settings(body_bytes=1 << 20))
    size = int(re.search(r"tune\.bufsize (\d+)", text)[1])  # type: ignore[index]
    assert size >= (1 << 20) + (32 << 10) + 1024


def test_families_have_backends_beside_the_origins() -> None:
    both = settings(families=("fashion", "toy.v2"))
    assert [one.name for one in backends(both)][:3] == ["http:north", "http:north:fashion", "http:north:toy.v2"]
    lines = sections(render(both))["frontend from_http_south"]
    chosen = [line for line in lines if line.startswith("use_backend http:south:toy.v2 ")]
    assert "use_backend http:south:toy.v2 if { path_beg /v2/models/toy.v2/ }" in chosen
    assert lines.index("http-request set-header x-clover-origin south") < lines.index(chosen[0])


def test_checks_become_rarer_with_the_number_of_servers() -> None:
    assert check_every_ms(settings(nodes=10)) == 1000
    assert check_every_ms(settings(nodes=10_000)) == 10_000 * 3 * 1000 // 2000


def test_a_token_stays_out_of_the_file() -> None:
    text = render(settings(token="file:/etc/clover/token"))
    assert 'hdr Authorization "Bearer ${CLOVER_INGRESS_TOKEN}"' in text
    assert "/etc/clover/token" not in text


def test_nodes_with_tls_are_verified() -> None:
    safe = settings(ca_file="/etc/ca.pem")
    words = server_words(safe, upstream(secure=True), 1, grpc=False)
    assert "ssl verify required ca-file /etc/ca.pem check-ssl" in words
    words = server_words(safe, upstream(secure=True), 1, grpc=True)
    assert "alpn h2 check-alpn http/1.1" in words
    assert "  server none 127.0.0.1:1 ssl verify required ca-file /etc/ca.pem disabled" in render(safe).splitlines()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"origins": ()}, "nothing to listen on"),
        ({"origins": (IngressOrigin(name="a"),)}, "nothing to listen on"),
        ({"origins": (IngressOrigin(name="a b", listen=":80"),)}, "the origin 'a b'"),
        ({"origins": (IngressOrigin(name="a:b", listen=":80"),)}, "the origin 'a:b'"),
        ({"origins": (IngressOrigin(name="a", listen="here:0"),)}, "cannot listen on 'here:0'"),
        ({"origins": (IngressOrigin(name="a", listen="h:1 ssl crt x"),)}, "cannot listen on"),
        ({"origins": (IngressOrigin(name="a", listen="h:1", listen_grpc="h:1"),)}, "are the same"),
        ({"origins": (IngressOrigin(name="a", listen="h:1"), IngressOrigin(name="a", listen="h:2"))}, "the same name"),
        ({"listen_metrics": "127.0.0.1:8080"}, "are the same"),
        ({"listen_metrics": "here"}, "cannot listen on 'here'"),
        ({"families": ("a", "a")}, "named twice"),
        ({"families": ("a }",)}, "the family 'a }'"),
        ({"tls_cert": "a\nglobal"}, "paths of the ingress"),
        ({"ca_file": "a b"}, "paths of the ingress"),
        ({"allowed_hosts": ("a b",)}, "no host name"),
        ({"body_bytes": 10}, "body_bytes"),
    ],
)
def test_settings_that_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ClusterError, match=message):
        check_settings(settings(**changes))


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("http://10.0.0.1:8080", ("10.0.0.1", 8080, False)),
        ("https://node-1.example:8443/", ("node-1.example", 8443, True)),
        ("http://[::1]:80", ("::1", 80, False)),
        ("https://node", ("node", 443, True)),
        ("10.0.0.1:9000", ("10.0.0.1", 9000, False)),
    ],
)
def test_urls_of_nodes(url: str, parts: tuple[str, int, bool]) -> None:
    assert split_url(url) == parts


@pytest.mark.parametrize(
    "url", ["", "http://", "ftp://a:1", "http://a:0", "a", "http://a:99999", "http://a b:1", "x://["]
)
def test_what_is_no_url_of_a_node(url: str) -> None:
    with pytest.raises(ClusterError, match=r"address of a node|has no port"):
        split_url(url)


TEXTS = st.text(max_size=12) | st.sampled_from(["a;b", "a\n  server x", "a#", '"', "${HOME}", "a b"])


@given(TEXTS, TEXTS, TEXTS, TEXTS)
def test_no_setting_adds_a_line(origin: str, family: str, host: str, path: str) -> None:
    """Whatever is given is refused, or stands in the words where it belongs."""
    changes: dict[str, Any] = {
        "origins": (IngressOrigin(name=origin, listen="127.0.0.1:80"),),
        "families": (family,),
        "allowed_hosts": (host,),
        "tls_cert": path,
    }
    same = {**changes, "origins": (IngressOrigin(name="o", listen="127.0.0.1:80"),), "families": ("f",)}
    try:
        text = render(settings(**changes))
    except ClusterError:
        return
    plain = render(settings(**{**same, "allowed_hosts": ("h",), "tls_cert": "p" if path else ""}))
    assert [line.split()[:1] for line in text.splitlines()] == [line.split()[:1] for line in plain.splitlines()]
