"""Serves a web page that classifies photographs with a trained run: `python src/demo.py saved_models/RUN`.

Only this machine can reach the page. It is served by Python's own server and loads nothing from other hosts.
"""

from __future__ import annotations

import argparse
import base64
import json
import logging
import threading
import webbrowser
from collections.abc import Callable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from common import ArgumentParser, UserError, base_name, run_program
from pipeline.settings import add_run_arguments, find_run

if TYPE_CHECKING:
    from pipeline.prediction import TrainedRun

_ADDRESS, _PORT = "127.0.0.1", 7860
_LARGEST = 200_000_000  # bytes of an uploaded image
_PAGE = Path(__file__).with_name("demo.html")
_log = logging.getLogger(__name__)

Reply = dict[str, Any]


def main() -> int:
    arguments = _parse()
    # torch takes seconds to import: --help and errors do not wait for it
    from pipeline.novelty import Novelty, novelty_file
    from pipeline.prediction import load_run

    arguments.run, arguments.checkpoint = find_run(arguments.run, arguments.checkpoint)
    run = load_run(arguments.run, arguments.checkpoint)
    if novelty_file(arguments.run, run.checkpoint).exists():
        run = replace(run, novelty=Novelty.load(arguments.run, run.checkpoint))
    else:
        _log.warning(
            "%s cannot detect unknown images: it has no validation, or is from an earlier version", arguments.run
        )
    title = f"{base_name(arguments.run)}, {run.checkpoint}"
    with _open_server(arguments.port, title, lambda content: answer(run, content)) as server:
        address = f"http://{_ADDRESS}:{server.server_port}"
        print(address, flush=True)
        _log.info("press Ctrl-C to stop")
        if arguments.browser:
            webbrowser.open(address)
        server.serve_forever()
    return 0


def _parse() -> argparse.Namespace:
    parser = ArgumentParser(description="Serves a web page that classifies photographs with a trained run.")
    add_run_arguments(parser)
    # fmt: off
    parser.add_setting("--port", _PORT, "N", "port of the page; 0 selects any free port")
    parser.add_argument("--no-browser", dest="browser", action="store_false",
        help="print the page's address without opening a browser")
    # fmt: on
    arguments = parser.parse_args()
    if not 0 <= arguments.port < 65536:
        raise UserError(f"--port {arguments.port}: must be from 0 to 65535")
    return arguments


def answer(run: TrainedRun, content: bytes) -> Reply:
    """Classify an image file; return the answer, the classes by probability, and a heatmap as a data URL."""
    from pipeline.prediction import draw_maps, predict_files

    with TemporaryDirectory(prefix="demo-") as folder:
        file, heatmap = Path(folder, "image"), Path(folder, "heatmap.png")
        file.write_bytes(content)
        [[found]] = predict_files(run, [file])
        if found.fault:
            return {"error": f"This file cannot be read: {found.fault}"}
        draw_maps(run, [found], lambda _: heatmap)
        drawn = base64.b64encode(heatmap.read_bytes()).decode()
    probabilities = dict(zip(run.classes, map(float, found.probabilities), strict=True))
    ranked = sorted(probabilities, key=probabilities.get, reverse=True)
    return {
        "answer": "unknown: unlike the training images" if found.unknown else ranked[0],
        "classes": [{"name": name, "probability": probabilities[name]} for name in ranked],
        "heatmap": f"data:image/png;base64,{drawn}",
    }


def _open_server(port: int, title: str, answer_image: Callable[[bytes], Reply]) -> ThreadingHTTPServer:
    """Open a server of the page and its answers; raise UserError if the port is in use."""
    one_at_a_time = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/":
                self._send(_PAGE.read_bytes(), "text/html; charset=utf-8")
            elif self.path == "/run":
                self._send_json({"name": title})
            else:
                self.send_error(404)

        def do_POST(self) -> None:
            size = self.headers.get("Content-Length", "")
            if not size.isdecimal() or int(size) > _LARGEST:
                self.send_error(413)
            else:
                content = self.rfile.read(int(size))
                with one_at_a_time:
                    reply = answer_image(content)
                self._send_json(reply)

        def _send_json(self, content: Reply) -> None:
            self._send(json.dumps(content).encode(), "application/json")

        def _send(self, content: bytes, kind: str) -> None:
            self.send_response(200)
            for name, value in (("Content-Type", kind), ("Content-Length", str(len(content)))):
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, text: str, *values: object) -> None:
            _log.debug(text, *values)  # not each request on the screen

    try:
        return ThreadingHTTPServer((_ADDRESS, port), Handler)
    except OSError as error:
        raise UserError(f"--port {port}: {error.strerror}: name another one, or 0 for any free port") from error


if __name__ == "__main__":
    run_program(main, when_stopped="stopped")
