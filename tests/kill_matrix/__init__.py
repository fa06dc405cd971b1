"""Real programs that fail at every numbered point, and what must have come of it."""
