"""Starts the programs as a user starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


def start(program: str, *arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs `src/<program>` in a folder, without wandb's key or settings of this machine."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    return subprocess.run(
        [sys.executable, str(REPOSITORY / "src" / program), *map(str, arguments)],
        cwd=cwd,
        env={**inherited, "WANDB_MODE": "disabled", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
