"""`--help` answers at once: it imports no heavy module."""

import pytest

from helpers import imported_for_help


@pytest.mark.parametrize(
    ("program", "part", "heavy"),
    [
        ("train", "(default: EfficientNetLite0)", {"torch", "matplotlib", "wandb"}),
        ("evaluate", "--output-dir", {"torch", "matplotlib", "wandb"}),
        ("predict", "1 if some images could not be classified", {"torch", "matplotlib", "wandb"}),
        ("explore", "--no-browser", {"torch", "fiftyone", "numpy"}),
        ("demo", "--port", {"torch", "numpy", "PIL"}),
        ("report", "--models-dir", {"torch", "matplotlib", "PIL", "scipy"}),
    ],
)
def test_help_does_not_import_heavy_modules(program, part, heavy):
    text, imported = imported_for_help(program, heavy)
    assert part in " ".join(text.split())
    assert imported == set()
