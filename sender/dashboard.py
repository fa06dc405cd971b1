"""The pages beside those of one job, all together."""

from __future__ import annotations

from trainforge.sender import bundle_page, event_pages, executor_pages, job_list, new_job, settings_pages

routes = [
    *job_list.routes,
    *executor_pages.routes,
    *bundle_page.routes,
    *new_job.routes,
    *event_pages.routes,
    *settings_pages.routes,
]
