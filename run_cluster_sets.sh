#!/usr/bin/env bash
# All runs of a parameter file: sbatch run_cluster_sets.sh 7
# The whole experiment: sbatch --array=1-35 run_cluster_sets.sh
# Partition and GPUs come from sbatch's flags, or from SBATCH_PARTITION and SBATCH_GPUS.
#SBATCH --job-name=image-sets
#SBATCH --output=logs/%x-%j.log
#SBATCH --open-mode=append
#SBATCH --cpus-per-task=4
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
set -euo pipefail
usage="usage: sbatch run_cluster_sets.sh N, or sbatch --array=1-35 run_cluster_sets.sh"

# Slurm runs a copy of this script that lies elsewhere.
repository="$(dirname "$0")"
[ -f "$repository/src/cluster.sh" ] || repository="${SLURM_SUBMIT_DIR:-.}"
cd "$repository"
# shellcheck source=/dev/null
source src/cluster.sh

[ $# -le 1 ] || refuse "$# arguments, not 1" "$usage"
number="${1:-${SLURM_ARRAY_TASK_ID:-}}"
[ -n "$number" ] || refuse "no parameter file is named" "$usage"
file="parameters/hyperparameters_$number.txt"
[ -f "$file" ] || refuse "there is no $file" "$usage"
activate_environment
run_resumable python src/sweep.py "$file"
