#!/usr/bin/env python
# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Measure in a headless browser how long the Space takes from a click to the pictures, and take a screenshot of it.

    make bench-space

The times are a visitor's: from before the click until the picture can be seen. The first is that of the first call after the start.
"""

import argparse
import contextlib
import json
import os
import platform
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request


APP = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "examples", "space", "app.py")
ARGUMENTS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
ARGUMENTS += "--disable-component-update --disable-sync"


def find_browser() -> str | None:
    """Find a Chromium on this machine."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@contextlib.contextmanager
def serve(log: str):
    """Start the Space on a free port of the loopback interface, from an empty folder; yield its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        "GRADIO_SERVER_NAME": "127.0.0.1",
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_ANALYTICS_ENABLED": "False",
    }
    with tempfile.TemporaryDirectory() as folder, open(log, "wb") as output:
        process = subprocess.Popen(
            [sys.executable, APP], cwd=folder, env={**os.environ, **environment}, stdout=output, stderr=output
        )
        try:
            deadline = time.monotonic() + 60
            while True:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).close()
                    break
                except OSError:
                    if process.poll() is not None or time.monotonic() > deadline:
                        with open(log, encoding="utf-8") as file:
                            raise RuntimeError(f"The Space does not start:\n{file.read()}") from None
                    time.sleep(0.2)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()


@contextlib.contextmanager
def open_page(url: str):
    """Open the Space in the browser; yield the page of playwright, ready to be clicked."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=ARGUMENTS.split())
        page = browser.new_page(viewport={"width": 1180, "height": 900})
        page.goto(url, wait_until="domcontentloaded")
        page.get_by_role("button", name="Generate", exact=True).wait_for()
        yield page
        browser.close()


def open_canvas(page):
    """Open the second tab, and wait until the canvas has fitted its sketch in: before, it takes no clicks."""
    page.get_by_role("tab", name="From your own coarse image").click()
    page.get_by_text(re.compile(r"^1[1-9]\d%$")).wait_for()
    page.wait_for_timeout(1000)


NEW = """([title, old]) => [...document.querySelectorAll(".pictures img")].some(
    image => image.alt == title && !old.includes(image.src) && image.complete)"""


def seconds_to(page, button: str, seed: int, *titles: str) -> list[float]:
    """Set a seed, click a button, and return the seconds from then until new pictures of the given titles can be seen."""
    page.get_by_label("Seed").fill(str(seed))
    old = page.locator(".pictures img").evaluate_all("images => images.map(image => image.src)")
    started = time.perf_counter()
    page.get_by_role("button", name=button, exact=True).click()
    seconds = []
    for title in titles:
        page.wait_for_function(NEW, arg=[title, old])
        seconds.append(time.perf_counter() - started)
    return seconds


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--clicks", type=int, default=5, help="after the first")
    parser.add_argument("--screenshot", help="a PNG file")
    parser.add_argument("--output", help="a JSON file")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder, serve(os.path.join(folder, "log")) as url, open_page(url) as page:
        image = "After 8 steps of the flow"
        (first,) = seconds_to(page, "Generate", 0, image)
        again = [seconds_to(page, "Generate", seed, image)[0] for seed in range(1, args.clicks + 1)]
        open_canvas(page)
        page.locator(".gallery-item").last.click()
        page.wait_for_timeout(1000)
        titles = "Step 1 of 8", "Step 8 of 8"
        refined = [seconds_to(page, "Add detail", seed, *titles) for seed in range(args.clicks, -1, -1)]
        result = {
            "script": "space",
            "machine": f"CPU, {os.cpu_count()} cores, {platform.machine()}",
            "browser": page.context.browser.version,
            "clicks": args.clicks,
            "generate": {"first": round(first, 2), "again": round(statistics.median(again), 2)},
            "refine": {
                "first": dict(zip(titles, (round(s, 2) for s in refined[0]))),
                "again": {t: round(statistics.median(s), 2) for t, s in zip(titles, zip(*refined[1:]))},
            },
        }
        if args.screenshot:
            page.mouse.move(0, 0)
            page.screenshot(path=args.screenshot, full_page=True)
    print(f"click -> image: {first:.2f} s at first, then {statistics.median(again):.2f} s (median of {args.clicks})")
    print(f"click -> first step of 8 from a sketch: {refined[0][0]:.2f} s, last: {refined[0][1]:.2f} s")
    if args.output:
        with open(args.output, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=1)
            file.write("\n")


if __name__ == "__main__":
    main()
