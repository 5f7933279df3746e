# make help lists the targets. Each one sets up what it needs on a bare machine and reuses it afterwards.
.DEFAULT_GOAL := help
PRESET ?= laptop
STUDY ?= laptop
DATA ?=
NAME ?=
ARGS ?=
JOBS ?=
PROCESSES ?=
RUNNER ?=
# what is typed reaches a script through the environment as it is: neither make nor the shell reads into it
# (ARGS alone is options, words of the shell)
unexport PRESET DATA NAME JOBS PROCESSES RUNNER STUDY
reproduce rewards: export STUDY_PRESET := $(value PRESET)
reproduce rewards: export STUDY_DATA := $(value DATA)
reproduce rewards: export STUDY_NAME := $(value NAME)
reproduce: export STUDY_JOBS := $(value JOBS)
reproduce: export STUDY_PROCESSES := $(value PROCESSES)
reproduce: export STUDY_RUNNER := $(value RUNNER)
paper: export STUDY_NAME := $(value STUDY)
# a worker a core, one thread each: the smoke study on one, the unit tests file by file on the others
PYTEST := OMP_NUM_THREADS=1 python -m pytest -n auto --dist loadfile

export PATH := $(CURDIR)/.venv/bin:$(PATH)
export JUPYTER_PREFER_ENV_PATH := 1# the kernel named python3 is the one in .venv, not one in the home folder
export OMP_WAIT_POLICY := PASSIVE# spinning threads collapse when anything else uses a core
export TOKENIZERS_PARALLELISM := false
export DVC_NO_ANALYTICS := 1
export PYTHONHASHSEED := 0

# what is thrown at data, settings, runs and the language-model judge: docs/what_was_thrown_at_it.md
CAMPAIGN := data_files data_read data_clean data_prepare adapters profile signed_scores cases study wrong_presets config \
	models families templates resume run encoder rewards_llm rewards_llm_load plain_tables

.PHONY: help setup test quick campaign mutants reproduce rewards paper docs lab notebooks-clean clean

help:             ## this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):[^#]*## */  make \1\t/' | expand -t 24

.venv/.installed: pyproject.toml requirements/lock.txt requirements/models.txt tools/setup.sh
	sh tools/setup.sh
	@touch $@

setup: .venv/.installed ## the environment in .venv: pinned packages, torch, Jupyter kernel

test: setup       ## style, unit tests, the smoke study from a clean copy, every notebook again under nbval
	ruff check . && ruff format --check .
	$(PYTEST) $(ARGS)

quick: setup      ## the same without the smoke study and the notebooks
	ruff check . && ruff format --check .
	$(PYTEST) -m "not pipeline" $(ARGS)

campaign: setup   ## what was thrown at it: damaged files, wrong presets, kills, a judge that misbehaves; then faults in reading data
	$(PYTEST) --durations=10 $(CAMPAIGN:%=tests/test_%.py) $(ARGS)
	python tests/mutants.py data

mutants: setup    ## put known faults into the code, one at a time, and name the test that catches each (half an hour of two cores)
	python tests/mutants.py $(ARGS)

reproduce: setup  ## run a study: PRESET=laptop (default) | quick | smoke | gpu | paper, DATA=your file, NAME=of the study, JOBS=at a time (PROCESSES=, RUNNER=: docs/growth.md)
	sh tools/reproduce.sh $(ARGS)

rewards: setup    ## only data and rewards, validated and attacked: PRESET=laptop | long | ..., DATA=your file
	STUDY_JOBS=1 sh tools/reproduce.sh reward_model

paper:            ## paper/paper.pdf from the figures and tables of a study: STUDY=laptop (needs pdflatex)
	sh tools/paper.sh "$$STUDY_NAME"

.venv/.docs: .venv/.installed requirements/docs.txt
	python -m pip install -q --disable-pip-version-check -c requirements/lock.txt -r requirements/docs.txt
	@touch $@

docs: .venv/.docs ## the documentation, docs/_build/html/index.html: nothing is run, nothing fetched, a dead link is an error
	python -m sphinx -q -n -W --keep-going -c docs -d docs/_build/doctrees . docs/_build/html
	@echo "docs/_build/html/index.html"

lab: setup        ## JupyterLab on the notebooks
	jupyter lab --notebook-dir=. notebooks

notebooks-clean: setup ## before a commit: drop outputs from notebooks, except those of checked cells
	python tools/clean_notebooks.py notebooks/*.ipynb

clean:            ## forget resumable scratch and byte code; results, models and .venv stay
	rm -rf scratch .pytest_cache .ruff_cache docs/_build docs/api
	find polylib tests tools -name __pycache__ -type d -prune -exec rm -rf {} +
