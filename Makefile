# Each target sets itself up: `make demo` and `make test` work from a fresh clone, in any order.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test unit test-slow lint format bench-setup bench docs-benchmarks clean
.DEFAULT_GOAL := demo

# torch comes as the build that constraints.txt pins, in the same pip call as everything else. Python compiles what is imported, when it is:
# compiling all that is installed would take longer than installing it.
.venv/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || (echo "likely needs Python 3.11 or newer; set PYTHON=..."; exit 1)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --no-compile --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: .venv/.ready  ## fit one model per family to digits and write a report
	$(BIN)/likely compare digits
	@echo "The report: $(CURDIR)/likely-runs/digits/report.html"

lint: .venv/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# Types are checked beside the tests, which take longer: so that no core waits.
test: .venv/.ready  ## lint, types and the fast tests
	$(MAKE) --jobs 2 lint unit

# One thread for each of the processes: tests are small, and more would only wait for each other.
unit: .venv/.ready
	OMP_NUM_THREADS=1 $(BIN)/pytest -m 'not slow' -n auto --maxprocesses 4 --dist worksteal

test-slow: .venv/.ready  ## the full product of checks
	$(BIN)/pytest -m slow --timeout 1800

format: .venv/.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv-peers/.ready: benchmarks/peers.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/pip install --no-compile --quiet --disable-pip-version-check -r benchmarks/peers.txt
	@touch $@

bench-setup: .venv/.ready .venv-peers/.ready  ## peers in their own environment

bench: bench-setup
	$(BIN)/python benchmarks/run_all.py

docs-benchmarks: .venv/.ready
	$(BIN)/python benchmarks/write_docs.py

clean:
	rm -rf .venv .venv-peers likely-runs
