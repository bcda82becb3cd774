"""Random crops, flips and colour changes of training batches: this project and torchvision's v2 transforms.

This project transforms a whole batch at once, with different parameters for each image. Torchvision's transforms draw
one set of parameters per call, so they are called image by image. Both start from the same uint8 batch and end with
float32. They take turns in one process.
"""

from __future__ import annotations

from measuring import add_number, compare_rates, write_results  # isort: skip  (it adds src/ to the path)
from common import ArgumentParser, check_minimum, run_program

BATCH, SIDE = 32, 224


def main() -> int:
    parser = ArgumentParser(description="Measures random augmentation of batches.")
    add_number(parser, "--repeats", 20, "repetitions")
    arguments = parser.parse_args()
    check_minimum(arguments, repeats=1)
    import torch
    from torchvision.transforms import v2

    from pipeline.augmentation import augment_batch
    from pipeline.recipes import RECIPES

    how = RECIPES["finetune"].augmentation
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(SIDE, scale=(1 - how.crop, 1), antialias=False),
            v2.RandomHorizontalFlip(how.flip),
            v2.ColorJitter(how.colour, how.colour, how.colour),
            v2.ToDtype(torch.float32),
        ]
    )
    images = torch.randint(0, 256, (BATCH, 3, SIDE, SIDE), dtype=torch.uint8)
    images = images.contiguous(memory_format=torch.channels_last)
    sides = {
        "project": lambda: augment_batch(images, how),
        "torchvision": lambda: torch.stack([transform(image) for image in images]),
    }
    for change in sides.values():
        change()  # warms up
    rates, ratio = compare_rates(arguments.repeats, BATCH, sides)
    results = {"batch": BATCH, "side": SIDE, "images per second": rates, "ratio": ratio}
    write_results("batch_augmentation", results)
    return 0


if __name__ == "__main__":
    run_program(main)
