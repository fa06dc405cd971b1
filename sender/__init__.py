"""Event to job to plan to dispatch to observe to report."""
