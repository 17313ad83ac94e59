# make demo   install what is needed and run the whole tiny pipeline
# make real   align SmolLM2-135M-Instruct, a pretrained chat model: docs/main_road.md; SEED=1 for another seed
# make test   lint, types and the fast tests
# make slow   the tests marked slow: kill drills, two-process runs, the demo from an empty folder
# make docs   the documentation as a site in build/site; broken links are errors
# make book   the guide as build/guide.pdf
# make notebooks   the guide's chapters as notebooks in build/notebooks
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

SEED ?= 0

.PHONY: demo real test slow lint docs book notebooks clean

demo: $(VENV)/installed
	$(BIN)/align run recipes/tiny

real: $(VENV)/installed-serve
	model=$$($(BIN)/python tools/smollm2.py) && \
	  $(BIN)/align run recipes/smollm2-135m --seed $(SEED) --out runs/smollm2-135m/seed$(SEED) --set model=$$model

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

book: $(VENV)/installed-book
	$(BIN)/python tools/guide_pdf.py

notebooks: $(VENV)/installed-book
	$(BIN)/python tools/guide_notebooks.py

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
