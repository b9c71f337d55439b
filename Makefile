# make demo: everything from nothing to an evaluated STAR. make test: install and run all checks;
# make test-fast leaves out the slow tests.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python

.PHONY: demo test test-fast lint docs

$(VENV)/installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed requirements-dev.txt
	$(RUN) -m pip install --quiet --requirement requirements-dev.txt
	touch $@

demo: $(VENV)/installed
	$(RUN) launch/prepare.py --dataset=synthetic_vcm --size=demo
	$(RUN) launch/train.py --config=configs/star_synthetic_demo.py --workdir=runs/demo
	$(RUN) launch/eval.py --workdir=runs/demo
	@echo "contact sheet: data/synthetic_vcm_demo/contact_sheet.png"
	@echo "config, metrics, checkpoints and evaluation: runs/demo"

lint: $(VENV)/installed-dev
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy

# Slow tests run one after the other: they start processes that wait for each other for limited times.
test: test-fast
	$(RUN) -m pytest -m slow

test-fast: lint
	$(RUN) -m pytest -m "not slow" --numprocesses=2 --dist=loadfile

docs: $(VENV)/installed requirements-docs.txt  # the site, into site/
	$(RUN) -m pip install --quiet --requirement requirements-docs.txt
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict --quiet
