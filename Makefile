# Thin: what each target does is in scripts/, tests/ and benchmarks/.
PREFIX ?= /usr/local
PYTEST = .venv/bin/python -m pytest -q
PYTEST_ARGS ?=
BENCH_ARGS ?=
SOAK_ARGS ?=
FAULTS_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help run test test-quick lint bench soak faults docs install-conmon uninstall-conmon clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/make \1|\2/p' $(MAKEFILE_LIST) | column -t -s '|'

run: ## a first container: created, watched, its exit code reported, step by step
	@scripts/setup run
	@.venv/bin/python examples/first_container

test: ## all tests (as root, with real runtimes; installs what they need)
	@scripts/setup test
	@$(PYTEST) $(PYTEST_ARGS)

test-quick: ## the tests that take no more than a moment each
	@scripts/setup test
	@$(PYTEST) -m "not slow" $(PYTEST_ARGS)

lint: ## ruff, mypy and shellcheck
	@scripts/setup test
	@$(PYTEST) tests/test_linters.py

bench: ## C conmon and pyconmon side by side, see docs
	@scripts/setup bench
	@.venv/bin/python -m benchmarks $(BENCH_ARGS)

soak: ## half an hour of container lives, clients, kills, each checked (SOAK_ARGS="--minutes N")
	@scripts/setup test
	@.venv/bin/python -m soak $(SOAK_ARGS)

faults: ## each system call of a monitor fails in turn, see docs/faults.md (FAULTS_ARGS="--minutes N")
	@scripts/setup test
	@.venv/bin/python -m faults $(FAULTS_ARGS)

docs: ## the documentation as a web site, in site/
	@scripts/setup docs
	@.venv/bin/python -m mkdocs build --strict

install-conmon: ## pyconmon as this machine's monitor, below PREFIX=/usr/local
	@scripts/install-conmon $(PREFIX)

uninstall-conmon: ## take that away again
	@scripts/install-conmon --uninstall $(PREFIX)

clean: ## everything that was made here, .venv too
	@rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist site out ./*.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
