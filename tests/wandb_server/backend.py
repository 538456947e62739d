"""What a W&B server knows, and how it answers GraphQL: as much of it as this project's commands ask for.

A query that no method answers is an error and is kept, so that a new client cannot ask for something unseen.
"""

# ruff: noqa: N802, N815 - a method is called as the client calls its operation

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

ENTITY = "tester"
CREATED = "2026-01-01T00:00:00Z"
HISTORY = "wandb-history.jsonl"
SUMMARY = "wandb-summary.json"
Variables = Mapping[str, Any]
Answer = dict[str, Any]


class RefusedError(Exception):
    """A request that a server refuses."""


@dataclass
class Run:
    """A run: what `UpsertBucket` has said of it and what came in its file stream."""

    entity: str
    project: str
    name: str
    about: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    streams: dict[str, dict[int, str]] = field(default_factory=dict)
    exit_code: int | None = None

    @property
    def history(self) -> list[dict[str, Any]]:
        """Rows in the order of their place in the stream; a place that is sent again is not a second row."""
        return [json.loads(line) for _, line in sorted(self.streams.get(HISTORY, {}).items())]

    @property
    def summary(self) -> dict[str, Any]:
        """What was sent last."""
        lines = self.streams.get(SUMMARY, {})
        return json.loads(lines[max(lines)]) if lines else {}

    @property
    def state(self) -> str:
        """As it stands beside a run on W&B."""
        return "running" if self.exit_code is None else "failed" if self.exit_code else "finished"

    def receive(self, body: Variables) -> None:
        """Take a request of the file stream: lines with the place where they begin, and perhaps the end."""
        for name, part in body.get("files", {}).items():
            places = self.streams.setdefault(name, {})
            places.update(enumerate(part["content"], start=part["offset"]))
        if body.get("complete"):
            self.exit_code = body["exitcode"]

    def answer(self) -> Answer:
        """All fields that any client selects; they take what they know."""
        history = self.history
        project = {"id": self.project, "name": self.project, "entity": {"id": self.entity, "name": self.entity}}
        return {
            "id": f"{self.entity}/{self.project}/{self.name}",
            "projectId": 1,
            "name": self.name,
            "displayName": self.about.get("displayName") or self.name,
            "group": self.about.get("groupName"),
            "jobType": self.about.get("jobType"),
            "sweepName": self.about.get("sweep"),
            "tags": self.about.get("tags") or [],
            "state": self.state,
            "createdAt": CREATED,
            "user": {"name": ENTITY, "username": ENTITY},
            "project": project,
            "config": json.dumps(self.config),
            "wandbConfig": json.dumps({"t": self.config.get("_wandb", {}).get("value", {}).get("t", {})}),
            "summaryMetrics": json.dumps(self.summary),
            "historyKeys": {"lastStep": history[-1]["_step"]} if history else None,
            "historyLineCount": len(history),
            "historyTail": json.dumps([json.dumps(row) for row in history[-1:]]),
            "eventsLineCount": len(self.streams.get("wandb-events.jsonl", {})),
            "eventsTail": "[]",
            "logLineCount": len(self.streams.get("output.log", {})),
            "parquetHistory": {"parquetUrls": [], "liveData": history},
        }


@dataclass
class Artifact:
    """An artifact of a run, with the paths in the storage where its files go."""

    number: int
    about: Mapping[str, Any]
    manifest: str = ""
    state: str = "PENDING"

    def place(self, name: str) -> str:
        """Where the bytes of a file of it are stored."""
        return f"/storage/artifacts/{self.number}/{name}"


@dataclass
class Sweep:
    """A sweep, and the settings that no agent has been given yet: the whole grid, whatever its method."""

    name: str
    config: str
    left: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        parameters = yaml.safe_load(self.config)["parameters"]
        values = [about.get("values") or [about["value"]] for about in parameters.values()]
        self.left = [dict(zip(parameters, chosen, strict=True)) for chosen in itertools.product(*values)]

    def command(self) -> dict[str, Any]:
        """What an agent does next."""
        if not self.left:
            return {"type": "exit"}
        args = {key: {"value": value} for key, value in self.left.pop(0).items()}
        program = yaml.safe_load(self.config)["program"]
        return {"type": "run", "run_id": f"{self.name}-{len(self.left)}", "args": args, "program": program}


class Backend:
    """All that was sent, and the answers: a method per operation, called as the client calls the operation."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.runs: dict[tuple[str, str, str], Run] = {}
        self.artifacts: list[Artifact] = []
        self.storage: dict[str, bytes] = {}
        self.views: list[dict[str, Any]] = []
        self.sweeps: list[Sweep] = []
        self.agents: list[Sweep] = []
        self.unknown: list[str] = []

    def graphql(self, query: str, variables: Variables) -> Answer:
        """Answer a query or a mutation."""
        name = re.findall(r"\b(?:query|mutation)\s+(\w+)", query)
        answer = getattr(self, f"on_{name[0]}", None) if name else None
        if answer is None:
            self.unknown.append(query)
            raise RefusedError(f"{name} is not known here")
        return answer(variables)

    def run(self, v: Variables) -> Run | None:
        """Return the run that variables name."""
        name = str(v.get("name") or v.get("run") or v.get("runName"))
        return self.runs.get((v.get("entity") or ENTITY, v["project"], name))

    def on_Viewer(self, _: Variables) -> Answer:
        """Who the key belongs to."""
        about = {"id": "1", "entity": ENTITY, "username": ENTITY, "name": ENTITY, "email": "", "flags": "{}"}
        return {"viewer": {**about, "teams": {"edges": [{"node": {"name": ENTITY}}]}}}

    on_GetDefaultEntity = on_Viewer

    def on_OrganizationCoreWeaveOrganizationID(self, _: Variables) -> Answer:
        """Return no organization."""
        return {"entity": {"organization": None}}

    def on_ServerFeaturesQuery(self, _: Variables) -> Answer:
        """No feature that came later than the protocol's base: clients then ask in the ways written here."""
        return {"serverInfo": {"features": []}}

    def on_UpsertBucket(self, v: Variables) -> Answer:
        """Begin a run, or say more of one; what is null stays as it was."""
        key = (v.get("entity") or ENTITY, v.get("project") or "uncategorized", v["name"])
        is_new = key not in self.runs
        run = self.runs.setdefault(key, Run(*key))
        run.about.update({name: value for name, value in v.items() if value is not None})
        if v.get("config"):
            run.config = json.loads(v["config"])
        return {"upsertBucket": {"bucket": run.answer(), "inserted": is_new}}

    def on_RunResumeStatus(self, v: Variables) -> Answer:
        """What there is of a run that a client may go on with."""
        run = self.run(v)
        entity = v.get("entity") or ENTITY
        about = {"id": v["project"], "name": v["project"], "entity": {"id": entity, "name": entity}}
        return {"model": {**about, "bucket": run.answer() if run else None}}

    def on_CreateRunFiles(self, v: Variables) -> Answer:
        """Where the files of a run go, such as its tables."""
        base = f"/storage/runs/{v['entity']}/{v['project']}/{v['run']}"
        files = [{"name": name, "uploadUrl": f"{self.address}{base}/{name}"} for name in v["files"]]
        return {"createRunFiles": {"runID": v["run"], "uploadHeaders": [], "files": files}}

    def on_ArtifactType(self, _: Variables) -> Answer:
        """Whether the name is taken by an artifact of another type; here it never is."""
        return {"project": {"artifact": None}}

    def on_CreateArtifact(self, v: Variables) -> Answer:
        """Begin an artifact."""
        artifact = Artifact(len(self.artifacts), v["input"])
        self.artifacts.append(artifact)
        sequence = {"latestArtifact": None}
        about = {"id": str(artifact.number), "state": artifact.state, "artifactSequence": sequence}
        return {"createArtifact": {"artifact": about}}

    def on_CreateArtifactFiles(self, v: Variables) -> Answer:
        """Where the files of an artifact go."""
        nodes = []
        for file in v["input"]["artifactFiles"]:
            place = self.artifacts[int(file["artifactID"])].place(file["name"])
            target = {"storagePath": place, "uploadUrl": self.address + place, "uploadHeaders": []}
            nodes.append({**target, "uploadMultipartUrls": None, "artifact": {"id": file["artifactID"]}})
        return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}

    def on_CreateArtifactManifest(self, v: Variables) -> Answer:
        """Where the list of an artifact's files goes."""
        artifact = self.artifacts[int(v["artifactID"])]
        artifact.manifest = artifact.place(v["name"])
        file = {"id": v["artifactID"], "uploadUrl": self.address + artifact.manifest, "uploadHeaders": []}
        return {"createArtifactManifest": {"artifactManifest": {"id": v["artifactID"], "file": file}}}

    def on_UpdateArtifactManifest(self, v: Variables) -> Answer:
        """Give the place again, now that the list is whole."""
        artifact = self.artifacts[int(v["artifactManifestID"])]
        file = {"id": str(artifact.number), "uploadUrl": self.address + artifact.manifest, "uploadHeaders": []}
        return {"updateArtifactManifest": {"artifactManifest": {"id": str(artifact.number), "file": file}}}

    def on_CommitArtifact(self, v: Variables) -> Answer:
        """Close an artifact, if all that its manifest lists has arrived."""
        artifact = self.artifacts[int(v["artifactID"])]
        listed = json.loads(self.storage[artifact.manifest])["contents"]
        missing = [name for name in listed if artifact.place(name) not in self.storage]
        if missing:
            raise RefusedError(f"no such files: {missing}")
        artifact.state = "COMMITTED"
        return {"commitArtifact": {"artifact": {"id": v["artifactID"], "digest": artifact.about["digest"]}}}

    def on_Runs(self, v: Variables) -> Answer:
        """All runs of a project, or of one group in it."""
        filters = json.loads(v.get("filters") or "{}")
        if set(filters) - {"group"}:
            raise RefusedError(f"filters {filters} are not known here")
        place = (v["entity"], v["project"])
        found = [run.answer() for key, run in self.runs.items() if key[:2] == place]
        found = [run for run in found if run["group"] == filters.get("group", run["group"])]
        if not any(key[:2] == place for key in self.runs):
            return {"project": None}
        edges = [{"node": run, "cursor": run["name"]} for run in found]
        page = {"endCursor": None, "hasNextPage": False}
        return {"project": {"internalId": 1, "runCount": len(found), "runs": {"edges": edges, "pageInfo": page}}}

    def on_Run(self, v: Variables) -> Answer:
        """Return one run of a project."""
        run = self.run(v)
        return {"project": {"run": run.answer() if run else None}}

    on_RunHistoryKeys = on_RunParquetHistory = on_Run

    def on_HistoryPage(self, v: Variables) -> Answer:
        """Return the rows of a range of steps; a page is never fuller than was asked for."""
        run = self.run(v)
        rows = [row for row in run.history if v["minStep"] <= row["_step"] < v["maxStep"]] if run else []
        return {"project": {"run": {"history": [json.dumps(row) for row in rows[: v["pageSize"]]]}}}

    def on_UpsertView2(self, v: Variables) -> Answer:
        """Keep a workspace."""
        self.views.append(dict(v))
        return {"upsertView": {"view": {"id": str(len(self.views)), "name": v["name"]}, "inserted": True}}

    def on_UpsertSweep(self, v: Variables) -> Answer:
        """Create a sweep."""
        sweep = Sweep(f"sweep{len(self.sweeps)}", v["config"])
        self.sweeps.append(sweep)
        entity = v.get("entityName") or ENTITY
        project = {"id": "1", "name": v["projectName"], "entity": {"id": entity, "name": entity}}
        return {"upsertSweep": {"sweep": {"name": sweep.name, "project": project}, "configValidationWarnings": []}}

    def on_SweepWithRuns(self, v: Variables) -> Answer:
        """Return a sweep as an agent reads it: for its command."""
        sweep = next((sweep for sweep in self.sweeps if sweep.name == v["sweep"]), None)
        about = sweep and {"id": sweep.name, "name": sweep.name, "config": sweep.config, "runs": {"edges": []}}
        return {"project": {"sweep": about}}

    def on_CreateAgent(self, v: Variables) -> Answer:
        """Begin an agent of a sweep."""
        self.agents += [sweep for sweep in self.sweeps if sweep.name == v["sweep"]]
        return {"createAgent": {"agent": {"id": str(len(self.agents) - 1)}}}

    def on_Heartbeat(self, v: Variables) -> Answer:
        """Give an agent that has nothing to do the next run."""
        is_free = not json.loads(v["runState"])
        commands = [self.agents[int(v["id"])].command()] if is_free else []
        return {"agentHeartbeat": {"agent": {"id": v["id"]}, "commands": json.dumps(commands)}}
