"""A small stand-in of the W&B service: what the locked client asks for when it logs runs, artifacts and sweeps.

`with WandbServer() as server` listens on 127.0.0.1; `server.environment()` points a process at it. What arrived lies in
`runs` and `artifacts`. A sweep hands out the settings of `assignments`, one a run.
"""

import contextlib
import gzip
import http.server
import json
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import yaml

ENTITY = "tester"
PROJECT_FIELDS = {"id": "project", "entity": {"id": "entity", "name": ENTITY}}


class QuietServer(http.server.ThreadingHTTPServer):
    """Says nothing of connections that a client gives up."""

    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        pass


class WandbServer:
    """See the module.

    Attributes:
      runs: run id -> project, group, sweep, config, history (rows), summary, files (name -> bytes), exit code.
      artifacts: name, type, run id and manifest of each artifact, and whether it was committed.
      requests: the names of the GraphQL operations, in order.
      sweeps: sweep id -> its YAML text.
      assignments: the settings that the sweep hands out.
    """

    def __init__(self, dropping: bool = False):
        """A server that is `dropping` closes every connection without an answer."""
        self.dropping = dropping
        self.runs: dict[str, dict[str, Any]] = {}
        self.artifacts: list[dict[str, Any]] = []
        self.uploads: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.sweeps: dict[str, str] = {}
        self.assignments: list[dict[str, Any]] = []
        self.lock = threading.Lock()
        self.http = QuietServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"

    def __enter__(self) -> "WandbServer":
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.05})
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops to listen: connections are refused from now on."""
        if self.thread.is_alive():
            self.http.shutdown()
            self.http.server_close()
            self.thread.join()

    def environment(self, **more: str) -> dict[str, str]:
        """The variables of a process that logs here and to nothing else."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
        return clean | {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": "0" * 40} | more

    def wait_until(self, condition: Callable[[], bool], seconds: float = 60.0) -> None:
        """Raises AssertionError if `condition` does not come true."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, self.requests
            time.sleep(0.05)

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if server.dropping:
                    self.close_connection = True
                    return
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                with server.lock:
                    answer = json.dumps(server.answer(self.path, body)).encode()
                with contextlib.suppress(ConnectionError):
                    self.send_response(200)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(answer)))
                    self.end_headers()
                    self.wfile.write(answer)

            do_GET = do_POST = do_PUT = answer

        return Handler

    def answer(self, path: str, body: bytes) -> dict[str, Any]:
        """What the service says to a request."""
        if path == "/graphql":
            request = json.loads(body)
            words = request["query"].replace("(", " ").replace("{", " ").split()
            self.requests.append(words[1])
            operation = getattr(self, f"on_{words[1]}", None)
            return {"data": operation(**(request.get("variables") or {})) if operation else {}}
        if path.endswith("/file_stream"):
            self._stream(path.split("/")[-2], json.loads(body))
        elif path.startswith("/upload/"):
            self.uploads[path.removeprefix("/upload/")] = body
        return {}

    def _stream(self, run_id: str, request: dict[str, Any]) -> None:
        run = self.runs[run_id]
        for name, part in request.get("files", {}).items():
            rows = [json.loads(line) for line in part["content"]] if name.endswith((".jsonl", ".json")) else []
            if name == "wandb-history.jsonl":
                run["history"][part["offset"] :] = rows
            elif name == "wandb-summary.json":
                run["summary"] = rows[-1]
        if request.get("complete"):
            run["exit_code"] = request["exitcode"]

    # Runs.

    def on_Viewer(self) -> dict[str, Any]:
        viewer = {"id": "viewer", "entity": ENTITY, "username": ENTITY, "email": "", "flags": "{}"}
        return {"viewer": viewer | {"teams": {"edges": []}}}

    on_GetDefaultEntity = on_GetViewer = on_Viewer

    def on_ServerFeaturesQuery(self) -> dict[str, Any]:
        return {"serverInfo": {"features": []}}

    def on_OrganizationCoreWeaveOrganizationID(self, entityName: str) -> dict[str, Any]:
        return {"entity": {"organization": {"coreWeaveOrganizationId": None}}}

    def on_RunResumeStatus(self, project: str, entity: str, name: str) -> dict[str, Any]:
        run = self.runs.get(name)
        bucket = run and {
            "id": name,
            "name": name,
            "displayName": run["name"],
            "summaryMetrics": json.dumps(run["summary"]),
            "config": json.dumps(run["config"]),
            "logLineCount": 0,
            "historyLineCount": len(run["history"]),
            "eventsLineCount": 0,
            "historyTail": json.dumps([json.dumps(row) for row in run["history"][-1:]]),
            "eventsTail": "[]",
            "tags": [],
            "notes": "",
            "wandbConfig": json.dumps({"t": 1}),
        }
        return {"model": {"id": "project", "name": project, "entity": PROJECT_FIELDS["entity"], "bucket": bucket}}

    def on_UpsertBucket(self, name: str, project: str, **values: Any) -> dict[str, Any]:
        new = name not in self.runs
        run = self.runs.setdefault(name, {"history": [], "summary": {}, "files": {}, "config": {}, "exit_code": None})
        for mine, theirs in {"group": "groupName", "sweep": "sweep", "name": "displayName"}.items():
            run[mine] = values.get(theirs) or run.get(mine)
        run["project"] = project or run.get("project")
        run["config"] = json.loads(values.get("config") or "{}") or run["config"]
        bucket = {"id": name, "name": name, "displayName": run["name"], "description": "", "sweepName": run["sweep"]}
        bucket |= {"config": json.dumps(run["config"]), "historyLineCount": len(run["history"])}
        bucket["project"] = PROJECT_FIELDS | {"name": run["project"]}
        return {"upsertBucket": {"bucket": bucket, "inserted": new}}

    def on_CreateRunFiles(self, run: str, files: list[str], **_: Any) -> dict[str, Any]:
        urls = [{"name": name, "uploadUrl": f"{self.url}/upload/{run}/{name}"} for name in files]
        return {"createRunFiles": {"runID": run, "uploadHeaders": [], "files": urls}}

    def on_MarkRunFilesUploaded(self, **_: Any) -> dict[str, Any]:
        return {"markRunFilesUploaded": {"success": True}}

    # Artifacts.

    def on_ArtifactType(self, **_: Any) -> dict[str, Any]:
        return {"project": {"artifact": None}}

    def on_FetchArtifactDigestAlgorithm(self, **_: Any) -> dict[str, Any]:
        return {"project": {"artifactType": None}}

    def on_XXHashDigestsEnabled(self, **_: Any) -> dict[str, Any]:
        return {"entity": {"xxhashDigestsEnabled": False}}

    def on_CreateArtifact(self, input: dict[str, Any]) -> dict[str, Any]:
        artifact = {"id": f"artifact-{len(self.artifacts)}", "committed": False}
        artifact |= {
            "name": input["artifactCollectionName"],
            "type": input["artifactTypeName"],
            "run": input["runName"],
        }
        self.artifacts.append(artifact)
        state = {"id": artifact["id"], "state": "PENDING", "artifactSequence": {"latestArtifact": None}}
        return {"createArtifact": {"artifact": state}}

    def _manifest(self, artifact_id: str, uploaded: bool) -> dict[str, Any]:
        file = {"id": "file", "uploadUrl": f"{self.url}/upload/{artifact_id}/manifest", "uploadHeaders": []}
        return {"artifactManifest": {"id": artifact_id, "file": file if uploaded else {"id": "file"}}}

    def on_CreateArtifactManifest(self, artifactID: str, includeUpload: bool, **_: Any) -> dict[str, Any]:
        return {"createArtifactManifest": self._manifest(artifactID, includeUpload)}

    def on_UpdateArtifactManifest(self, artifactManifestID: str, includeUpload: bool, **_: Any) -> dict[str, Any]:
        return {"updateArtifactManifest": self._manifest(artifactManifestID, includeUpload)}

    def on_CreateArtifactFiles(self, input: dict[str, Any]) -> dict[str, Any]:
        nodes = []
        for file in input["artifactFiles"]:
            place = f"{file['artifactID']}/{file['name']}"
            node = {"storagePath": place, "uploadUrl": f"{self.url}/upload/{place}", "uploadHeaders": []}
            nodes.append({"node": node | {"uploadMultipartUrls": None, "artifact": {"id": file["artifactID"]}}})
        return {"createArtifactFiles": {"files": {"edges": nodes}}}

    def on_CommitArtifact(self, artifactID: str) -> dict[str, Any]:
        next(each for each in self.artifacts if each["id"] == artifactID)["committed"] = True
        return {"commitArtifact": {"artifact": {"id": artifactID, "digest": "none"}}}

    # Sweeps.

    def on_UpsertSweep(self, config: str, projectName: str, **_: Any) -> dict[str, Any]:
        sweep_id = f"sweep{len(self.sweeps)}"
        self.sweeps[sweep_id] = config
        sweep = {"name": sweep_id, "project": PROJECT_FIELDS | {"name": projectName}}
        return {"upsertSweep": {"sweep": sweep, "configValidationWarnings": []}}

    def on_SweepWithRuns(self, sweep: str, **_: Any) -> dict[str, Any]:
        found = {"id": sweep, "name": sweep, "state": "RUNNING", "config": self.sweeps[sweep]}
        return {"project": {"sweep": found | {"runs": {"edges": []}}}}

    def on_CreateAgent(self, sweep: str, **_: Any) -> dict[str, Any]:
        return {"createAgent": {"agent": {"id": f"agent-of-{sweep}"}}}

    def on_Heartbeat(self, id: str, runState: str, **_: Any) -> dict[str, Any]:
        """Hands out one run after the other, then tells the agent to leave."""
        commands: list[dict[str, Any]] = []
        if not json.loads(runState):
            commands = [self._next_command(id.removeprefix("agent-of-"))]
        return {"agentHeartbeat": {"agent": {"id": id}, "commands": json.dumps(commands)}}

    def _next_command(self, sweep_id: str) -> dict[str, Any]:
        if not self.assignments:
            return {"type": "exit"}
        settings = self.assignments.pop(0)
        args = {name: {"value": value} for name, value in settings.items()}
        program = yaml.safe_load(self.sweeps[sweep_id])["program"]
        return {"type": "run", "run_id": f"{sweep_id}run{len(self.assignments)}", "program": program, "args": args}
