"""What may go wrong between here and a provider, for every one: an error that says what it was, bounded in time."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clover.carbon import build_source
from clover.carbon.providers import PROVIDERS
from clover.carbon.providers.http import ApiClient, Bounds, check_url, proxy_of, proxy_secrets, retry_after, words_of
from clover.config import CarbonConfig, ProviderConfig
from clover.errors import CarbonError, ConfigError
from tests.support.carbon_server import KEY, NOW_S, PASSWORD, TOKEN, Answer, CarbonServer, Request, bomb

HTML = b"<!doctype html><html><head><title>502</title></head><body>Bad Gateway</body></html>"
Fault = Callable[[Request], Answer | None]

# name: the answer, the kind of the error, what it says, and how many requests were made (a passing fault: two)
FAULTS: dict[str, tuple[Answer, str, str, int]] = {
    "hang": (Answer(manner="hang"), "timeout", "took longer than 0.1 s", 1),
    "drip": (Answer(declared=900, manner="drip"), "timeout", "took longer than 0.1 s", 1),
    "reset": (Answer(manner="reset"), "cut", "closed the connection without an answer", 2),
    "truncated": (Answer(b'{"data": [', declared=900), "cut", "broke off", 2),
    "shorter than it is": (Answer(b'{"data": [], "records": []}', declared=9), "http|answer", "is no|is not", 1),
    "longer than it is": (Answer(b"{}", declared=5 << 40), "size", "more than 1000 bytes", 1),
    "huge": (Answer(b"[" * 5000, declared=-1), "size", "more than 1000 bytes", 1),
    "a bomb": (bomb(10 << 20), "size", "more than 1000 bytes", 1),
    "no gzip": (Answer(b"plain", headers={"Content-Encoding": "gzip"}), "cut", "broke off", 2),
    "no HTTP": (Answer(b"220 mail.example ESMTP\r\n", manner="raw"), "http", "no valid HTTP", 1),
    "no JSON": (Answer(b"{'data': 1}"), "answer", "not what its API documents", 1),
    "empty": (Answer(b""), "answer", "it is empty|holds no value", 1),
    "a number": (Answer(b"250"), "answer", "not what its API documents", 1),
    "deep": (Answer(b'{"data":' + b"[" * 900), "answer", "not what its API documents", 1),
    "HTML": (Answer(HTML, headers={"Content-Type": "text/html"}), "answer", "an HTML page", 1),
    "bad gateway": (Answer(HTML, 502), "status", "answers 502 Status: an HTML page", 2),
    "unavailable": (Answer(b"", 503, {"Retry-After": "120"}), "status", "answers 503", 1),
    "too many": (Answer(b'{"error":"slow down"}', 429, {"Retry-After": "77"}), "rate", "429 Status: slow down", 1),
    "bad request": (Answer(b'{"error":{"code":"400 Bad Request","message":"Nope."}}', 400), "refused", "Nope", 1),
    "unauthorised": (Answer(b'{"error":"Unauthorized","message":"Not in your plan"}', 401), "refused", "your plan", 1),
    "no such path": (Answer(b"not \x1b[31mhere", 404), "refused", r"not \\x1b\[31mhere", 1),
    "elsewhere": (Answer(b"", 302, {"Location": "https://evil.example/x"}), "status", "redirect to evil.example", 1),
}


async def no_pause(seconds: float) -> None:
    assert 0.25 <= seconds <= 0.75


def fails(providers: tuple[ProviderConfig, ...], name: str, **bounds: Any) -> CarbonError:
    """The error of the source of a provider."""
    settings = CarbonConfig(provider=providers)
    source = build_source(PROVIDERS[name].example, settings, bounds=Bounds(pause=no_pause, **bounds))
    with pytest.raises(CarbonError) as caught:
        asyncio.run(source.read(NOW_S))
    text = str(caught.value)
    assert text.startswith(f"{source.name}: ")
    assert text.isprintable()
    assert not any(secret in text for secret in (KEY, PASSWORD, TOKEN))
    assert len(text) < 500
    return caught.value


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", PROVIDERS)
def test_a_fault_is_an_error_that_says_what_it_was(server: CarbonServer, name: str, fault: str) -> None:
    answer, kind, text, asked = FAULTS[fault]
    server.fault = lambda request: answer
    begun_s = time.monotonic()
    slow = answer.manner in ("hang", "drip")
    error = fails(server.providers(), name, timeout_s=0.1 if slow else 20.0, body_bytes=1000)
    assert time.monotonic() - begun_s < 10.0
    assert re.fullmatch(kind, error.kind), error
    assert len([request for request in server.requests if request.path != "/login"]) in (
        (asked, 2 * asked) if name == "watttime" and error.status == 401 else (asked,)
    )
    assert re.search(text, str(error)), error
    assert error.refused == (kind == "refused")
    assert error.retry_after_s == {"unavailable": 120.0, "too many": 77.0}.get(fault, 0.0)


@pytest.mark.parametrize("name", PROVIDERS)
def test_a_name_that_does_not_resolve(server: CarbonServer, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    error = fails(server.providers("https://nowhere.invalid"), name)
    assert (error.kind, error.status) == ("dns", 0)
    assert "the name nowhere.invalid cannot be resolved: Name or service not known" in str(error)


@pytest.mark.parametrize("name", PROVIDERS)
def test_nobody_listens_or_the_wrong_one_does(server: CarbonServer, name: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]  # bound, and nothing listens
        error = fails(server.providers(f"http://127.0.0.1:{port}"), name)
    assert (error.kind, error.refused) == ("connect", False)
    assert "Connect call failed" in str(error) or "refused" in str(error).lower()
    plain = server.providers(server.url.replace("http:", "https:"))
    assert fails(plain, name).kind in ("tls", "connect", "timeout")  # it does not speak TLS


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
def test_a_certificate_that_nobody_vouches_for_is_refused(tmp_path: Path) -> None:
    cert, key = str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*made, *names, "-keyout", key, "-out", cert], check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)
    with CarbonServer(lambda: NOW_S, context) as server:
        error = fails(server.providers(), "electricity-maps")
        assert error.kind == "tls"
        assert "self-signed certificate" in str(error).replace("self signed", "self-signed")
        assert not server.requests


def test_a_key_in_the_words_of_the_provider_is_masked(server: CarbonServer) -> None:
    server.fault = lambda request: Answer(json.dumps({"message": f"unknown key {KEY}!"}).encode(), 401)
    assert str(fails(server.providers(), "electricity-maps")).endswith("answers 401 Status: unknown key ***!")


def test_a_wrong_key_and_a_wrong_password_are_refused_in_the_providers_words(server: CarbonServer) -> None:
    config = server.providers(electricity_maps="wrong-key", watttime="wrong-pass")
    first, second = (fails(config, name) for name in ("electricity-maps", "watttime"))
    assert first.refused
    assert str(first).endswith("answers 401 Status: Unauthorized: Invalid auth-token")
    assert second.refused
    assert str(second).endswith("answers 401 Status: Invalid credentials")


def test_a_login_without_a_token_is_an_error(server: CarbonServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_document", lambda request: Answer(b'{"token":"two\\r\\nlines"}'))
    assert "the login gives no token" in str(fails(server.providers(), "watttime"))


# --- parts of the client ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "wait_s"),
    [("120", 120.0), ("0", 0.0), ("999999", 3600.0), ("Wed, 21 Oct 2026 07:28:00 GMT", 30.0), ("soon", 0.0), ("", 0.0),
     ("-5", 0.0), ("Mon, 01 Jan 2001 00:00:00 GMT", 0.0)],
)  # fmt: skip
def test_retry_after_is_seconds_or_a_date(text: str, wait_s: float) -> None:
    assert retry_after(text, 1_792_567_650.0) == wait_s


def test_a_date_of_retry_after_without_a_zone_is_utc_wherever_this_machine_stands(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    try:
        monkeypatch.setenv("TZ", "America/New_York")
        time.tzset()
        assert retry_after("Wed Oct 21 07:28:00 2026", 1_792_567_650.0) == 30.0
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ('{"error":"A","message":"B"}', "A: B"),
        ('{"message":"A","error":"A"}', "A"),
        ('{"error":{"code":"400 Bad Request","message":"Nope"}}', "Nope: 400 Bad Request"),
        ('{"title":"T","detail":"D","status":400}', "D: T"),
        ("  plain\n words ", "plain words"),
        ("<html>", "an HTML page"),
        ("[" * 100_000, "[" * 200 + "..."),
        ("{}", ""),
        ("", ""),
    ],
)
def test_the_words_of_an_error(body: str, words: str) -> None:
    assert words_of(body) == words


@pytest.mark.parametrize(
    "url",
    ["http://example.org", "ftp://127.0.0.1", "https://", "example.org", "https://u:p@example.org", "https://h/?k=v",
     "https://h/#x", "https://h:99999", "https://h/a b", "https://h/\n"],
)  # fmt: skip
def test_addresses_that_are_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="the url of neso must") as caught:
        check_url(url, "the url of neso")
    assert ":p@" not in str(caught.value)


def test_addresses_that_are_taken() -> None:
    for url in ("https://mirror.example/a", "http://127.0.0.1:80", "http://localhost", "http://[::1]:8080"):
        assert check_url(url + "/", "x") == url


def test_proxies_of_the_environment_and_never_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert proxy_of("https://a.example") is None
    monkeypatch.setenv("https_proxy", "proxy.example:3128")
    monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("no_proxy", "b.example")
    assert proxy_of("https://a.example/x") == "http://proxy.example:3128"
    assert proxy_of("https://b.example") is None
    assert proxy_of("http://127.0.0.1:1") is None
    assert proxy_of("http://localhost:1") is None


@pytest.mark.parametrize(
    "proxy",
    ["http://user:hunter2@127.0.0.1:abc", "user:hunter2@127.0.0.1:99999", "socks5://user:hunter2@127.0.0.1:1080",
     "http://user:hunter2@", "http://user:hunter2@[127", "http://user:hun/ter2@127.0.0.1:1", "http://hunter2 @h:1"],
)  # fmt: skip
def test_a_proxy_that_cannot_be_used_is_not_quoted(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", proxy)
    monkeypatch.setenv("no_proxy", "")
    client = ApiClient("neso", "https://a.example")
    with pytest.raises(CarbonError) as caught:
        asyncio.run(client.get("/intensity"))
    assert str(caught.value) == (
        "neso: HTTPS_PROXY is not a URL as http://host:port; it is not quoted, since it may hold a password"
    )
    assert caught.value.kind == "connect"


def test_the_password_of_a_proxy_is_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("https_proxy", f"http://user:h%75nter2@127.0.0.1:{taken.getsockname()[1]}")
        monkeypatch.setenv("no_proxy", "")
        client = ApiClient("neso", "https://a.example", bounds=Bounds(pause=no_pause))
        with pytest.raises(CarbonError, match=r"no connection to a\.example"):
            asyncio.run(client.get("/intensity"))
    assert str(client.fails("hunter2, h%75nter2, user:h%75nter2", "http")) == "neso: ***, ***, ***"
    monkeypatch.setenv("https_proxy", "http://only-a-token@127.0.0.1:1")
    assert "only-a-token" in proxy_secrets(str(proxy_of("https://a.example")))
