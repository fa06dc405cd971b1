"""Learn to read handwritten digits: 1,797 small pictures, a small network, a few seconds.

`python train.py` trains here, in one process. Under TrainForge or `accelerate launch` the same script trains
in many processes, over many machines, and comes to the same result: each step looks at the same pictures,
only shared out among the processes.
"""

import json
import os
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, set_seed
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

# Used when the script is run by hand; TrainForge hands over `training.params` of trainforge.yaml.
# `batch_size` is that of one process: TrainForge has already divided it among them.
DEFAULTS = {"epochs": 8, "batch_size": 32, "learning_rate": 0.01, "hidden": 128, "seed": 7}


def read_params():
    """The parameters of this run: the defaults, overlaid by what TrainForge planned."""
    params = dict(DEFAULTS)
    if path := os.environ.get("TRAINFORGE_PARAMS_FILE"):
        params.update(json.loads(Path(path).read_text()))
    return params


def load_pictures():
    """The pictures as (training set, validation set), split the same way in every process."""
    pictures, digits = load_digits(return_X_y=True)
    pictures = torch.tensor(pictures / 16.0, dtype=torch.float32)  # pixels are 0 to 16
    digits = torch.tensor(digits)
    x, x_val, y, y_val = train_test_split(pictures, digits, test_size=0.2, random_state=0, stratify=digits)
    return TensorDataset(x, y), (x_val, y_val)


def report(numbers):
    """Hand one moment's numbers to TrainForge: a JSON object on a line of the metrics file."""
    if path := os.environ.get("TRAINFORGE_METRICS_FILE"):
        with Path(path).open("a") as file:
            file.write(json.dumps(numbers) + "\n")


def train_epoch(accelerator, model, optimizer, batches):
    """One pass over the training set; the mean loss over all processes."""
    model.train()
    total = torch.zeros((), device=accelerator.device)
    for pictures, digits in batches:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(pictures), digits)
        accelerator.backward(loss)  # averages the gradients over all processes
        optimizer.step()
        total += loss.detach()
    return accelerator.reduce(total / len(batches), "mean").item()


@torch.no_grad()
def validate(accelerator, model, validation):
    """Loss and accuracy on pictures never trained on. The set is small: each process looks at all of it."""
    model.eval()
    pictures, digits = (tensor.to(accelerator.device) for tensor in validation)
    scores = accelerator.unwrap_model(model)(pictures)
    loss = nn.functional.cross_entropy(scores, digits)
    accuracy = (scores.argmax(dim=1) == digits).float().mean()
    return loss.item(), accuracy.item()


def save(accelerator, model):
    """Write the weights where TrainForge collects them; the one main process does."""
    if not accelerator.is_main_process:
        return
    output = Path(os.environ.get("TRAINFORGE_OUTPUT_DIR", "outputs"))
    output.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.cpu() for name, tensor in accelerator.unwrap_model(model).state_dict().items()}
    save_file(weights, output / "model.safetensors")
    print(f"saved {output / 'model.safetensors'}", flush=True)


def main():
    params = read_params()
    seed = int(os.environ.get("TRAINFORGE_SEED", params["seed"]))
    epochs = params["epochs"]

    backend = InitProcessGroupKwargs(backend=os.environ.get("TRAINFORGE_BACKEND"))  # distributed.backend
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), kwargs_handlers=[backend])
    torch.set_num_threads(1)  # so small a network is fastest, and repeatable, on one thread
    set_seed(seed)  # the same first weights in every process
    if accelerator.is_main_process:
        print(f"training in {accelerator.num_processes} process(es) with {params}", flush=True)

    training, validation = load_pictures()
    order = torch.Generator().manual_seed(seed)  # the same order of pictures for any number of processes
    batches = DataLoader(
        training, batch_size=params["batch_size"], shuffle=True, drop_last=True, generator=order
    )
    hidden = params["hidden"]
    model = nn.Sequential(
        nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 10)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=params["learning_rate"])
    model, optimizer, batches = accelerator.prepare(model, optimizer, batches)

    slower = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)  # large steps, then small

    for epoch in range(1, epochs + 1):
        loss = train_epoch(accelerator, model, optimizer, batches)
        slower.step()
        val_loss, val_accuracy = validate(accelerator, model, validation)
        if accelerator.is_main_process:
            numbers = {"epoch": epoch, "loss": loss, "val_loss": val_loss, "val_accuracy": val_accuracy}
            print(", ".join(f"{name} {value:.4g}" for name, value in numbers.items()), flush=True)
            report(numbers | {"progress": epoch / epochs})

    save(accelerator, model)
    accelerator.wait_for_everyone()  # nobody leaves while another still needs it
    accelerator.end_training()


if __name__ == "__main__":
    main()
