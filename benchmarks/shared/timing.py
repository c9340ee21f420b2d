# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Time alternatives in turn, A B A B …, so that what else the machine does meets all of them alike."""

import statistics
import time
from collections.abc import Callable, Hashable

from tqdm.auto import tqdm


def in_turn(cases: dict[Hashable, Callable], repeats: int, title: str) -> dict[Hashable, list[float]]:
    """Call each case once to warm up, then all of them in turn; return the seconds of each call."""
    seconds = {name: [] for name in cases}
    for call in cases.values():
        call()
    for _ in tqdm(range(repeats), desc=title):
        for name, call in cases.items():
            started = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def summarize_ratios(over: list[float], under: list[float]) -> dict:
    """Return the median and the quartiles of the ratios, pair by pair."""
    low, median, high = statistics.quantiles([a / b for a, b in zip(over, under, strict=True)], n=4)
    return {"ratio": round(median, 4), "quartiles": [round(low, 4), round(high, 4)]}


def ratio(ours: Callable, bare: Callable, pairs: int, title: str) -> dict:
    """Time two callables in turn; return the median ratio with its quartiles."""
    seconds = in_turn({"ours": ours, "bare": bare}, pairs, title)
    return summarize_ratios(seconds["ours"], seconds["bare"]) | {"pairs": pairs}


def medians(cases: dict[Hashable, Callable], repeats: int, title: str) -> dict[Hashable, dict]:
    """Time callables in turn; return the median and the quartiles of each, in seconds."""
    result = {}
    for name, seconds in in_turn(cases, repeats, title).items():
        low, median, high = statistics.quantiles(seconds, n=4)
        result[name] = {"seconds": median, "quartiles": [low, high], "repeats": repeats}
    return result
