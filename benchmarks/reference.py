"""The plain reference of the benchmarks: a straightforward implementation of the specification.

Images are decoded one after the other in every run and kept as float32 tensors. Training is eager, in fp32. The
architectures are the project's.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib import pyplot as plt
from PIL import Image
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.image import show_cam_on_image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset
from torchvision import transforms

WORKERS = 6
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TRANSFORMS = [
    transforms.RandomRotation(40),
    transforms.RandomAffine(degrees=0, translate=(0.2, 0.2)),
    transforms.RandomHorizontalFlip(0.8),
    transforms.RandomVerticalFlip(0.8),
    transforms.ColorJitter(brightness=0.5, contrast=0.5, saturation=0.5, hue=0.5),
    transforms.GaussianBlur(3),
]


def load_padded(path: Path, size: int = 224, mode: str = "RGB") -> Tensor:
    """Return one image as (C, size, size) float32 from 0 to 1, with its aspect ratio, padded with black."""
    image = Image.open(path).convert(mode)
    scale = size / max(image.size)
    width, height = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    padded = Image.new(mode, (size, size))
    padded.paste(image.resize((width, height), Image.Resampling.BILINEAR), ((size - width) // 2, (size - height) // 2))
    return transforms.functional.to_tensor(padded)


def augment_dataset(dataset_dir: Path, output_dir: Path) -> None:
    """Bring every class to the size of the largest: write `<output_dir>/<class>_augmented/<number>.jpg`."""
    paths = {folder.name: sorted(folder.iterdir()) for folder in sorted(dataset_dir.iterdir())}
    largest = max(map(len, paths.values()))
    for name, files in paths.items():
        folder = output_dir / f"{name}_augmented"
        folder.mkdir(parents=True)
        for number in range(largest - len(files)):
            image = load_padded(random.choice(files))
            for transform in random.sample(TRANSFORMS, random.randint(1, len(TRANSFORMS))):
                image = transform(image)
            plt.imsave(folder / f"{number:04d}.jpg", image.permute(1, 2, 0).clamp(0, 1).numpy())


def load_dataset(dataset_dir: Path) -> Tensor:
    """Return all images, padded, as one tensor (N, 3, 224, 224)."""
    return torch.stack([load_padded(path) for path in sorted(dataset_dir.glob("*/*"))])


def load_for(model: nn.Module, paths: Iterable[Path]) -> Tensor:
    """Return all images as input of a model: one normalised tensor (N, C, H, W)."""
    channels, size, _ = model.input_size
    normalise = transforms.Normalize(model.mean, model.std)
    return torch.stack([normalise(load_padded(path, size, "RGB" if channels == 3 else "L")) for path in paths])


class ArrayFiles(Dataset):
    """`.npy` files (1, H, W) from 0 to 1, which are read and normalised on access."""

    def __init__(self, paths: Sequence[Path], labels: Sequence[int]) -> None:
        self.paths, self.labels = paths, labels
        self.normalise = transforms.Normalize(0.5, 0.5)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.normalise(torch.from_numpy(np.load(self.paths[index]))), int(self.labels[index])


class Run:
    """A model, whose frozen layers run for every batch, its loaders and its optimizer.

    `dataset` yields (image, label); `train` and `validation` are indices into it.
    """

    def __init__(
        self, model: nn.Module, dataset: Dataset, train: Sequence[int], validation: Sequence[int], batch_size: int
    ) -> None:
        self.model = model.to(DEVICE)
        pinned = DEVICE == "cuda"
        self.train_loader = DataLoader(Subset(dataset, train), batch_size, True, num_workers=WORKERS, pin_memory=pinned)
        self.validation_loader = DataLoader(
            Subset(dataset, validation), batch_size, num_workers=WORKERS, pin_memory=pinned
        )
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trainable, lr=1e-4, weight_decay=1e-4, amsgrad=True)

    def train(self) -> tuple[float, float, float]:
        """Train one epoch; return loss, accuracy and per-class accuracy."""
        self.model.train()
        losses, predictions, truths = 0.0, [], []
        for images, labels in self.train_loader:
            images, labels = images.to(DEVICE), labels.to(DEVICE)
            self.optimizer.zero_grad()
            logits = self.model(images)
            loss = cross_entropy(logits, labels)
            loss.backward()
            self.optimizer.step()
            losses += loss.item() * len(labels)
            predictions += logits.argmax(1).tolist()
            truths += labels.tolist()
        return score(losses, predictions, truths)

    def validate(self) -> tuple[float, float, float]:
        """Return loss, accuracy and per-class accuracy on the validation images."""
        return score(*classify(self.model, self.validation_loader))

    def save(self, folder: Path) -> None:
        """Save the two checkpoints that an epoch can improve."""
        for name in ("best_val_acc", "best_val_loss"):
            torch.save(self.model.state_dict(), folder / f"{name}.pt")


def image_run(
    model: nn.Module,
    paths: Sequence[Path],
    labels: np.ndarray,
    train: np.ndarray,
    validation: np.ndarray,
    batch_size: int,
) -> Run:
    """Make a run whose images are all loaded first."""
    dataset = TensorDataset(load_for(model, paths), torch.from_numpy(labels))
    return Run(model, dataset, train.tolist(), validation.tolist(), batch_size)


@torch.no_grad()
def classify(model: nn.Module, loader: DataLoader) -> tuple[float, list[int], list[int]]:
    """Return the sum of the losses, and the predicted and true classes of all images."""
    model.eval()
    losses, predictions, truths = 0.0, [], []
    for images, labels in loader:
        images, labels = images.to(DEVICE), labels.to(DEVICE)
        logits = model(images)
        losses += cross_entropy(logits, labels).item() * len(labels)
        predictions += logits.argmax(1).tolist()
        truths += labels.tolist()
    return losses, predictions, truths


def score(losses: float, predictions: Sequence[int], truths: Sequence[int]) -> tuple[float, float, float]:
    """Return mean loss, accuracy and per-class accuracy, computed sample by sample."""
    counts: dict[int, int] = {}
    right: dict[int, int] = {}
    for truth, prediction in zip(truths, predictions, strict=True):
        counts[truth] = counts.get(truth, 0) + 1
        right[truth] = right.get(truth, 0) + (truth == prediction)
    recalls = [right[truth] / count for truth, count in counts.items()]
    return losses / len(truths), sum(right.values()) / len(truths), sum(recalls) / len(recalls)


def test_checkpoint(
    model: nn.Module,
    weights: Path,
    images: Tensor,
    labels: Sequence[int],
    explained: Sequence[int],
    folder: Path,
) -> None:
    """Test a checkpoint, draw its confusion matrix, and explain images one by one.

    Args:
        model: of the architecture of the checkpoint, whose state dict is in the file `weights`.
        images, labels: (N, C, H, W), normalised, and N classes.
        explained: indices of the images that get a heatmap.
        folder: an existing folder for the figures.
    """
    model.load_state_dict(torch.load(weights, map_location=DEVICE))
    loader = DataLoader(TensorDataset(images, torch.tensor(labels)), 32, num_workers=WORKERS)
    losses, predictions, truths = classify(model, loader)
    score(losses, predictions, truths)
    confusion = np.zeros((max(labels) + 1,) * 2, dtype=int)
    for label, prediction in zip(labels, predictions, strict=True):
        confusion[label, prediction] += 1
    figure, axes = plt.subplots()
    axes.imshow(confusion, cmap="Blues")
    for (truth, prediction), count in np.ndenumerate(confusion):
        axes.text(prediction, truth, count, ha="center", va="center")
    figure.savefig(folder / "confusion.png")
    plt.close(figure)

    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (model.mean, model.std))
    with GradCAM(model, [model.get_submodule(model.cam_layer)]) as grad_cam:
        for index in explained:
            target = ClassifierOutputTarget(predictions[index])
            heatmap = grad_cam(images[index].unsqueeze(0).to(DEVICE), [target])[0]
            picture = (images[index] * std + mean).clamp(0, 1).permute(1, 2, 0).numpy()
            picture = np.broadcast_to(picture, (*heatmap.shape, 3))
            figure, axes = plt.subplots(1, 3, figsize=(10, 4))
            overlay = show_cam_on_image(picture, heatmap, use_rgb=True)
            for view, shown in zip(axes, (picture, heatmap, overlay), strict=True):
                view.imshow(shown)
                view.axis("off")
            figure.savefig(folder / f"heatmap_{index}.png")
            plt.close(figure)


def seed_everything(seed: int) -> None:
    random.seed(seed)
    torch.manual_seed(seed)
