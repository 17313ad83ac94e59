# make demo   install what is needed and run the whole tiny pipeline
# make test   lint, types and the fast tests
# make slow   the tests marked slow: kill drills, two-process runs, the demo from an empty folder
# make docs   the documentation as a site in build/site; broken links are errors
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test slow lint docs clean

demo: $(VENV)/installed
	$(BIN)/align run recipes/tiny

test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest

slow: $(VENV)/installed-test
	$(BIN)/pytest -m slow

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tools/check_prose.py

docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

$(VENV)/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/installed-%: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[$*]"
	touch $@ $(VENV)/installed

clean:
	rm -rf $(VENV) runs build *.egg-info
