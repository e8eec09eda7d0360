"""Takes the picture of the dashboard that the README shows: serves `fashion` for a while under a changing load.

    python docs/dashboard.py [--seconds 150] [--out docs/dashboard.png]

Needs playwright and Chromium (Debian: apt-get install chromium).
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import shutil
import sys
import threading
import time
import urllib.request
from pathlib import Path

import clover
from clover import families

HERE = Path(__file__).resolve().parent
WIDTH, HEIGHT = 1360, 1290
CLIENTS = 4


def ask(url: str, ended: threading.Event) -> None:
    """Send one row of the evaluation set after the other, at a rate that rises and falls, until `ended`."""
    (images,), _ = families.load_evaluation(families.load_family("fashion"), "held_out")
    begun = time.monotonic()
    for image in itertools.cycle(images):
        if ended.is_set():
            return
        tensor = {"name": "image", "shape": [1, *image.shape], "datatype": "FP32", "data": image.ravel().tolist()}
        body = json.dumps({"inputs": [tensor]}).encode()
        with urllib.request.urlopen(f"{url}/v2/models/fashion/infer", body, timeout=30) as answer:
            answer.read()
        rate = 45.0 + 30.0 * math.sin((time.monotonic() - begun) / 12.0)
        ended.wait(1.0 / rate)


def main() -> int:
    """Serve, wait, take the picture; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=150.0, help="how long to serve before the picture is taken")
    parser.add_argument("--out", type=Path, default=HERE / "dashboard.png")
    given = parser.parse_args()
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        print("docs/dashboard.py needs playwright: pip install playwright", file=sys.stderr)
        return 2
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        print("docs/dashboard.py needs Chromium (Debian: apt-get install chromium)", file=sys.stderr)
        return 2
    ended = threading.Event()
    with clover.Server("fashion", port=0) as server, sync_playwright() as playwright:
        asking = [threading.Thread(target=ask, args=(server.url, ended)) for _ in range(CLIENTS)]
        for client in asking:
            client.start()
        try:
            time.sleep(given.seconds)
            sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
            browser = playwright.chromium.launch(executable_path=chromium, args=sandbox)
            page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
            page.goto(f"{server.url}/dashboard")
            page.wait_for_selector(".model .chart .main-svg", timeout=60_000)
            page.wait_for_timeout(8_000)
            page.screenshot(path=given.out)
            browser.close()
        finally:
            ended.set()
            for client in asking:
                client.join()
    print(f"{given.out}: {given.out.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
