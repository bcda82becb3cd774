"""Download files with resume."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from common import UserError, lock

_log = logging.getLogger(__name__)
_TIMEOUT = 60  # seconds without data
_CHUNK = 64 << 10  # bytes; at most this much is lost if the connection breaks


def download(url: str, path: Path) -> None:
    """Download a file completely; resume an earlier attempt.

    Raises:
        UserError: no network, the server refuses, the connection breaks, or another program downloads the file.
    """
    import requests

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    _log.info("downloading %s", url)
    with partial.open("ab") as file, lock(partial, f"another program is downloading {path}: wait for it"):
        try:
            _append_rest(file, url, path.name)
        except requests.HTTPError as error:
            raise UserError(f"cannot download {url}: the server answers {error.response.status_code}") from error
        except requests.RequestException as error:
            if not file.tell():
                partial.unlink()
                raise UserError(f"cannot download {url} ({type(error).__name__}): check the network") from error
            raise UserError(
                f"the download of {url} was interrupted: {file.tell():,} bytes are kept in {partial}; run the same "
                "command again to resume"
            ) from error
        file.flush()
        os.replace(partial, path)


def _append_rest(file: BinaryIO, url: str, name: str) -> None:
    """Append the missing part of the file at `url`, or replace everything if the server does not support ranges."""
    import requests

    headers = {"Range": f"bytes={file.tell()}-", "Accept-Encoding": "identity"}
    with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as answer:
        if answer.headers.get("Content-Range") == f"bytes */{file.tell()}":
            return  # complete, but not renamed yet
        # Either the whole file follows, or the kept bytes are not part of it. Other refusals leave them alone.
        if answer.status_code in (requests.codes.ok, requests.codes.requested_range_not_satisfiable):
            file.truncate(0)
            file.seek(0)
        answer.raise_for_status()
        length = int(answer.headers.get("Content-Length", 0))
        end = file.tell() + length
        with tqdm(desc=f"downloading {name}", total=length, unit="B", unit_scale=True, disable=None) as bar:
            for chunk in answer.iter_content(_CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
        if length and file.tell() != end:
            raise requests.ConnectionError("fewer bytes than announced")
