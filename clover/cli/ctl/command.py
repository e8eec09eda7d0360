"""The command `ctl`: its verbs become one HTTP request each, and the answer an exit code."""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import ssl
import sys
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clover import terminal
from clover.cli import CommandParser, CommandRefused
from clover.cli.ctl.answers import show
from clover.cli.progress import Progress
from clover.config import RolloutConfig
from clover.errors import ConfigError, no_certificate, untrusted
from clover.hints import did_you_mean, program
from clover.settings.secrets import read_secret
from clover.telemetry import dashboards
from clover.unix_http import UnixConnection
from clover.verbs import INPUTS, TARGETS, VERBS, PlanCommand, SetCommand, arguments

DEFAULT_URL = "http://127.0.0.1:8080"
_WIDTH = 140
"""Columns if standard output is no terminal."""

_TIMEOUT_S = 150.0
"""A change waits for workers to start; longer than `workers.start_s` twice."""

_ROLLOUT = tuple(name for name in RolloutConfig.__struct_fields__ if name != "root")
_SETTABLE = {name: arguments(SetCommand)[name].kind for name in SetCommand.changes}
_PLANNABLE = {name: arguments(PlanCommand)[name].kind for name in (*TARGETS, *INPUTS)}
_CHANGE_NOTHING = ("state", "tenants", "decisions", "audit", "plan", "set")
"""Verbs after which there is nothing to undo."""
_GROUP = re.compile(r"(?P<variant>[A-Za-z0-9._/-]+)@(?P<profile>[A-Za-z0-9._-]+?)(?:x(?P<count>\d{1,4}))?")


class Unreachable(Exception):
    """The server cannot be reached, or what answers is not Clover."""


def main(argv: Sequence[str] | None = None, environ: Mapping[str, str] | None = None) -> int:
    """Run the command and return its exit code."""
    environment = os.environ if environ is None else environ
    parser, verbs = _parser()
    common = {"token": "", "cacert": "", "json": False}
    common["url"] = environment.get("CLOVER_URL", DEFAULT_URL)
    try:
        given, unknown = parser.parse_known_args(argv, argparse.Namespace(**common))
        if unknown:
            if given.verb == "base" and unknown == ["--off"]:
                verbs["base"].error("base takes no --off: BASE is a pin, which `pin --off` lifts")
            verbs[given.verb].refuse(unknown)
    except SystemExit as stop:
        return int(stop.code or 0)
    if given.verb == "dashboards":
        return _export(given)
    try:
        method, path, body = request_of(given)
        origin = "--token" if given.token else "CLOVER_TOKEN"
        token = read_secret(given.token or environment.get("CLOVER_TOKEN", ""), origin)
        with Progress("ctl", f"waiting for {awaited(given.verb, body)}"):
            answer = call(given.url, method, path, body, token=token, cacert=given.cacert)
        if given.verb == "state" and given.model:
            answer = only(answer, given.model)
    except (ConfigError, ValueError, OSError) as error:
        print(f"clover ctl: {error}", file=sys.stderr)
        return 2
    except Unreachable as error:
        print(f"clover ctl: {error}", file=sys.stderr)
        return 3
    except CommandRefused as error:
        print(f"clover ctl: {error} ({error.status})", file=sys.stderr)
        return 3 if error.status >= 500 and error.status != 503 else 1
    if given.json:
        print(json.dumps(answer, indent=1, ensure_ascii=False))
    else:
        everything = getattr(given, "all", False)
        console = terminal.console(_WIDTH)
        with console.capture() as shown:
            show(given.verb, answer, console, everything=everything)
        for line in shown.get().splitlines():
            print(line.rstrip())  # the cells of a table are as wide as their column
        if note := note_on(given, answer):
            print(note)
    return 0


# --- the command line ---------------------------------------------------------------------------------------------


def _parser() -> tuple[CommandParser, dict[str, CommandParser]]:
    """Return the command's parser, and that of each verb."""
    # Before the verb or after it: what is not given must not hide what was given in the other place.
    common = CommandParser(add_help=False, argument_default=argparse.SUPPRESS)
    common.add_argument(
        "--url", help=f"http(s)://HOST:PORT, or unix:PATH of the control socket [CLOVER_URL, or {DEFAULT_URL}]"
    )
    common.add_argument("--token", help="bearer token; file:PATH takes the first line of a file; also CLOVER_TOKEN")
    common.add_argument("--cacert", metavar="FILE", help="PEM certificate to trust, for https")
    common.add_argument("--json", action="store_true", help="print the server's answer as JSON")
    about_all = "Show what a running Clover server does, and steer its controller."
    parser = CommandParser(prog=f"{program()} ctl", description=about_all, parents=[common])
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, about: str = "", *, changes: bool = True) -> CommandParser:
        command = VERBS.get(name)
        about = about or (command.help if command is not None else "")
        made = verbs.add_parser(name, help=about, description=f"{about[:1].upper()}{about[1:]}.", parents=[common])
        if changes or name == "state":
            made.add_argument("--model", default="", help="the family, by the name that clients use")
        if changes:
            made.add_argument("--dry-run", action="store_true", help="show what would be done, and change nothing")
        if command is not None and "force" in arguments(command):
            made.add_argument(
                "--force",
                action="store_true",
                help="do it even if it is predicted to break the accuracy floor or the SLO",
            )
        return made

    about = "show health, energy, carbon and savings, whether targets are held, what runs where, the grid"
    state = verb("state", about, changes=False)
    state.add_argument("--all", action="store_true", help="print everything that the server reports")
    verb("tenants", "show what each tenant may send, what it sent and what that cost", changes=False)
    decisions = verb("decisions", "list the newest decisions with their reasons", changes=False)
    decisions.add_argument("-n", "--limit", type=int, default=20, metavar="N", help="how many [20]")
    audit = verb("audit", "list the newest calls that changed the server, refused ones included", changes=False)
    audit.add_argument("-n", "--limit", type=int, default=20, metavar="N", help="how many [20]")
    pin = verb("pin")
    pin.add_argument(
        "what",
        nargs="*",
        metavar="VARIANT | VARIANT@PROFILE[xN]",
        help="small; or workers, as small@1cx2 large@2c; large/small@1c is a worker that serves both",
    )
    pin.add_argument("--off", action="store_true", help="let the controller choose again")
    freeze = verb("freeze")
    freeze.add_argument("word", nargs="?", default="", help=argparse.SUPPRESS)
    freeze.add_argument("--off", action="store_true", help="let the controller plan again")
    guard = verb("guard")
    guard.add_argument("what", metavar="reset", choices=["reset"], help="forget what was seen so far")
    inputs = f"workers to run, as small@1cx2, and inputs to plan with: {', '.join(_PLANNABLE)}"
    for name in ("plan", "apply"):
        verb(name).add_argument("words", nargs="*", metavar="VARIANT@PROFILE[xN] | KEY=VALUE", help=inputs)
    rollout = verb("roll-out", "try a new version of a model beside the stable one; show, promote or end a trial")
    rollout.add_argument(
        "words", nargs="*", metavar="[MODEL] FOLDER", help="the new version: a folder on the server's machine"
    )
    what = rollout.add_mutually_exclusive_group()
    for action, about in (
        ("status", "show the present roll-out, or the last one"),
        ("promote", "serve the new version now, whatever the tests say"),
        ("roll-back", "end the new version now"),
    ):
        what.add_argument(f"--{action}", action="store_const", const=action, dest="action", help=about)
    rollout.add_argument("--version", default="", help="version to serve it as [that of its family.toml]")
    for name in _ROLLOUT:
        flag = "--" + name.replace("_", "-")
        rollout.add_argument(flag, type=float, metavar="X", help=f"instead of the server's setting rollout.{name}")
    verb("base")
    change = verb("set", f"{SetCommand.help}: {', '.join(_SETTABLE)}")
    change.add_argument(
        "words",
        nargs="+",
        metavar="KEY=VALUE",
        help="as slo_ms=20 mode=observe; lambda is the weight of carbon, lambda=none derives it again",
    )
    about = "write a Grafana dashboard (JSON) and Prometheus recording and alerting rules (YAML); asks no server"
    export = verbs.add_parser("dashboards", help=about, description=f"{about[:1].upper()}{about[1:]}.")
    export.add_argument("--to", type=Path, default=Path(), metavar="FOLDER", help="folder to write to [.]")
    export.add_argument(
        "--docs",
        default=dashboards.DOCS,
        metavar="URL",
        help=f"what links from alerts to the documentation begin with [{dashboards.DOCS}]",
    )
    return parser, verbs.choices


def _export(given: argparse.Namespace) -> int:
    """Write the files of `ctl dashboards`; return 0, or 3 if a file cannot be written."""
    try:
        for path in dashboards.export(given.to, given.docs):
            print(path)
    except OSError as error:
        print(f"clover ctl dashboards: cannot write to {given.to}: {error.strerror}", file=sys.stderr)
        return 3
    return 0


def request_of(given: argparse.Namespace) -> tuple[str, str, dict[str, Any] | None]:
    """Return method, path and body of a command's request; ValueError if its arguments make no sense."""
    verb: str = given.verb
    if verb in ("state", "tenants"):
        return "GET", "/v2/clover/state", None
    if verb == "decisions":
        return "GET", f"/v2/clover/decisions?limit={given.limit}", None
    if verb == "audit":
        return "GET", f"/v2/clover/audit?limit={given.limit}", None
    body: dict[str, Any] = {}
    if given.model:
        body["model"] = given.model
    if given.dry_run:
        body["dry_run"] = True
    if getattr(given, "force", False):
        body["force"] = True
    if verb == "freeze":
        if given.word:
            instead = {"off": "freeze --off", "on": "freeze"}.get(given.word.lower())
            hint = f"{instead!r} is what you mean" if instead else "it is freeze, or freeze --off"
            raise ValueError(f"freeze takes no {given.word!r}: {hint}")
        body["on"] = not given.off
    elif verb == "guard":
        body["reset"] = True
    elif verb == "pin":
        if bool(given.what) == given.off:
            raise ValueError("pin takes a variant, a configuration, or --off")
        if given.off or "@" not in given.what[0]:
            if len(given.what) > 1:
                raise ValueError("pin takes one variant; a configuration reads VARIANT@PROFILE[xN] ...")
            body["variant"] = None if given.off else given.what[0]
        else:
            body["configuration"] = [_group(text) for text in given.what]
    elif verb in ("plan", "apply"):
        words = _joined(given.words, _PLANNABLE)
        pairs = [text for text in words if "=" in text]
        groups = [text for text in words if "=" not in text]
        body |= dict(_pair(text, _PLANNABLE) for text in pairs)
        if groups:
            body["configuration"] = [_group(text) for text in groups]
    elif verb == "roll-out":
        body |= _roll_out(given)
    elif verb == "set":
        body |= dict(_pair(text, _SETTABLE) for text in _joined(given.words, _SETTABLE))
    return "POST", f"/v2/clover/{verb}", body


def awaited(verb: str, body: Mapping[str, Any] | None) -> str:
    """Return in words what the answer to a request may take its time for."""
    if body is None or verb not in ("pin", "plan", "apply", "base", "set"):
        return "an answer"
    if verb == "plan" or body.get("dry_run"):
        return "the server to work out the plan: nothing is changed"
    return "the server to work out the plan and to start its workers"


def _roll_out(given: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of a roll-out; raises ValueError if they make no sense."""
    *models, last = given.words or [""]
    if given.action:
        if models or (last and given.model):
            raise ValueError(f"roll-out --{given.action} takes one model at most")
        return {"action": given.action} | ({"model": last} if last else {})
    if not last or len(models) > 1 or (models and given.model):
        raise ValueError(
            "roll-out takes a model and the folder of its new version; or --status, --promote, --roll-back"
        )
    body: dict[str, Any] = {"folder": os.path.abspath(os.path.expanduser(last))}
    if models:
        body["model"] = models[0]
    if given.version:
        body["version"] = given.version
    return body | {name: getattr(given, name) for name in _ROLLOUT if getattr(given, name) is not None}


def _group(text: str) -> dict[str, Any]:
    match = _GROUP.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} must read VARIANT@PROFILE or VARIANT@PROFILExN, as small@1cx2")
    first, *others = match["variant"].split("/")
    group = {"variant": first, "profile": match["profile"], "count": int(match["count"] or 1)}
    return group | ({"beside": others} if others else {})


def _joined(words: Sequence[str], known: Mapping[str, type]) -> list[str]:
    """Return `words` with each key and the value that follows it joined as KEY=VALUE."""
    out: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        plain = word in known or word == "lam"
        out.append(f"{word}={rest.pop(0)}" if plain and rest and "=" not in rest[0] else word)
    return out


def _pair(text: str, known: Mapping[str, type]) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    key = "lambda" if key == "lam" else key
    if not equals and key in known:
        raise ValueError(f"{key} needs a value: {key}=VALUE")
    if not equals or key not in known:
        raise ValueError(f"{text!r} must read KEY=VALUE with KEY one of {', '.join(known)}{did_you_mean(key, known)}")
    if key == "lambda" and value.lower() in ("none", "null"):
        return key, None
    try:
        return key, known[key](value)
    except ValueError:
        raise ValueError(f"{key} takes a number, not {value!r}") from None


# --- the answer ---------------------------------------------------------------------------------------------------


def only(answer: Any, model: str) -> Any:
    """Return the state of one family, with what concerns all families; ValueError if there is no such family."""
    known = answer.get("models", {}) if isinstance(answer, dict) else {}
    if model not in known:
        raise ValueError(f"unknown model {model!r}, known: {', '.join(known)}{did_you_mean(model, known)}")
    out = answer | {"models": {model: known[model]}}
    totals = answer.get("totals")
    if isinstance(totals, dict) and model in totals.get("models", {}):
        out["totals"] = totals | {"models": {model: totals["models"][model]}}
    return out


def note_on(given: argparse.Namespace, answer: Any) -> str:
    """Return how long what was done lasts, and how it is undone; empty if that is plain."""
    if not isinstance(answer, dict) or answer.get("dry_run") or given.verb in _CHANGE_NOTHING:
        return ""
    undo = f" --model {given.model}" if given.model else ""
    if given.verb in ("base", "pin") and not getattr(given, "off", False):
        return f"pinned: no trigger changes it until `{program()} ctl pin --off{undo}`"
    if given.verb == "freeze" and not given.off:
        return f"nothing is planned until `{program()} ctl freeze --off{undo}`"
    if given.verb == "apply" and given.words:
        return "transient: at the next trigger the controller plans with what holds then; `pin` and `set` last"
    return ""


# --- the call -----------------------------------------------------------------------------------------------------


def call(
    url: str, method: str, path: str, body: dict[str, Any] | None, *, token: str = "", cacert: str = ""
) -> dict[str, Any] | list[Any]:
    """Send one request and return the decoded answer; ValueError for a bad URL, Unreachable, or CommandRefused."""
    connection = connect(url, cacert)
    headers = {"Accept": "application/json"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    data = None
    if body is not None:
        data = json.dumps(body).encode()
        headers["Content-Type"] = "application/json"
    try:
        connection.request(method, path, data, headers)
        response = connection.getresponse()
        text = response.read()
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        hint = untrusted(reason) or "; is the server running, and is --url right?"
        raise Unreachable(f"no answer from {url}: {reason}{hint}") from error
    finally:
        connection.close()
    try:
        answer: dict[str, Any] | list[Any] = json.loads(text)
    except (ValueError, RecursionError):
        raise Unreachable(f"{url} answered {response.status} with something that is not JSON: is it Clover?") from None
    if response.status != 200:
        message = answer.get("error", "") if isinstance(answer, dict) else ""
        raise CommandRefused(message or "the server refused", response.status)
    return answer


def connect(url: str, cacert: str) -> http.client.HTTPConnection:
    """Return a connection to a server, which is opened with the first request; ValueError for a bad URL."""
    if url.startswith("unix:"):
        return UnixConnection(url.removeprefix("unix:").removeprefix("//"), _TIMEOUT_S)
    parts = urllib.parse.urlsplit(url if "://" in url else f"http://{url}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"--url {url!r} must read http://HOST:PORT, https://HOST:PORT or unix:PATH")
    if parts.scheme == "https":
        try:
            context = ssl.create_default_context(cafile=cacert or None)
        except OSError as error:
            raise ValueError(no_certificate(cacert, error)) from error
        return http.client.HTTPSConnection(parts.hostname, parts.port, timeout=_TIMEOUT_S, context=context)
    return http.client.HTTPConnection(parts.hostname, parts.port, timeout=_TIMEOUT_S)
