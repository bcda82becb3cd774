"""Files from the web, whole or not at all."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from common import UserError, lock

_log = logging.getLogger(__name__)
_TIMEOUT = 60  # seconds without a byte
_CHUNK = 64 << 10  # bytes; where a connection breaks off, less than this is lost


def download(url: str, path: Path) -> None:
    """Downloads a file whole; goes on with what an earlier attempt has left beside it.

    Raises:
        UserError: no network, the server refuses, the connection breaks off, or another program is at it.
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
                raise UserError(f"cannot download {url} ({type(error).__name__}): is there a network?") from error
            raise UserError(
                f"the download of {url} has broken off: {file.tell():,} bytes are kept in {partial}, "
                "and the same command goes on from there"
            ) from error
        file.flush()
        os.replace(partial, path)


def _append_rest(file: BinaryIO, url: str, name: str) -> None:
    """Appends to a file what it lacks of the one at `url`, or the whole if the server knows no ranges."""
    import requests

    headers = {"Range": f"bytes={file.tell()}-", "Accept-Encoding": "identity"}
    with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as answer:
        if answer.headers.get("Content-Range") == f"bytes */{file.tell()}":
            return  # it lacked nothing but its name
        # All of it comes, or what is there is not of this file. Any other refusal leaves what is there.
        if answer.status_code in (requests.codes.ok, requests.codes.requested_range_not_satisfiable):
            file.truncate(0)
            file.seek(0)
        answer.raise_for_status()
        length = int(answer.headers.get("Content-Length", 0))
        whole = file.tell() + length
        with tqdm(desc=f"downloading {name}", total=length, unit="B", unit_scale=True, disable=None) as bar:
            for chunk in answer.iter_content(_CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
        if length and file.tell() != whole:
            raise requests.ConnectionError("fewer bytes came than were announced")
