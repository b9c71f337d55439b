# make demo: everything from nothing to a trained STAR and its report. make test: install, lint and
# run all tests; make test-fast: all but the slow tests; make coverage: which lines these run.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
# Keep compiled modules, whatever the shell says: tests start hundreds of processes.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test test-fast lint coverage docs

$(VENV)/installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --requirement requirements.txt --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed requirements-dev.txt
	$(RUN) -m pip install --quiet --requirement requirements-dev.txt
	touch $@

demo: $(VENV)/installed
	$(RUN) launch/prepare.py --dataset=synthetic_vcm --size=demo
	$(RUN) launch/train.py --config=configs/star_synthetic_demo.py --workdir=runs/demo
	$(RUN) launch/eval.py --workdir=runs/demo
	$(RUN) launch/report.py --workdir=runs/demo
	@echo "contact sheet: data/synthetic_vcm_demo/contact_sheet.png"
	@echo "config, metrics, checkpoints and evaluation: runs/demo"
	@echo "report, to open in a browser: runs/demo/report.html"

lint: $(VENV)/installed-dev
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy

# A file's tests share what they train, so they stay in one process; slow files start first.
PYTEST := $(RUN) -m pytest --numprocesses=logical --maxprocesses=4 --dist=loadfile --no-loadscope-reorder

TESTS ?= tests

test: lint
	$(PYTEST) $(TESTS)

test-fast: $(VENV)/installed-dev
	$(PYTEST) -m "not slow"

coverage: $(VENV)/installed-dev
	$(PYTEST) -m "not slow" --cov --cov-report=term-missing:skip-covered

docs: $(VENV)/installed requirements-docs.txt  # the site, into site/
	$(RUN) -m pip install --quiet --requirement requirements-docs.txt
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict --quiet
