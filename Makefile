# Two commands to start with: `make train` and `make test`.

PYTHON ?= python3
VENV ?= .venv
IN_VENV = $(VENV)/bin/python
IN_PARALLEL = OMP_NUM_THREADS=1 $(IN_VENV)  # one test process per core

.PHONY: install train test test-slow lint figures

install: $(VENV)/.installed

train: $(VENV)/.installed
	$(IN_VENV) src/dataset/sample.py
	$(IN_VENV) src/main.py -m EfficientNetLite0 -p -c

test: $(VENV)/.installed-tests
	$(IN_PARALLEL) -m pytest -n logical --dist loadfile

test-slow: $(VENV)/.installed-tests
	$(IN_PARALLEL) -m pytest -n logical --dist loadfile -m slow

figures: $(VENV)/.installed
	bash readme_images/make.sh $(IN_VENV)

lint: $(VENV)/.installed-tests
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/shellcheck .ci/run $(wildcard *.sh src/*.sh benchmarks/*.sh readme_images/*.sh)

$(VENV)/.installed: requirements.txt constraints.txt src/install.sh
	$(PYTHON) -m venv $(VENV)
	bash src/install.sh $(IN_VENV)
	touch $@

$(VENV)/.installed-tests: $(VENV)/.installed tests/requirements.txt $(wildcard requirements-*.txt)
	$(IN_VENV) -m pip install --quiet -r tests/requirements.txt -c constraints.txt
	touch $@
