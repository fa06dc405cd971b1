"""The pages beside those of one job, all together."""

from __future__ import annotations

from trainforge.sender import executor_pages, job_list, new_job

routes = [*job_list.routes, *executor_pages.routes, *new_job.routes]
