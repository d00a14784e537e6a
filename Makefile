# Every target does its own set-up: a virtual environment in .venv, from setup.cfg's ranges.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test lint clean

$(INSTALLED): setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

demo: $(INSTALLED)
	$(BIN)/python train.py --config configs/scenes_tiny.py --train.run-dir out/scenes_tiny
	$(BIN)/python sample.py --checkpoint out/scenes_tiny --prompts-file configs/scenes_prompts.txt --out out/demo.png
	@echo
	@echo "Open out/demo.png: pictures that the model just trained drew for the captions under them."
	@echo "Draw your own:    $(BIN)/python sample.py --checkpoint out/scenes_tiny --prompt 'a red star' --n 4"
	@echo "How good is it?   $(BIN)/python -m glide_jax.evaluation.scenes --checkpoint out/scenes_tiny"
	@echo "Your own folder:  $(BIN)/python train.py --config configs/scenes_base64.py --data.source folder --data.path FOLDER"
	@echo "Read on:          README.md, CONTRIBUTING.md"

test: $(INSTALLED)
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

clean:
	rm -rf $(VENV) out *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
