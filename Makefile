# Two commands: `make demo` runs the main job, `make test` passes the tests. Both set up what they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Two more than cores: most tests wait for programs and servers more than they compute.
WORKERS ?= $(shell expr $$(getconf _NPROCESSORS_ONLN) + 2)
NPM_STAMP := tests/npm/node_modules/.package-lock.json

.PHONY: install system demo test kill-matrix random-kills check format clean

install: $(STAMP)

# torch comes first and by pip: pip's own configuration may name a CPU build that lies on disk.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "TrainForge needs Python 3.11 or newer; run make PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	touch $(STAMP)

# What the tests need beside Python: node for GitHub's published examples, PostgreSQL as second database.
system:
	@sh tests/system-packages

$(NPM_STAMP): tests/npm/package.json tests/npm/package-lock.json
	npm ci --prefix tests/npm --no-audit --no-fund --silent
	touch $(NPM_STAMP)

demo: $(STAMP)
	$(BIN)/trainforge demo

test: system $(STAMP) $(NPM_STAMP)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

# Every failpoint in every way, and 500 kills at random: docs/reliability.md.
kill-matrix: $(STAMP)
	$(BIN)/python -m tests.kill_matrix --all $(ARGS)

random-kills: $(STAMP)
	$(BIN)/python -m tests.kill_matrix.random_kills $(ARGS)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Each parser for so many SECONDS; what fails is written to fuzz-found.
fuzz: $(STAMP)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev,fuzz]'
	$(BIN)/python -m tests.fuzz all --seconds $(or $(SECONDS),60)

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) tests/npm/node_modules .mypy_cache .ruff_cache .pytest_cache build dist *.egg-info
