"""A seeded simulation of senders, executors, network and remote around the production decisions."""
