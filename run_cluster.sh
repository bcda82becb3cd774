#!/usr/bin/env bash
# Trains and tests one run: sbatch run_cluster.sh CustomVGG True 2 32 0.1 0.001 0.99 false True
# Set partition and GPUs by sbatch's flags, or by SBATCH_PARTITION and SBATCH_GPUS.
#SBATCH --job-name=image-run
#SBATCH --output=logs/%x-%j.log
#SBATCH --open-mode=append
#SBATCH --cpus-per-task=4
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
set -euo pipefail
usage="usage: sbatch run_cluster.sh MODEL PRETRAINED EPOCHS BATCH LR WD GAMMA AUGMENTATION PLOTS"

# Slurm runs a copy of this script in another folder.
repository="$(dirname "$0")"
[ -f "$repository/src/cluster.sh" ] || repository="${SLURM_SUBMIT_DIR:-.}"
cd "$repository"
# shellcheck source=/dev/null
source src/cluster.sh

[ $# -eq 9 ] || refuse "$# arguments, not 9" "$usage"
activate_environment
run_resumable python src/sweep.py /dev/stdin --verbose <<<"$*" # the arguments as a line of a parameter file
