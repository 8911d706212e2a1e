"""How many matrix products a compiled program runs, those in loops as often as the loop does."""

import re
from collections.abc import Callable
from typing import Any

import jax

CALLED = re.compile(r"(?:calls|to_apply|body)=%?([\w.-]+)")
TIMES = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


def products(function: Callable, *args: Any) -> int:
    """The dot operations of the function, jitted, as XLA leaves them."""
    text = jax.jit(function).lower(*args).compile().as_text()
    lines: dict[str, list[str]] = {}
    for line in text.splitlines():
        if header := re.match(r"(ENTRY )?%?([\w.-]+) .*\{$", line):
            name = "ENTRY" if header[1] else header[2]
            lines[name] = []
        elif line.startswith(" "):
            lines[name].append(line)

    def count(name: str) -> int:
        return sum(of_line(line) for line in lines[name])

    def of_line(line: str) -> int:
        times = TIMES.search(line)
        inside = sum(count(called) for called in CALLED.findall(line))
        return len(re.findall(r" dot\(", line)) + inside * int(times[1] if times else 1)

    return count("ENTRY")
