"""The first API's routes, all of them; docs/api-compatibility.md lists each with its test.

Machines, workers and executors are one thing under three names, and nothing here knows more of them, or of
jobs, than the API's own resources do. `/health`, `/api/jobs` and `/api/jobs/{id}` are those of the API.
"""

from __future__ import annotations

from trainforge.sender import compat_jobs, compat_network

routes = [*compat_network.routes, *compat_jobs.routes]
