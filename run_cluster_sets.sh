#!/usr/bin/env bash
# Trains and tests all runs of a parameter file: sbatch run_cluster_sets.sh 7
# The whole experiment: sbatch --array=1-35 run_cluster_sets.sh
# With your own file and flags of src/sweep.py: sbatch run_cluster_sets.sh mine.txt -d photos
# Check the arguments on the login node: bash run_cluster_sets.sh --check 7
# Set partition and GPUs by sbatch's flags, or by SBATCH_PARTITION and SBATCH_GPUS.
#SBATCH --job-name=image-sets
#SBATCH --output=logs/%x-%j.log
#SBATCH --open-mode=append
#SBATCH --cpus-per-task=4
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
set -euo pipefail
usage="usage: sbatch run_cluster_sets.sh N|FILE [FLAG...], or sbatch --array=1-35 run_cluster_sets.sh [FLAG...]"

# Slurm runs a copy of this script in another folder.
repository="$(dirname "$0")"
[ -f "$repository/src/cluster.sh" ] || repository="${SLURM_SUBMIT_DIR:-.}"
cd "$repository"
# shellcheck source=/dev/null
source src/cluster.sh

look=()
if [ "${1:-}" = --check ]; then
  look=(--dry-run)
  shift
fi
name="${SLURM_ARRAY_TASK_ID:-}"
if [ $# -gt 0 ] && [[ "$1" != -* ]]; then
  name="${1:-$name}"
  shift
fi
[ -n "$name" ] || refuse "no parameter file is named" "$usage"
file="$name"
[[ "$name" =~ [^0-9] ]] || file="parameters/hyperparameters_$name.txt"
[ -f "$file" ] || refuse "there is no $file" "$usage"
activate_environment
run_resumable python src/sweep.py "$file" "$@" "${look[@]}"
