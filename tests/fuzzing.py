"""Damaged file contents for property-based tests."""

from __future__ import annotations

import os
from collections.abc import Iterable

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

EXAMPLES = "FUZZ_EXAMPLES"


def fuzz(examples: int) -> settings:
    """Try a fixed number of reproducible examples; FUZZ_EXAMPLES sets another number, of random ones."""
    wanted = os.environ.get(EXAMPLES)
    return settings(
        max_examples=int(wanted) if wanted else examples,
        derandomize=not wanted,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


# Changes to a file: the kind, a position modulo the length, and new bytes.
damages = st.lists(
    st.tuples(
        st.sampled_from(["flip", "write", "take", "put", "cut"]),
        st.integers(0, 2**32 - 1),
        st.binary(min_size=1, max_size=8) | st.just(b"\0" * 40),
    ),
    max_size=4,
)


def damage(content: bytes, done: Iterable[tuple[str, int, bytes]]) -> bytes:
    """Flip a bit, overwrite, remove or insert bytes, or cut off the end."""
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
