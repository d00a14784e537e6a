# Every target does its own set-up: a virtual environment in .venv, from setup.cfg's ranges.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist worksteal

.PHONY: demo test test-slow test-all test-beam test-tpu test-cuda bench lint clean

$(INSTALLED): setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

demo: $(INSTALLED)
	$(BIN)/python examples/demo.py
	$(BIN)/python examples/unclip.py
	@echo
	@echo "The shipped models' samples: out/demo.png, out/demo_upsampled.png, out/demo_inpainted.png, out/unclip.png"
	@echo "Your own prompt:   $(BIN)/python sample.py --checkpoint demo --prompt 'a red star' --n 4"
	@echo "Next: the training loop, on the already trained base model, a few minutes. Ctrl-C stops it; the same command resumes."
	@echo
	$(BIN)/python train.py --config scenes_base32 --train.run-dir out/scenes_base32 \
		--train.init-from demo/base --train.steps 60 --optim.learning-rate 1e-4 \
		--train.checkpoint-every-steps 30 --train.log-every-steps 10 --train.validate-every-steps 30 --train.sample-every-steps 60
	@echo
	@echo "Next: 64 samples of the trained model, compared with 512 held-out images. A KID of 0 is as close as the data itself."
	@echo
	$(BIN)/python -m glide_jax.evaluate --checkpoint out/scenes_base32 --metrics kid --n 64 --reference-n 512 \
		--sampler dpmpp_2m --steps 12
	@echo
	@echo "Measure images:    $(BIN)/python -m glide_jax.evaluate --images FOLDER --reference FOLDER"
	@echo "Its samples for held-out captions: out/scenes_base32/samples/0000060.png"
	@echo "Its accuracy:      $(BIN)/python -m glide_jax.evaluation.scenes --checkpoint out/scenes_base32 --n 64"
	@echo "Train on yours:    $(BIN)/python train.py --config scenes_base32 --data.source folder FOLDER"
	@echo "Read next:         README.md, CONTRIBUTING.md"

test: $(INSTALLED)
	$(PYTEST) -m 'not slow'

test-slow: $(INSTALLED)
	$(PYTEST) -m slow

# Both in one go, which share what they have trained and compiled. Slow tests often wait for what
# they have started: three processes for two cores.
test-all: $(INSTALLED)
	$(PYTEST) --numprocesses 3

# Each in an environment of its own: Beam holds back the versions of what the other tests run with,
# and the compilers for TPUs and GPUs, which need none, are large.
test-beam: $(VENV)-beam/.installed
	$(VENV)-beam/bin/python -m pytest tests/test_prepare_beam.py

test-tpu: $(VENV)-tpu/.installed
	$(VENV)-tpu/bin/python -m pytest tests/test_plan.py tests/test_tpu_attention.py

test-cuda: $(VENV)-cuda/.installed
	$(VENV)-cuda/bin/python -m pytest tests/test_plan.py tests/test_gpu_attention.py

# This project's speed against PyTorch's. On a machine without a GPU, PyTorch's smaller build is
# enough: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make bench
bench: $(VENV)-bench/.installed
	$(VENV)-bench/bin/python -m benchmarks.against_torch

$(VENV)-%/.installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)-$*
	$(VENV)-$*/bin/pip install --quiet --upgrade pip
	$(VENV)-$*/bin/pip install --quiet --editable ".[dev,$*]"
	touch $@

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(VENV)-beam $(VENV)-tpu $(VENV)-cuda $(VENV)-bench out .compiled *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
