"""The commands of `trainforge`, one module each or a few that belong together; imported when used."""
