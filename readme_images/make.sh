#!/usr/bin/env bash
# Draws the figures of the documentation from the offline sample, the digits and the stored results:
# bash readme_images/make.sh [PYTHON]
# Not included: explore.png, a screenshot, and array_study/, which needs other data.
set -euo pipefail
images="$(cd "$(dirname "$0")" && pwd)"
sources="$images/../src"
python="$(realpath --no-symlinks "${1:-.venv/bin/python}")"
place="$(mktemp -d)"
trap 'rm -r "$place"' EXIT
cd "$place"

"$python" "$sources/dataset/sample.py"
"$python" "$sources/main.py" -m EfficientNetLite0 -p -c --wandb disabled
run="$(echo saved_models/EfficientNetLite0_*)"
cp "$run/curves.png" "$images/results/sample_curves.png"
cp "$run/confusion_matrices/cm_best_val_acc.png" "$images/results/sample_confusion.png"
for class in Axe Book Hammer; do
  cp "$run/heatmaps/best_val_acc/EfficientNetLite0_${class}_3_"* "$images/activation_maps/am_${class,,}.png"
done

rm -r dataset dataset_testing
"$python" "$sources/dataset/dataset_main.py" --source sample --figures-dir "$images/dataset_images"
"$python" "$sources/dataset/array_images.py" digits sets
"$python" "$sources/dataset/array_images.py" inspect sets/TRAIN sets/TEST sets/TEST2 --out "$images/array_images"

"$python" "$sources/report.py" --runs "$images/../saved_models/results/sweep.csv" --figures-dir sweep
cp sweep/EfficientNetLite0_lr_wd.png "$images/results/sweep_lr_wd.png"
cp sweep/EfficientNetLite0_top5.png "$images/results/sweep_top5.png"
