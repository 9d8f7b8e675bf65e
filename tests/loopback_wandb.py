"""A W&B server on 127.0.0.1, as much of one as the real client needs: runs, files, sweeps, views. Nothing is kept.

    with LoopbackWandb() as server:
        subprocess.run([...], env={**os.environ, **server.environment})
        server.runs["study-run"].steps

It stores history lines by their offset, as W&B does: a batch that a client sends again lands on the same lines.
`received` counts every line that arrived, so that a test can tell "sent once" from "stored once".
"""

from __future__ import annotations

import gzip
import itertools
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

ENTITY = "someone"
KEY = "0123456789" * 4


@dataclass
class Run:
    """What the server knows of one run."""

    name: str
    project: str
    fields: dict[str, Any] = field(default_factory=dict)
    """The newest value of every variable of UpsertBucket: displayName, groupName, jobType, tags, sweep, ..."""
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: dict[int, dict[str, Any]] = field(default_factory=dict)
    received: list[int] = field(default_factory=list)
    """The step of every history line in the order of arrival, repeats included."""
    files: dict[str, bytes] = field(default_factory=dict)
    exit_codes: list[int] = field(default_factory=list)

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [self.history[offset] for offset in sorted(self.history)]

    @property
    def steps(self) -> list[int]:
        return [row["_step"] for row in self.rows]


class LoopbackWandb:
    """The server, in a thread of this process. `stop` closes the port; `start` opens the same one again."""

    def __init__(self, port: int = 0) -> None:
        self.port = port
        self.runs: dict[str, Run] = {}
        self.views: dict[str, dict[str, Any]] = {}
        self.updates: list[str] = []
        """The id of every view that was written over by its id."""
        self.sweeps: dict[str, dict[str, Any]] = {}
        self.operations: list[str] = []
        self.dies_after: int | None = None
        """Breaks every connection once so many history lines are stored (None: never)."""
        self._server: ThreadingHTTPServer | None = None
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """What a client's process needs to talk to this server and to nobody else."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY, "WANDB_ERROR_REPORTING": "false"}

    def start(self) -> LoopbackWandb:
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None: ...

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                with owner._lock:
                    answer = owner._answer(self.path, body)
                if answer is None:  # dead: the client sees a broken connection
                    self.close_connection = True
                    return
                content = json.dumps(answer).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_PUT = do_POST  # noqa: N815
            do_GET = do_POST  # noqa: N815

        self._server = _Quiet(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def __enter__(self) -> LoopbackWandb:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def lines(self) -> int:
        return sum(len(run.history) for run in self.runs.values())

    @property
    def _dead(self) -> bool:
        return self.dies_after is not None and self.lines >= self.dies_after

    # ------------------------------------------------------------------------------------------------------- requests
    def _answer(self, path: str, body: bytes) -> dict[str, Any] | None:
        if self._dead:
            return None
        if path.endswith("/graphql"):
            query = json.loads(body)
            name = query.get("operationName") or _operation(query["query"])
            self.operations.append(name)
            handler = OPERATIONS.get(name)
            if handler is None:
                return {"errors": [{"message": f"the loopback server does not know {name}"}], "data": None}
            try:
                return {"data": handler(self, query.get("variables") or {})}
            except Exception as error:  # a client tries a broken connection again and again; this it reports
                return {"errors": [{"message": f"{name}: {error!r}"}], "data": None}
        if path.endswith("/file_stream"):
            return self._stream(path.split("/")[-2], json.loads(body))
        if path.startswith("/upload/"):
            _, _, run, file = path.split("/", 3)
            self.runs[run].files[file] = body
        return {}

    def _stream(self, name: str, body: dict[str, Any]) -> dict[str, Any] | None:
        run = self.runs[name]
        for file, chunk in (body.get("files") or {}).items():
            lines = [json.loads(line) for line in chunk["content"]] if file.endswith((".json", ".jsonl")) else []
            if file == "wandb-summary.json":
                run.summary = lines[-1]
            if file == "wandb-history.jsonl":
                for i, line in enumerate(lines):
                    if self._dead:
                        return None
                    run.history[chunk["offset"] + i] = line
                    run.received.append(line["_step"])
        if body.get("complete"):
            run.exit_codes.append(body["exitcode"])
        return {}

    # ----------------------------------------------------------------------------------------------------- operations
    def _viewer(self, _: dict[str, Any]) -> dict[str, Any]:
        teams = {"edges": [{"node": {"name": ENTITY}}]}
        return {"viewer": {"id": "1", "entity": ENTITY, "username": ENTITY, "email": "", "flags": "{}", "teams": teams}}

    def _features(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"serverInfo": {"features": []}}

    def _resume_status(self, variables: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get(variables["name"])
        bucket = None
        if run is not None:
            tail = json.dumps([json.dumps(run.rows[-1])] if run.history else [])
            bucket = {"id": run.name, "name": run.name, "displayName": run.fields.get("displayName"), "notes": None}
            bucket |= {"summaryMetrics": json.dumps(run.summary), "config": json.dumps(run.config)}
            bucket |= {"historyLineCount": len(run.history), "historyTail": tail, "eventsLineCount": 0}
            bucket |= {"logLineCount": 0, "eventsTail": "[]", "tags": run.fields.get("tags") or []}
            bucket |= {"wandbConfig": json.dumps({"t": 1})}
        entity = {"id": "1", "name": ENTITY}
        return {"model": {"id": "1", "name": variables["project"], "entity": entity, "bucket": bucket}}

    def _upsert_run(self, variables: dict[str, Any]) -> dict[str, Any]:
        name = variables["name"] or variables["id"]
        new = name not in self.runs
        run = self.runs.setdefault(name, Run(name, variables.get("project") or "uncategorized"))
        run.fields |= {key: value for key, value in variables.items() if value is not None}
        if variables.get("config"):
            run.config = json.loads(variables["config"])
        if variables.get("summaryMetrics"):
            run.summary = json.loads(variables["summaryMetrics"])
        project = {"id": "1", "name": run.project, "entity": {"id": "1", "name": ENTITY}}
        bucket = {"id": name, "name": name, "displayName": run.fields.get("displayName") or name, "description": None}
        bucket |= {"config": json.dumps(run.config), "sweepName": run.fields.get("sweep"), "project": project}
        return {"upsertBucket": {"bucket": {**bucket, "historyLineCount": len(run.history)}, "inserted": new}}

    def _run(self, variables: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get(variables["name"])
        if run is None:
            return {"project": {"run": None}}
        keys = {"lastStep": run.steps[-1] if run.history else -1, "keys": {}, "sets": []}
        state = "running" if not run.exit_codes else "failed" if run.exit_codes[-1] else "finished"
        found = {"id": run.name, "name": run.name, "displayName": run.fields.get("displayName"), "state": state}
        found |= {"tags": run.fields.get("tags") or [], "config": json.dumps(run.config), "historyKeys": keys}
        found |= {"group": run.fields.get("groupName"), "jobType": run.fields.get("jobType"), "readOnly": False}
        found |= {"summaryMetrics": json.dumps(run.summary), "historyLineCount": len(run.history), "projectId": "1"}
        found |= {"sweepName": None, "commit": None, "createdAt": "2026-01-01T00:00:00", "heartbeatAt": None}
        found |= {"description": None, "notes": None, "systemMetrics": "{}", "user": {"name": "", "username": ENTITY}}
        return {"project": {"run": found}}

    def _create_files(self, variables: dict[str, Any]) -> dict[str, Any]:
        run = variables["run"]
        files = [{"name": name, "uploadUrl": f"{self.url}/upload/{run}/{name}"} for name in variables["files"]]
        return {"createRunFiles": {"runID": run, "uploadHeaders": [], "files": files}}

    def _create_artifact(self, variables: dict[str, Any]) -> dict[str, Any]:
        name = (variables["input"].get("artifactCollectionNames") or ["artifact"])[0]
        sequence = {"id": "1", "name": name, "latestArtifact": None}
        artifact = {"id": "1", "state": "COMMITTED", "artifactSequence": sequence}
        return {"createArtifact": {"artifact": artifact}}

    def _stopped(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"project": {"run": {"stopped": False}}}

    # --------------------------------------------------------------------------------------------------------- sweeps
    def _upsert_sweep(self, variables: dict[str, Any]) -> dict[str, Any]:
        config = yaml.safe_load(variables["config"])
        values = {name: parameter["values"] for name, parameter in config["parameters"].items()}
        points = [dict(zip(values, point, strict=True)) for point in itertools.product(*values.values())]
        name = f"sweep{len(self.sweeps)}"
        self.sweeps[name] = {"config": config, "left": points, "given": 0}
        project = {"id": "1", "name": variables["projectName"], "entity": {"id": "1", "name": ENTITY}}
        return {"upsertSweep": {"sweep": {"name": name, "project": project}, "configValidationWarnings": []}}

    def _sweep(self, variables: dict[str, Any]) -> dict[str, Any]:
        name = variables["sweep"]
        config = yaml.safe_dump(self.sweeps[name]["config"])
        sweep = {"id": name, "name": name, "method": "grid", "state": "RUNNING", "config": config, "controller": None}
        return {"project": {"sweep": {**sweep, "scheduler": None, "runs": {"edges": []}}}}

    def _create_agent(self, variables: dict[str, Any]) -> dict[str, Any]:
        return {"createAgent": {"agent": {"id": variables["sweep"]}}}

    def _heartbeat(self, variables: dict[str, Any]) -> dict[str, Any]:
        """One trial at a time, and the order to leave once none is left."""
        name = variables["id"]
        sweep = self.sweeps[name]
        commands: list[dict[str, Any]] = []
        if not json.loads(variables.get("runState") or "{}"):
            if sweep["left"]:
                arguments = {key: {"value": value} for key, value in sweep["left"].pop(0).items()}
                program = sweep["config"].get("program", "")
                commands = [{"type": "run", "run_id": f"{name}run{sweep['given']}", "args": arguments}]
                commands[0]["program"] = program
                sweep["given"] += 1
            else:
                commands = [{"type": "exit"}]
        return {"agentHeartbeat": {"agent": {"id": name}, "commands": json.dumps(commands)}}

    # ---------------------------------------------------------------------------------------------------------- views
    def _upsert_view(self, variables: dict[str, Any]) -> dict[str, Any]:
        name = variables["name"]
        new = name not in self.views
        if variables.get("id"):
            self.updates.append(variables["id"])
        self.views[name] = {**variables, "id": f"view-{name}"}
        return {"upsertView": {"view": {"id": self.views[name]["id"], "name": name}, "inserted": new}}

    def _view(self, variables: dict[str, Any]) -> dict[str, Any]:
        view = self.views.get(variables["viewName"])
        edges = [{"node": {name: view[name] for name in ("id", "displayName", "spec")}}] if view else []
        return {"project": {"allViews": {"edges": edges}}}


class _Quiet(ThreadingHTTPServer):
    """Clients that are killed break their connections: no news for the reader of a test."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None: ...


def _operation(query: str) -> str:
    words = query[query.index("query" if "query" in query.split("{")[0] else "mutation") :].split("{")[0]
    return words.split("(")[0].split()[1]


OPERATIONS: dict[str, Callable[[LoopbackWandb, dict[str, Any]], dict[str, Any]]] = {
    "Viewer": LoopbackWandb._viewer,
    "GetDefaultEntity": LoopbackWandb._viewer,
    "ServerFeaturesQuery": LoopbackWandb._features,
    "RunResumeStatus": LoopbackWandb._resume_status,
    "UpsertBucket": LoopbackWandb._upsert_run,
    "Run": LoopbackWandb._run,
    "RunHistoryKeys": LoopbackWandb._run,
    "CreateRunFiles": LoopbackWandb._create_files,
    "CreateArtifact": LoopbackWandb._create_artifact,
    "RunStoppedStatus": LoopbackWandb._stopped,
    "UpsertSweep": LoopbackWandb._upsert_sweep,
    "SweepWithRuns": LoopbackWandb._sweep,
    "CreateAgent": LoopbackWandb._create_agent,
    "Heartbeat": LoopbackWandb._heartbeat,
    "UpsertView2": LoopbackWandb._upsert_view,
    "View": LoopbackWandb._view,
}
