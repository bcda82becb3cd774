# What the scripts for a cluster share; they source it in the repository's folder.
# shellcheck shell=bash

# Ends for a user's error: $1 says what is wrong, $2, if it is there, how the script is used.
refuse() {
  printf '%s\n' "error: $1" "${@:2}" >&2
  exit 2
}

# Activates what PYTHON_ENVIRONMENT (Slurm sets ENVIRONMENT itself) names: conda:NAME, venv:FOLDER or none.
# Where it is not set: .venv if it is there, else none.
activate_environment() {
  local default=none
  if [ -f .venv/bin/activate ]; then default=venv:.venv; fi
  local environment="${PYTHON_ENVIRONMENT:-$default}"
  local name="${environment#*:}"
  set +u # activation scripts read variables that are not set
  case "$environment" in
    conda:?*)
      command -v conda >/dev/null || refuse "PYTHON_ENVIRONMENT is $environment, but there is no conda on PATH"
      eval "$(conda shell.bash hook)"
      conda activate "$name" || refuse "conda has no environment $name: make it with setup_conda.sh"
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

# Runs a program that goes on where it was when it is started again, and ends with its status. On the signal that Slurm
# sends before the time limit, the program is stopped and the job put back into the queue.
run_resumable() {
  local program status=0 warned=false
  set -m # else bash would have the program ignore SIGINT, on which it gives back what it claimed
  "$@" &
  program=$!
  trap 'warned=true; kill -INT "$program" || true' USR1
  wait "$program" || status=$?
  if $warned; then # the signal ended the wait, not the program
    status=0
    wait "$program" || status=$?
  fi
  if $warned && [ "$status" -eq 130 ] && [ -n "${SLURM_JOB_ID:-}" ]; then
    echo "the time limit is near: job $SLURM_JOB_ID goes back into the queue" >&2
    scontrol requeue "$SLURM_JOB_ID"
  fi
  exit "$status"
}
