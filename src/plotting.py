"""How every figure is made: without a display, in colours that colour-blind readers can tell apart (Okabe-Ito)."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from common import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, VERMILION, GREEN, ORANGE, GREY = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#999999"


def shortened(text: str, longest: int = 24) -> str:
    """A name as a figure has room for."""
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def new_figure(width: float, height: float, layout: str = "constrained") -> Figure:
    """An empty figure of so many inches."""
    import matplotlib
    from matplotlib.figure import Figure  # without pyplot, which keeps every figure and asks for a display

    matplotlib.rcParams["text.parse_math"] = False  # a name may have dollar signs in it
    return Figure(figsize=(width, height), layout=layout)


def save_figure(figure: Figure, path: Path) -> None:
    """Writes it whole as a PNG; the same figure gives the same bytes."""
    with write_whole(path) as partial, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # of a script that the font lacks
        # zlib's 6, the default, takes more than twice as long as its 3, for an eighth less.
        figure.savefig(partial, dpi=110, pil_kwargs={"compress_level": 3})
