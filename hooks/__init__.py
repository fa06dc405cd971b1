"""The outside world turned into events, and the one module that runs git."""
