"""TrainForge: push a commit, get the trained model back on a results branch."""

__version__ = "0.1.0"
