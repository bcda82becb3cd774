"""Bytes as a failing disk, a broken-off copy or somebody hostile leaves them, and how many of them tests try."""

from __future__ import annotations

import os

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


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """The content with bytes flipped, overwritten, taken out, put in or cut off; now and then as it is."""
    spoiled = bytearray(content)
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, len(spoiled)))
        kind = draw(st.sampled_from(["flip", "write", "take", "put", "cut"]))
        if kind == "flip" and place < len(spoiled):
            spoiled[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "write":
            new = draw(st.binary(min_size=1, max_size=8))
            spoiled[place : place + len(new)] = new
        elif kind == "take":
            del spoiled[place : place + draw(st.integers(1, 40))]
        elif kind == "put":
            spoiled[place:place] = draw(st.binary(min_size=1, max_size=8) | st.just(b"\0" * 40))
        elif kind == "cut":
            del spoiled[place:]
    return bytes(spoiled)
