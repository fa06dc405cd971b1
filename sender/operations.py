"""What each address of the API takes, answers and refuses: one row per route, as `access.py` has them.

`openapi.py` makes the description at `/api/openapi.json` of it. Who may do it is in `access.py`; the models
are those that the routes check requests with, and tests hold every answer to what is said here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from trainforge.config.views import (
    AuditVerdict,
    ExecutorView,
    GitHubConnectionView,
    GitHubReport,
    JobDetail,
    NoticeView,
    RepositoryView,
    SecretView,
    UserView,
)
from trainforge.sender import answers as a
from trainforge.sender import (
    api,
    compat_network,
    github_routes,
    notices_api,
    people_api,
    query_forms,
    secrets_api,
    trust_api,
)
from trainforge.sender import compat_answers as first
from trainforge.sender import compat_jobs as jobs
from trainforge.sender.bundles import BundleAsk
from trainforge.sender.planned import PlanAsk, Preferences

JSON, STREAM, BYTES = "application/json", "text/event-stream", "application/octet-stream"
GONE, MOVED, WAIT, AWAY = 404, 409, 429, 503
REMOTE = (400, 403, GONE, MOVED, 422, AWAY)  # what becomes of it is git's to say


@dataclass(frozen=True)
class Operation:
    """`form` may come instead of `ask`, with a file.

    `refusals` are the statuses of problems beside those that follow from the rest.
    """

    summary: str
    answer: Any
    ask: type[BaseModel] | None = None
    form: type[BaseModel] | None = None
    query: type[BaseModel] | None = None
    refusals: tuple[int, ...] = ()
    media: tuple[str, ...] = (JSON,)
    status: int = 200


OPERATIONS: dict[str, Operation] = {
    "GET /health": Operation("Whether the sender is there", a.Health),
    "GET /api/openapi.json": Operation("This description", dict[str, Any]),
    "POST /webhooks/github": Operation("GitHub's webhook", a.Received, refusals=(400, 413, WAIT), status=202),
    "POST /hooks/git": Operation("The post-receive hook", a.Lines, refusals=(400, GONE, 413, 422, WAIT)),
    "POST /api/workflows/token": Operation(
        "A token for a run of GitHub Actions, for the one that GitHub gave it",
        a.WorkflowToken,
        refusals=(401, 403, WAIT, AWAY),
    ),
    # --- jobs
    "GET /api/jobs": Operation("Jobs, newest first", a.Jobs, query=query_forms.JobsQuery),
    "POST /api/jobs": Operation(
        "Train a commit, or a ZIP", JobDetail, api.SubmitAsk, form=BundleAsk, refusals=REMOTE
    ),
    "GET /api/jobs/{job}": Operation("A job", JobDetail, refusals=(MOVED,)),
    "GET /api/jobs/{job}/logs": Operation(
        "A page of a job's lines, or all of them as events",
        a.LogLines,
        query=query_forms.LogsQuery,
        refusals=(MOVED,),
        media=(JSON, STREAM),
    ),
    "GET /api/jobs/{job}/metrics": Operation(
        "A job's metrics", a.Points, query=query_forms.MetricsQuery, refusals=(MOVED,)
    ),
    "GET /api/jobs/{job}/artifacts": Operation("What a job left", a.Artifacts, refusals=(MOVED,)),
    "POST /api/jobs/{job}/stop": Operation("Stop a job", JobDetail, api.StopAsk, refusals=(MOVED,)),
    "POST /api/jobs/{job}/answer": Operation(
        "Accept or reject a job for a machine whose owner is asked",
        JobDetail,
        api.AnswerAsk,
        refusals=(MOVED,),
    ),
    "POST /api/jobs/{job}/retry": Operation("Run a job again", JobDetail, refusals=REMOTE),
    "POST /api/jobs/{job}/resume": Operation(
        "Go on from the newest checkpoint of a job that failed or was stopped, as a new job",
        JobDetail,
        refusals=(*REMOTE, MOVED),
    ),
    "POST /api/plan": Operation(
        "What would become of a manifest now", a.PlanAnswer, api.PreviewAsk, refusals=(400, GONE, MOVED)
    ),
    "GET /api/changes": Operation(
        "Versions of a list, as events", str, query=query_forms.ChangesQuery, media=(STREAM,)
    ),
    "GET /api/events": Operation("What arrived, newest first", a.Events, query=query_forms.EventsQuery),
    # --- executors and repositories
    "GET /api/executors": Operation("All executors", a.Executors),
    "GET /api/executors/{executor}": Operation("An executor", ExecutorView, refusals=(MOVED,)),
    "DELETE /api/executors/{executor}": Operation("Remove an executor", ExecutorView, refusals=(MOVED,)),
    "POST /api/executors/{executor}/drain": Operation(
        "Give it nothing new", ExecutorView, api.Ask, refusals=(MOVED,)
    ),
    "POST /api/executors/{executor}/undrain": Operation(
        "Give it jobs again", ExecutorView, api.Ask, refusals=(MOVED,)
    ),
    "POST /api/executors/{executor}/approve": Operation(
        "Let it work", ExecutorView, trust_api.Ask, refusals=(MOVED,)
    ),
    "POST /api/join-tokens": Operation("A one-time join token", a.Invitation, trust_api.InviteAsk),
    "POST /api/sender/rotate-key": Operation(
        "Change the sender's key", a.RotatedKey, trust_api.RotateAsk, refusals=(MOVED,)
    ),
    "GET /api/audit": Operation("The audit log, newest first", a.Entries, query=query_forms.AuditQuery),
    "GET /api/audit/verify": Operation(
        "Check the audit log", AuditVerdict, query=query_forms.AuditVerifyQuery
    ),
    "GET /api/repositories": Operation("What is watched", a.Repositories),
    "DELETE /api/repositories/{repository}": Operation(
        "Look at a repository no more", RepositoryView, refusals=(MOVED,)
    ),
    "POST /api/repositories": Operation(
        "Watch a repository", RepositoryView, api.RepositoryAsk, refusals=REMOTE
    ),
    # --- GitHub
    "GET /api/github": Operation("Repositories that are connected to GitHub, and Apps", a.GitHub),
    "POST /api/github/connections": Operation(
        "Connect a repository to GitHub", GitHubReport, github_routes.ConnectAsk, refusals=(401, *REMOTE)
    ),
    "DELETE /api/github/connections": Operation(
        "Forget a connection", GitHubConnectionView, query=query_forms.RepositoryQuery, refusals=(GONE,)
    ),
    "POST /api/github/check": Operation(
        "What a connection needs and has", GitHubReport, github_routes.CheckAsk, refusals=(GONE,)
    ),
    "POST /api/github/apps": Operation(
        "Begin to make a GitHub App", a.Beginning, github_routes.AppAsk, refusals=(400, MOVED)
    ),
    # --- notifications
    "GET /api/notices": Operation("Notifications that have not arrived", a.Notices),
    "POST /api/notices/again": Operation(
        "Send a notification again", NoticeView, notices_api.AgainAsk, refusals=(GONE, MOVED)
    ),
    # --- secrets
    "GET /api/secrets": Operation(
        "Secrets, without their values", a.Secrets, query=query_forms.RepositoryQuery, refusals=(GONE,)
    ),
    "POST /api/secrets": Operation("Set a secret", a.SetSecret, secrets_api.SecretAsk, refusals=(GONE,)),
    "DELETE /api/secrets/{secret}": Operation(
        "Remove a secret", SecretView, query=query_forms.RepositoryQuery
    ),
    "POST /api/secrets/rotate-key": Operation(
        "Encrypt all secrets anew", a.Count, secrets_api.Nothing, refusals=(401,)
    ),
    # --- people
    "GET /api/users": Operation("All accounts", a.Users),
    "POST /api/users": Operation("Add an account", a.AddedUser, people_api.UserAsk, refusals=(MOVED, WAIT)),
    "PATCH /api/users/{user}": Operation("Change a role", UserView, people_api.RoleAsk, refusals=(MOVED,)),
    "DELETE /api/users/{user}": Operation("Remove an account", UserView, refusals=(MOVED,)),
    "PUT /api/users/{user}/password": Operation(
        "Set a password", a.Named, people_api.PasswordAsk, refusals=(WAIT,)
    ),
    "POST /api/users/{user}/link": Operation("A one-time login link", a.Link),
    "POST /api/users/{user}/logout": Operation("End an account's sessions", a.Named),
    "POST /api/login-links": Operation("A one-time login link for oneself", a.Link, refusals=(GONE,)),
    "GET /api/me": Operation("Who asks", a.Me),
    "PUT /api/me/password": Operation(
        "Change one's password", a.Named, people_api.OwnPasswordAsk, refusals=(GONE, WAIT)
    ),
    "POST /api/me/logout": Operation("End one's sessions", a.Named, refusals=(GONE,)),
    "GET /api/tokens": Operation("Access tokens, without their secrets", a.Tokens),
    "POST /api/tokens": Operation("Make a token", a.NewToken, people_api.TokenAsk, refusals=(GONE, MOVED)),
    "DELETE /api/tokens/{token:int}": Operation("Revoke a token", a.Revoked),
    # --- the first API
    "POST /api/jobs/distributed": Operation(
        "Train on several machines", first.WorkerJob, jobs.DistributedAsk, refusals=REMOTE
    ),
    "GET /api/jobs/pending": Operation("Jobs that wait", first.WorkerJobs),
    "POST /api/jobs/{job}/claim": Operation(
        "Which rank a machine has", first.Claimed, jobs.ClaimAsk, refusals=(MOVED,)
    ),
    "GET /api/jobs/{job}/status": Operation("A job's state", first.WorkerJob, refusals=(MOVED,)),
    "PUT /api/jobs/{job}/status": Operation(
        "Cancel a job", first.WorkerJob, jobs.StatusAsk, refusals=(MOVED,)
    ),
    "GET /api/workers": Operation("All workers", dict[str, list[dict[str, Any]]]),
    "GET /api/workers/{worker}": Operation("A worker", dict[str, Any], refusals=(MOVED,)),
    "GET /api/network/machines": Operation("All machines", first.Machines),
    "POST /api/network/machines": Operation(
        "Expect a machine", first.MachineView, compat_network.MachineAsk, refusals=(MOVED,)
    ),
    "GET /api/network/machines/{machine}": Operation(
        "A machine", first.MachineView, query=query_forms.WaitQuery, refusals=(MOVED,)
    ),
    "DELETE /api/network/machines/{machine}": Operation(
        "Remove a machine", first.RemovedMachine, refusals=(MOVED,)
    ),
    "DELETE /api/network/machines/by-name/{machine}": Operation(
        "Remove a machine", first.RemovedMachine, refusals=(MOVED,)
    ),
    "POST /api/network/machines/{machine}/ping": Operation(
        "Have a machine answer", first.Pong, query=query_forms.WaitQuery, refusals=(MOVED,)
    ),
    "POST /api/network/machines/{machine}/dispatch_job": Operation(
        "Queue a job for one machine", first.DistributedStatus, compat_network.WholeAsk, refusals=REMOTE
    ),
    "GET /api/network/machines/{machine}/job_status/{job}": Operation(
        "A job on a machine", first.DistributedStatus, refusals=(MOVED,)
    ),
    "POST /api/network/machines/{machine}/stop_job/{job}": Operation(
        "Stop a job on a machine", first.DistributedStatus, refusals=(MOVED,)
    ),
    "GET /api/network/status": Operation("The fleet in one answer", first.NetworkStatus),
    "POST /api/network/health-check": Operation("Ask every machine", first.HealthCheck),
    "GET /api/network/capabilities": Operation("What the sender's host has", first.HostCapabilities),
    "GET /api/network/preferences": Operation("One's wishes", Preferences),
    "PUT /api/network/preferences": Operation("Keep one's wishes", Preferences, Preferences),
    "POST /api/network/distributed/plan": Operation(
        "Plan a job", first.ProposedJob, PlanAsk, refusals=REMOTE
    ),
    "POST /api/network/distributed/dispatch": Operation(
        "Queue a planned job", first.DistributedStatus, compat_network.DispatchAsk, refusals=REMOTE
    ),
    "GET /api/network/distributed/status/{job}": Operation(
        "A job's state", first.DistributedStatus, refusals=(MOVED,)
    ),
    "POST /api/network/distributed/stop/{job}": Operation(
        "Stop a job", first.DistributedStatus, refusals=(MOVED,)
    ),
    "POST /api/network/distributed_jobs/plan": Operation(
        "Plan a job", first.ProposedJob, PlanAsk, refusals=REMOTE
    ),
    "POST /api/network/distributed_jobs/dispatch": Operation(
        "Give one rank a machine",
        first.DistributedStatus | first.MissingRanks,
        compat_network.RankAsk,
        refusals=REMOTE,
    ),
    "GET /api/network/distributed_jobs/{job}/status": Operation(
        "A job's state", first.DistributedStatus, refusals=(MOVED,)
    ),
    "POST /api/network/prepare_dependencies": Operation(
        "Prepare machines for a job", first.DistributedStatus, compat_network.PrepareAsk, refusals=REMOTE
    ),
    "POST /api/network/execute_job": Operation(
        "Queue a job for this host", first.DistributedStatus, compat_network.WholeAsk, refusals=REMOTE
    ),
    "GET /api/network/local_job_status/{job}": Operation(
        "A job's state", first.DistributedStatus, refusals=(MOVED,)
    ),
    "GET /api/network/local_job_output/{job}": Operation(
        "A job's output", first.Output, query=query_forms.OutputQuery, refusals=(MOVED,)
    ),
    "GET /api/network/local_job_file/{job}/{key:path}": Operation(
        "A file of a job's result", bytes, refusals=REMOTE, media=(BYTES,)
    ),
    "GET /api/tasks/distributed/suggest_machines": Operation(
        "Which machines to take", first.Suggestions, query=query_forms.SuggestQuery
    ),
    "GET /api/tasks/{task}/queue_distributed": Operation(
        "Queue a planned job", first.DistributedStatus, refusals=REMOTE
    ),
    "GET /api/tasks/{task}/queue/{machine}": Operation(
        "Queue a planned job on a machine", first.DistributedStatus, refusals=REMOTE
    ),
}
