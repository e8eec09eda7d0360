"""Trace files of carbon intensities: a source that can be asked about any time, or a ConfigError naming the file."""

from __future__ import annotations

import asyncio
import itertools
import math
from pathlib import Path

from clover.carbon.layouts import MAX_G_PER_KWH
from clover.carbon.trace import TraceOptions, TraceSource
from clover.errors import CarbonError, ConfigError
from tests.fuzz import engine

INSTRUMENTED = ("clover.carbon.trace", "clover.carbon.layouts")
_FOLDER = engine.scratch("trace")
PATH = Path(_FOLDER.name) / "trace.csv"

DICTIONARY = (
    *(b"datetime_utc,carbon_intensity_gco2_per_kwh\n", b"from,to,actual,forecast\n", b"Datetime (UTC),", b"Zone id,",
      b"(LCA)"),
    *(b"Carbon intensity gCO\xe2\x82\x82eq/kWh (direct),", b"2026-03-26T21:00Z,257\n", b"9999-12-31T23:59:59Z",
      b"nan", b"inf"),
    *(b"0001-01-01T00:00:00+23:59", b"null", b"\"", b"\n", b"\r\n", b";", b"\t", b"-0", b"1e-320", b'{"data":[',
      b'"from":', b'"to":'),
    *(b'"intensity":{"forecast":1,"actual":2}', b"\xef\xbb\xbf", b"[[[[[[", b"{{", b"2026-W13-4", b"5000.1", b"4999.9"),
)  # fmt: skip


def seeds() -> list[bytes]:
    """Return a small file of each layout."""
    hours = [f"2026-03-26T{hour:02}:00Z" for hour in range(20, 24)]
    two = "datetime_utc,carbon_intensity_gco2_per_kwh\n" + "".join(f"{at},{200 + i}\n" for i, at in enumerate(hours))
    maps = (
        "Datetime (UTC),Zone id,Carbon intensity gCO₂eq/kWh (direct),Carbon intensity gCO₂eq/kWh (LCA),Data estimated\n"
    )
    maps += "".join(f"{at[:-1]},DE,100,{200 + i},{i == 2}\n" for i, at in enumerate(hours))
    neso = "from,to,actual,forecast\n" + "".join(
        f"{a},{b},{'' if a > hours[1] else 100},120\n" for a, b in itertools.pairwise(hours)
    )
    slots = ",".join(
        f'{{"from":"{a}","to":"{b}","intensity":{{"forecast":9,"actual":8}}}}' for a, b in itertools.pairwise(hours)
    )
    return [
        two.encode(),
        two.replace("201", "").encode(),
        maps.encode(),
        neso.encode(),
        f'{{"data":[{slots}]}}'.encode(),
    ]


def check(data: bytes) -> str:
    """Read one file, and ask about times in it, before and after."""
    PATH.write_bytes(data)
    loop = len(data) % 3 == 0
    try:
        trace = TraceSource(PATH, TraceOptions(loop=loop))
    except ConfigError as error:
        text = str(error)
        assert text.startswith("carbon trace "), text
        assert len(text) < 2000, text
        assert text.isprintable(), repr(text)
        return f"refused: {text.replace(_FOLDER.name, '')}"
    assert math.isfinite(trace.start_s)
    assert trace.start_s < trace.end_s
    assert 0 < trace.step_s < math.inf
    found = []
    for at_s in (trace.start_s, (trace.start_s + trace.end_s) / 2, trace.end_s, trace.start_s - 1.0, trace.end_s + 1e6):
        found.append(asyncio.run(_asked(trace, at_s)))
    last = trace.last()
    return repr((found, last and last.g_per_kwh, trace.gaps))


async def _asked(trace: TraceSource, at_s: float) -> str:
    try:
        reading = await trace.read(at_s)
    except CarbonError:
        return "no value"
    assert 0.0 <= reading.g_per_kwh <= MAX_G_PER_KWH
    assert reading.age_s >= 0.0
    ahead = await trace.forecast(at_s, min(86400.0, 50 * trace.step_s))
    assert all(a.at_s < b.at_s for a, b in itertools.pairwise(ahead))
    return f"{reading.g_per_kwh} {len(ahead)}"
