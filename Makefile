# make demo     everything on this machine: Kafka, Valkey, a trained model, live events, alerts     ARGS='--json out.json'
# make test     the test suite, on real servers, in two processes                                   ARGS='-k fold -x'
# make slow     the tests that take more than twenty seconds each: outages, replays, training       ARGS='-k drain'
# make bench    events/s and latency of ours beside an idiomatic service and one of Quix Streams   ARGS='--json out.json'
# make chaos    ten minutes of kills and outages, then every record and alert is compared          ARGS='--json out.json'
# make alerts   every alert of the rules, caused for real on this machine                           ARGS='--json out.json'
# make fuzz     a million malformed records and HTTP requests                                       ARGS='--json out.json'
# make lint     ruff, the formatter's opinion, mypy --strict
# make format   what the linter and formatter can mend by themselves
#
# The environment lives in .venv, made once and again whenever pyproject.toml or constraints.txt change.
# Python 3.11 or later is all that must be there already; PYTHON=/path/to/python3.12 chooses one.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

ARGS ?=
BIN := .venv/bin
STAMP := .venv/.installed
SPARK := .venv/.spark-installed
EXTRAS := local,traces,train,edge,dev
# Of the tests; each has servers of its own. Most of the longest tests wait for time to pass.
PROCESSES ?= 2

# 3.11 first: it is what constraints.txt was made with.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	"$$p" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { command -v "$$p"; break; }; done)

.PHONY: help demo test slow bench chaos alerts fuzz lint format clean
help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

demo: $(STAMP)
	@$(BIN)/ebbtide demo $(ARGS)

test: $(STAMP)
	$(BIN)/python -m pytest -n $(PROCESSES) --dist loadfile --no-loadscope-reorder -m 'not slow' $(ARGS)

slow: $(SPARK)
	$(BIN)/python -m pytest -n $(PROCESSES) --dist loadfile --no-loadscope-reorder -m slow $(ARGS)

bench: $(STAMP)
	@$(BIN)/python -m tests.bench $(ARGS)

chaos: $(STAMP)
	@$(BIN)/python -m tests.chaos $(ARGS)

alerts: $(STAMP)
	@$(BIN)/python -m tests.alerts $(ARGS)

fuzz: $(STAMP)
	@$(BIN)/python -m tests.fuzz $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

# Apart: 450 MB that only `make slow` needs, a minute or two.
$(SPARK): $(STAMP)
	@echo "Installing Spark into .venv for the slow tests (450 MB)"
	@$(BIN)/python -m pip install --disable-pip-version-check --progress-bar on --quiet \
		-e '.[spark]' -c constraints.txt
	@touch $@

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Ebbtide needs Python 3.11 or later with its venv module" \
		"(on Debian: apt-get install python3 python3-venv); PYTHON=... names another one." >&2; exit 1; }
	@test -x $(BIN)/python || { echo "Making .venv with $(PYTHON)"; "$(PYTHON)" -m venv .venv; }
	@echo "Installing Ebbtide and what it needs into .venv (a few minutes the first time: TensorFlow is 600 MB)"
	@$(BIN)/python -m pip install --disable-pip-version-check --progress-bar on --quiet \
		-e '.[$(EXTRAS)]' -c constraints.txt
	@$(BIN)/ebbtide stack warm || echo "Kafka will start without its cache, some seconds slower" >&2
	@touch $@
