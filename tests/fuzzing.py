"""Bytes as a failing disk, a broken-off copy or somebody hostile leaves them, and how many of them tests try."""

from __future__ import annotations

import os
from collections.abc import Iterable

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

EXAMPLES = "FUZZ_EXAMPLES"


def fuzz(examples: int) -> settings:
    """Tries so many examples, always the same ones; another number, at random, where FUZZ_EXAMPLES names it."""
    wanted = os.environ.get(EXAMPLES)
    return settings(
        max_examples=int(wanted) if wanted else examples,
        derandomize=not wanted,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


# What befalls a file, at a place that is counted round and round: a list of it may be none of it.
damages = st.lists(
    st.tuples(
        st.sampled_from(["flip", "write", "take", "put", "cut"]),
        st.integers(0, 2**32 - 1),
        st.binary(min_size=1, max_size=8) | st.just(b"\0" * 40),
    ),
    max_size=4,
)


def damage(content: bytes, done: Iterable[tuple[str, int, bytes]]) -> bytes:
    """The content with a bit flipped, bytes overwritten, taken out or put in, or with its end cut off."""
    spoiled = bytearray(content)
    for kind, number, new in done:
        place = number % (len(spoiled) + 1)
        if kind == "flip":
            spoiled[place : place + 1] = bytes(byte ^ (1 << new[0] % 8) for byte in spoiled[place : place + 1])
        elif kind == "write":
            spoiled[place : place + len(new)] = new
        elif kind == "take":
            del spoiled[place : place + len(new)]
        elif kind == "put":
            spoiled[place:place] = new
        else:
            del spoiled[place:]
    return bytes(spoiled)
