# Everything runs in .venv, with the project's root as the working folder: nothing of the project itself is installed.

PYTHON ?= python3

VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
RECENT := $(shell $(PYTHON) -c 'import sys; print("yes" * (sys.version_info >= (3, 11)))' 2>/dev/null)
INSTALLED := .venv/installed-$(VERSION)
COMPLETE := .venv/complete-$(VERSION)
DOCUMENTED := .venv/documented-$(VERSION)
RUN := .venv/bin/python -m
# Compiling takes most of the tests' time, on one core: two files at a time.
WORKERS := -n 2 --dist loadfile
# Compiles for TPUs, without one. In a folder of its own: where JAX finds it, every start looks for a TPU.
LIBTPU := .venv/libtpu
# Compiles for GPUs, without one or its driver.
CUDA := .venv/cuda
# The goldens for the slow tests: a folder with all of them where there is one, else tests/goldens.
MOM_GOLDENS ?= $(abspath $(wildcard ../shared/goldens))

# $(1): arguments of pip. $(2): extras, which pip would only install together with the project itself.
define install
@.venv/bin/python -c 'import sys, tomllib; \
	extras = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]; \
	print(*(line for name in sys.argv[1:] for line in extras[name]), sep="\n")' $(2) > .venv/extras.txt
@$(RUN) pip install --quiet --disable-pip-version-check $(1) -r .venv/extras.txt \
	$(if $(filter 3.11,$(VERSION)),-c constraints.txt)
endef

.DEFAULT_GOAL := help
.PHONY: help setup setup-all quickstart test test-slow test-exhaustive faults lint docs dist clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 12

setup: $(INSTALLED) ## makes .venv, or brings it up to date; PYTHON=python3.12 chooses the Python

setup-all: $(COMPLETE) ## ... and adds what some tests need: PyTorch, lm-eval, Hugging Face's datasets, Weights & Biases, notebooks, and what builds packages

quickstart: setup ## trains the small demonstration
	@$(RUN) train.main --config configs/quickstart.py

test: setup ## the tests
	@$(RUN) pytest $(WORKERS)

test-slow: setup $(LIBTPU)/installed $(CUDA)/installed ## the slow tests, and parity with all goldens; MOM_GOLDENS=FOLDER says where they are
	@$(if $(MOM_GOLDENS),MOM_GOLDENS=$(MOM_GOLDENS)) MOM_LIBTPU=$(abspath $(LIBTPU)) MOM_CUDA=$(abspath $(CUDA)) \
		$(RUN) pytest $(WORKERS) -m '(slow or parity) and not exhaustive'

test-exhaustive: setup $(LIBTPU)/installed $(CUDA)/installed ## further combinations of what the slow tests test
	@MOM_LIBTPU=$(abspath $(LIBTPU)) MOM_CUDA=$(abspath $(CUDA)) $(RUN) pytest $(WORKERS) -m exhaustive

faults: setup ## does some 300 faults to runs, and makes docs/faults.md; half an hour
	@PYTHONPATH=tests:tests/helpers:tests/faults:. $(RUN) campaign

lint: setup ## style, format and types
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy

# The version that the installed JAX names in its extra "tpu".
$(LIBTPU)/installed: $(INSTALLED)
	@echo 'Installing libtpu into $(LIBTPU).'
	@$(RUN) pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(LIBTPU) \
		"$$(.venv/bin/python -c 'import importlib.metadata as m; \
		print(next(r.split(";")[0] for r in m.requires("jax") if r.startswith("libtpu")))')"
	@touch $@

# JAX's plugin for CUDA, of the installed JAX's version; it is not looked for unless its folder is on the path.
$(CUDA)/installed: $(INSTALLED)
	@echo 'Installing the plugin for CUDA into $(CUDA).'
	@$(RUN) pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(CUDA) \
		$$(.venv/bin/python -c 'import importlib.metadata as m; \
		print(*(f"jax-cuda13-{part}==" + m.version("jax") for part in ("plugin", "pjrt")))')
	@touch $@

docs: $(DOCUMENTED) ## the documentation site in build/site, with every link checked
	@NO_MKDOCS_2_WARNING=1 $(RUN) mkdocs build --strict
	@echo 'build/site/index.html'

dist: $(COMPLETE) ## wheel and sdist in dist/, checked
	@rm -rf dist *.egg-info
	@$(RUN) build --outdir dist .
	@$(RUN) twine check --strict dist/*

clean: ## removes .venv and the caches; keeps runs/
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache build dist *.egg-info
	find . -path ./runs -prune -o -path ./.git -prune -o -name __pycache__ -prune -exec rm -rf {} +

# Python 3.11 gets the versions of constraints.txt, any other the newest that requirements.txt allows. The last line
# is reached only when all of it is there; where it was not, for this Python, the folder is made anew.
$(INSTALLED): requirements.txt constraints.txt pyproject.toml
	$(if $(RECENT),,$(error $(PYTHON) is $(if $(VERSION),Python $(VERSION),no Python): \
		3.11 or newer is needed, for example: make setup PYTHON=python3.11))
	@echo 'Installing requirements.txt and the extras dev, gpt2 and eval into .venv (Python $(VERSION)): about a minute.'
	@test -e $@ || $(PYTHON) -m venv --clear .venv
	@rm -f $@
	$(call install,-r requirements.txt,dev gpt2 eval)
	@touch $@

$(COMPLETE): $(INSTALLED)
	@echo 'Installing the extras torch, lmeval, hf, wandb, notebooks and release into .venv.'
	$(call install,,torch lmeval hf wandb notebooks release)
	@touch $@

$(DOCUMENTED): $(INSTALLED)
	@echo 'Installing the extra docs into .venv.'
	$(call install,,docs)
	@touch $@
