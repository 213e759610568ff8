"""Train the four bundled Fashion-MNIST classifiers and write the bundled assets.

    python tools/train_bundled.py                       # data, then every model
    python tools/train_bundled.py fashion-resnet --epochs 20

The training split comes from a folder of the four ``*-ubyte.gz`` files (``--source``; Debian's package
``dataset-fashion-mnist`` has one) or is downloaded by torchvision. 1,000 images of the training split, 100
a class, are held out of training: they are the bundled calibration images, and the only ones looked at
while choosing the settings below. The test images are scored once, at the end.
"""

import argparse
import gzip
import json
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.datasets import FashionMNIST

from optimizer.model.architectures import ARCHITECTURES, IMAGE_SHAPE

ASSETS = Path(__file__).parent.parent / "assets"
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
MEAN, STD = 0.286, 0.353
CALIBRATION_PER_CLASS = 100


@dataclass(frozen=True)
class Training:
    """How one network is trained. ``shift`` is the largest random shift in pixels."""

    epochs: int
    peak_learning_rate: float
    weight_decay: float
    shift: int = 2
    bfloat16: bool = False


TRAININGS = {
    "fashion-resnet": Training(20, 4e-3, 0.05, bfloat16=True),
    "fashion-mlp": Training(30, 1e-3, 0.1, shift=0),
    "fashion-vit": Training(14, 3e-3, 0.05),
    "fashion-mobilenet": Training(10, 6e-3, 0.02),
}
LABEL_SMOOTHING = 0.1


def load_split(source: Path | None, train: bool) -> tuple[Tensor, Tensor]:
    """Images uint8 ``[N, 28, 28]`` and labels int64 ``[N]`` of one split."""
    root = Path(torch.hub.get_dir()) / "data"
    if source is not None:  # unpacked here: a repacked .gz fails torchvision's checksum
        raw = root / "FashionMNIST" / "raw"
        raw.mkdir(parents=True, exist_ok=True)
        for file in source.glob("*-ubyte.gz"):
            (raw / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
    dataset = FashionMNIST(str(root), train=train, download=True)
    return dataset.data, dataset.targets


def split_calibration(labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of the training images and of the held-out calibration images."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    shuffled = labels[order]
    held_out = torch.cat([order[shuffled == label][:CALIBRATION_PER_CLASS] for label in range(len(CLASSES))])
    mask = torch.ones(len(labels), dtype=torch.bool)
    mask[held_out] = False
    return mask.nonzero().flatten(), held_out


def normalise(images: Tensor) -> Tensor:
    return (images.float().unsqueeze(1) / 255 - MEAN) / STD


def augment(x: Tensor, shift: int, generator: torch.Generator) -> Tensor:
    """Random mirror and a shift of up to ``shift`` pixels, one draw an image."""
    count = len(x)
    mirrored = torch.rand(count, generator=generator) < 0.5
    x = torch.where(mirrored[:, None, None, None], x.flip(-1), x)
    padded = nn.functional.pad(x, [shift] * 4, value=float(-MEAN / STD))
    top, left = torch.randint(0, 2 * shift + 1, (2, count), generator=generator)
    rows = top[:, None, None] + torch.arange(28)[None, :, None]
    columns = left[:, None, None] + torch.arange(28)[None, None, :]
    return padded[torch.arange(count)[:, None, None], 0, rows, columns].unsqueeze(1)


@torch.inference_mode()
def accuracy(model: nn.Module, x: Tensor, labels: Tensor) -> float:
    model.eval()
    predicted = torch.cat([model(batch).argmax(1) for batch in x.split(500)])
    return (predicted == labels).double().mean().item()


def train(name: str, x: Tensor, labels: Tensor, epochs: int, seed: int) -> nn.Module:
    """Train one network; the weights returned are an exponential average over the last steps."""
    training = TRAININGS[name]
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = ARCHITECTURES[name]()
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.998), use_buffers=True
    )
    optimizer = torch.optim.AdamW(
        model.parameters(), training.peak_learning_rate, weight_decay=training.weight_decay
    )
    steps = epochs * (len(x) // 128)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, training.peak_learning_rate, total_steps=steps, pct_start=0.2
    )
    for epoch in range(epochs):
        model.train()
        started = time.monotonic()
        for batch in torch.randperm(len(x), generator=generator).split(128)[: len(x) // 128]:
            with torch.autocast("cpu", torch.bfloat16, enabled=training.bfloat16):
                logits = model(augment(x[batch], training.shift, generator))
            loss = nn.functional.cross_entropy(logits.float(), labels[batch], label_smoothing=LABEL_SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            average.update_parameters(model)
        print(f"{name} epoch {epoch + 1}/{epochs} loss {loss.item():.3f} {time.monotonic() - started:.0f} s")
    return average.module


def write_images(source: Path | None, seed: int) -> None:
    """Bundle the test images and the calibration images as one compressed archive each."""
    train_images, train_labels = load_split(source, train=True)
    test_images, test_labels = load_split(source, train=False)
    _, held_out = split_calibration(train_labels, seed)
    for stem, images, labels in (
        ("fashion-test", test_images, test_labels),
        ("fashion-calibration", train_images[held_out], train_labels[held_out]),
    ):
        np.savez_compressed(
            ASSETS / f"{stem}.npz", images=images.numpy(), labels=labels.numpy().astype(np.uint8)
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(ARCHITECTURES), metavar="model")
    parser.add_argument("--source", type=Path, default=DEBIAN if DEBIAN.is_dir() else None)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--seed", type=int, default=20)
    arguments = parser.parse_args()

    write_images(arguments.source, arguments.seed)
    images, labels = load_split(arguments.source, train=True)
    kept, held_out = split_calibration(labels, arguments.seed)
    test_images, test_labels = load_split(arguments.source, train=False)
    for name in arguments.models:
        epochs = arguments.epochs or TRAININGS[name].epochs
        model = train(name, normalise(images[kept]), labels[kept], epochs, arguments.seed)
        held_out_accuracy = accuracy(model, normalise(images[held_out]), labels[held_out])
        test_accuracy = accuracy(model, normalise(test_images), test_labels)
        save_file(model.state_dict(), ASSETS / f"{name}.safetensors")
        card = {
            "name": name,
            "architecture": name,
            "description": (ARCHITECTURES[name].__doc__ or "").strip(),
            "parameters": sum(p.numel() for p in model.parameters()),
            "input_shape": IMAGE_SHAPE,
            "mean": [MEAN],
            "std": [STD],
            "classes": list(CLASSES),
            "training": {
                "command": f"python tools/train_bundled.py {shlex.join([name])} --epochs {epochs}"
                f" --seed {arguments.seed}",
                "images": len(kept),
                "seed": arguments.seed,
                "epochs": epochs,
                "torch": torch.__version__.split("+")[0],
            },
            "accuracy": {
                "test": round(test_accuracy, 4),
                "held_out": round(held_out_accuracy, 4),
                "test_images": len(test_labels),
            },
            "licence": "MIT; trained on Fashion-MNIST (MIT, Zalando SE)",
        }
        (ASSETS / f"{name}.json").write_text(json.dumps(card, indent=2) + "\n")
        print(f"{name}: held out {held_out_accuracy:.4f}, test {test_accuracy:.4f}", flush=True)


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    main()
