# Functions of the cluster scripts, which source this file in the repository's folder.
# shellcheck shell=bash

# Exits with status 2 for invalid input: $1 is the error, $2 the optional usage.
refuse() {
  printf '%s\n' "error: $1" "${@:2}" >&2
  exit 2
}

# Activates the environment in PYTHON_ENVIRONMENT (Slurm itself sets ENVIRONMENT): conda:NAME, venv:FOLDER or none.
# The default is .venv if it exists, else none.
activate_environment() {
  local default=none
  if [ -f .venv/bin/activate ]; then default=venv:.venv; fi
  local environment="${PYTHON_ENVIRONMENT:-$default}"
  local name="${environment#*:}"
  set +u # activation scripts read unset variables
  case "$environment" in
    conda:?*)
      command -v conda >/dev/null || refuse "PYTHON_ENVIRONMENT is $environment, but there is no conda on PATH"
      eval "$(conda shell.bash hook)"
      conda activate "$name" || refuse "conda has no environment $name: create it with setup_conda.sh"
      ;;
    venv:?*)
      [ -f "$name/bin/activate" ] || refuse "PYTHON_ENVIRONMENT is $environment, but there is no $name/bin/activate"
      # shellcheck source=/dev/null
      source "$name/bin/activate"
      ;;
    none) ;;
    *) refuse "PYTHON_ENVIRONMENT is $environment: it must be conda:NAME, venv:FOLDER or none" ;;
  esac
  set -u
}

# Runs a program that can resume, and exits with its status. On the signal that Slurm sends before the time limit, the
# program is stopped and the job requeued.
run_resumable() {
  local program status=0 warned=false
  set -m # otherwise the program would ignore SIGINT, on which it releases its runs
  "$@" &
  program=$!
  trap 'warned=true; kill -INT "$program" || true' USR1
  wait "$program" || status=$?
  if $warned; then # the signal ended the wait, the program still runs
    status=0
    wait "$program" || status=$?
  fi
  if $warned && [ "$status" -eq 130 ] && [ -n "${SLURM_JOB_ID:-}" ]; then
    echo "the time limit is near: job $SLURM_JOB_ID is requeued" >&2
    scontrol requeue "$SLURM_JOB_ID"
  fi
  exit "$status"
}
