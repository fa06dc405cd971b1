"""Training scripts and manifests that the tests push."""

from __future__ import annotations

PROGRESS = """\
import time
import json

def main():
    print("Starting training job...")

    # Training loop
    for epoch in range(1, 6):
        print(f"Epoch {epoch}/5: training...")
        time.sleep(0.1)

        # Simulate training metrics
        loss = (6 - epoch) / 5
        accuracy = epoch / 5

        print(f"Epoch {epoch}: loss={loss:.3f}, acc={accuracy:.3f}")

        # Report progress (optional)
        progress = {
            "epoch": epoch,
            "loss": loss,
            "accuracy": accuracy
        }
        print(f"PROGRESS: {json.dumps(progress)}")

    print("Training complete!")

if __name__ == "__main__":
    main()
"""

# Trains until the file appears that the test makes: no test has to guess how long a step takes.
UNTIL_TOLD = """\
import os, pathlib, time

print("training has begun", flush=True)
go_on = pathlib.Path({go_on!r})
deadline = time.monotonic() + 100
while not go_on.exists():
    if time.monotonic() > deadline:
        raise SystemExit("nobody said go on")
    time.sleep(0.05)
pathlib.Path(os.environ["TRAINFORGE_OUTPUT_DIR"], "model.txt").write_text("trained")
print('PROGRESS: {{"loss": 0.25}}', flush=True)
print("training is over", flush=True)
"""

FAILING = """\
def divide(a, b):
    return a / b

print("about to fail", flush=True)
divide(1, 0)
"""


def manifest(
    name: str, script: str = "train.py", *, launcher: str = "python", nodes: int = 1, more: str = ""
) -> str:
    return (
        f"project: {{name: {name}}}\n"
        f"training: {{script: {script}, launcher: {launcher}}}\n"
        f"resources: {{nodes: {nodes}}}\n{more}"
    )
