"""A fake wandb server that records runs and can stop answering."""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class WandbServer:
    """A server for use in a `with` block.

    Attributes:
        address: for WANDB_BASE_URL.
        silent: whether requests are accepted but never answered.
        silent_after_start: whether it becomes silent after it has accepted a run.
        starts: the id of each run that was started or resumed.
        history: the logged values, by the run's id.
    """

    def __init__(self, silent_after_start: bool = False) -> None:
        self.silent, self.silent_after_start = False, silent_after_start
        self.starts: list[str] = []
        self.history: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self._closed = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._make_handler())
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> WandbServer:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str, request: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to a GraphQL request or to a part of the stream of values."""
        if path.endswith("/file_stream"):
            run = path.split("/")[-2]
            for line in request.get("files", {}).get("wandb-history.jsonl", {}).get("content", ()):
                self.history[run].append(json.loads(line))
            return {}
        query, variables = request.get("query", ""), request.get("variables", {})
        if "upsertBucket" in query:
            self.starts.append(variables["name"])
            self.silent = self.silent_after_start
            bucket = {**self._describe(variables["name"]), "project": {
                "id": "project", "name": variables["project"], "entity": {"id": "entity", "name": "me"}}}  # fmt: skip
            return {"data": {"upsertBucket": {"bucket": bucket, "inserted": len(self.starts) == 1}}}
        if "RunResumeStatus" in query:
            known = variables["name"] in self.starts
            bucket = self._describe(variables["name"]) if known else None
            return {"data": {"model": {"name": variables["project"], "entity": {"name": "me"}, "bucket": bucket}}}
        if "ServerFeatures" in query:
            return {"data": {"serverInfo": {"features": []}}}
        viewer = {"id": "me", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}
        return {"data": {"viewer": viewer, "createRunFiles": {"runID": "run", "uploadHeaders": [], "files": []}}}

    def _describe(self, run: str) -> dict[str, Any]:
        lines = self.history[run]
        return {
            "id": run, "name": run, "displayName": run, "config": "{}", "summaryMetrics": "{}", "tags": [],
            "logLineCount": 0, "eventsLineCount": 0, "historyLineCount": len(lines), "eventsTail": "[]",
            "historyTail": json.dumps([json.dumps(line) for line in lines[-1:]]), "wandbConfig": json.dumps({"t": 1}),
        }  # fmt: skip

    def _make_handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if server.silent:
                    server._closed.wait()
                    return
                is_json = "json" in self.headers.get("Content-Type", "")  # other requests are figures or telemetry
                answer = json.dumps(server.answer(self.path, json.loads(body)) if is_json else {}).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                pass

        return Handler
