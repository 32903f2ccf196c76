# Two commands are enough: `make demo` and `make test`. Both set up what is missing first.
# The first Python 3.11 or newer on the path makes the environments; name another one with `make demo PYTHON=...`.
PYTHON ?= $(shell for candidate in python3 python3.13 python3.12 python3.11 python3.14; do \
	$$candidate -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$candidate && break; \
	done || echo python3)
BOOTSTRAP = $(PYTHON) -m backend.bootstrap
BIN = .venv/bin
LOCK = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate --upgrade

.DEFAULT_GOAL := help
.PHONY: help demo serve test check check-network check-training check-service fuzz parity lint setup lock clean clean-demo

help:  ## Show this list
	@echo "make TARGET [ARGS='...']"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' $(MAKEFILE_LIST) | \
		while IFS='|' read -r target text; do printf '  %-12s %s\n' "$$target" "$$text"; done

demo:  ## Label Studio with a ready project, every object already outlined (ARGS='--help' for its options)
	@$(BOOTSTRAP) app label-studio
	@$(BIN)/transfiner demo $(ARGS)

serve:  ## The backend alone, for a Label Studio that you run yourself
	@$(BOOTSTRAP) app
	@$(BIN)/transfiner serve $(ARGS)

test:  ## All tests, the end-to-end test in a real Label Studio and a real browser included
	@$(BOOTSTRAP) dev label-studio browser
	@$(BIN)/python -m pytest $(ARGS)

check:  ## What to run while editing: lint, types and the unit tests, under three minutes on two cores
	@$(BOOTSTRAP) dev
	@$(MAKE) --no-print-directory $(if $(filter output-sync,$(.FEATURES)),--output-sync=target) -j2 check-network check-training check-service lint

check-network:
	$(BIN)/python -m pytest -q -m unit tests/model $(ARGS)

check-training:
	$(BIN)/python -m pytest -q -m unit tests/training $(ARGS)

check-service:
	$(BIN)/python -m pytest -q -m unit tests/backend tests/integration tests/docs $(ARGS)

parity:  ## The network's tests on an upstream checkout of detectron2 (DETECTRON2=FOLDER)
	@test -f "$(DETECTRON2)/detectron2/__init__.py" || { echo "DETECTRON2='$(DETECTRON2)' is no checkout of detectron2; \
	give the folder that holds detectron2/__init__.py"; exit 2; }
	@$(BOOTSTRAP) dev
	PYTHONPATH="$(DETECTRON2)" TRANSFINER_DETECTRON2="$(DETECTRON2)" $(BIN)/python -m pytest tests/model $(ARGS)

gpu-check:  ## What wants a GPU, with aims, and a report (ARGS='--device cpu --tiny' rehearses it)
	@$(BOOTSTRAP) dev
	@$(BIN)/python -m training.benchmark.gpu_check $(ARGS)

fuzz:  ## 10,000 hostile inputs to a real API process, with a report (ARGS='--inputs N --report FILE')
	@$(BOOTSTRAP) dev
	@$(BIN)/python -m tests.support.fuzz_api $(ARGS)

lint:  ## ruff, mypy, and the direction of imports
	@$(BOOTSTRAP) dev
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

setup:  ## Everything that the other targets would set up on their first run
	@$(BOOTSTRAP) dev label-studio browser

lock:  ## Choose versions anew: requirements/*.in -> requirements/*.txt
	@$(BOOTSTRAP) dev
	$(LOCK) requirements/app.in requirements/dev.in -o requirements/dev.txt
	$(LOCK) requirements/app.in -c requirements/dev.txt -o requirements/app.txt
	$(LOCK) requirements/api.in -c requirements/dev.txt -o requirements/api.txt
	$(LOCK) requirements/label-studio.in -o requirements/label-studio.txt

clean:  ## Remove the environments and caches; the demo's annotations stay
	rm -rf .venv .venv-label-studio .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info
	rm -rf output var/log

clean-demo:  ## Remove the demo's Label Studio with its annotations
	rm -rf var/demo
