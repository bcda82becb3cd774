#!/usr/bin/env bash
# Creates or updates the conda environment: bash setup_conda.sh, or sbatch setup_conda.sh
# Jobs use it with PYTHON_ENVIRONMENT=conda:image-classification.
#SBATCH --job-name=image-setup
#SBATCH --output=logs/%x-%j.log
#SBATCH --open-mode=append
#SBATCH --time=01:00:00
#SBATCH --requeue
set -euo pipefail
usage="usage: bash setup_conda.sh [NAME]"

# Slurm runs a copy of this script in another folder.
repository="$(dirname "$0")"
[ -f "$repository/src/cluster.sh" ] || repository="${SLURM_SUBMIT_DIR:-.}"
cd "$repository"
# shellcheck source=/dev/null
source src/cluster.sh

[ $# -le 1 ] || refuse "$# arguments, not 1" "$usage"
name="${1:-image-classification}"
[[ "$name" =~ ^[A-Za-z0-9_][A-Za-z0-9_.-]*$ ]] || refuse "$name is not a valid environment name" "$usage"
command -v conda >/dev/null || refuse "there is no conda on PATH"

action=create
if conda env list | awk -v name="$name" '$1 == name { found = 1 } END { exit !found }'; then action=install; fi
conda "$action" --yes --name "$name" python=3.11 pip
bash src/install.sh conda run --no-capture-output --name "$name" python
echo "the environment is ready: PYTHON_ENVIRONMENT=conda:$name sbatch run_cluster.sh ..."
