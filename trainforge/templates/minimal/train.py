"""Learn y = 3x + 2 from noisy points, on as many processes as there are.

`python train.py` runs it here; `trainforge submit .` runs it on an executor, `--workers 2` on two at once.
"""

import json
import os
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

EPOCHS = 5


def main():
    # Accelerate finds the other processes by itself and uses the GPU where there is one.
    backend = InitProcessGroupKwargs(backend=os.environ.get("TRAINFORGE_BACKEND"))  # distributed.backend
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), kwargs_handlers=[backend])

    torch.manual_seed(0)  # the same points and the same first weights in every process
    x = torch.rand(1024, 1)
    y = 3 * x + 2 + 0.1 * torch.randn(1024, 1)
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    batches = DataLoader(TensorDataset(x, y), batch_size=32, shuffle=True)

    # `prepare` gives each process its share of the batches and averages the gradients over all of them.
    model, optimizer, batches = accelerator.prepare(model, optimizer, batches)

    for epoch in range(1, EPOCHS + 1):
        total = 0.0
        for inputs, targets in batches:
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(inputs), targets)
            accelerator.backward(loss)
            optimizer.step()
            total += loss.item()
        progress = {"epoch": epoch, "loss": total / len(batches), "progress": epoch / EPOCHS}
        if accelerator.is_main_process:  # one process speaks for all
            print(f"epoch {epoch}/{EPOCHS}: loss={progress['loss']:.4f}", flush=True)
            # A line of this form becomes a point of the job's metrics.
            print(f"PROGRESS: {json.dumps(progress)}", flush=True)

    if accelerator.is_main_process:  # and writes the result: what is in this folder comes home
        output = Path(os.environ.get("TRAINFORGE_OUTPUT_DIR", "outputs"))
        output.mkdir(parents=True, exist_ok=True)
        torch.save(accelerator.unwrap_model(model).state_dict(), output / "model.pt")
        print(f"saved {output / 'model.pt'}")
    accelerator.wait_for_everyone()  # nobody leaves while another still needs it
    accelerator.end_training()


if __name__ == "__main__":
    main()
