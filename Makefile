# Everything a newcomer needs. Each target makes its own environment first (quick when nothing changed).
# Wanted beforehand: Python 3.11 or newer, git, make.
PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.13 python3 python,$(shell command -v $(p) 2>/dev/null)))
VENV   ?= .venv
BIN    := $(VENV)/bin
ARGS   ?=

.DEFAULT_GOAL := help
.PHONY: help demo test lab docs outputs readme prepare hooks clean

help:  ## Show this list
	@echo 'make TARGET [ARGS="..."] [VENV=.venv] [PYTHON=python3.11]'
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  %-9s %s\n", $$1, $$2}'

demo:  ## Compare the prompt-tuning methods on emoji: offline, on a CPU, in minutes
	@$(PYTHON) ci/env.py $(VENV) run
	@$(BIN)/mudpt compare $(ARGS)

test:  ## Lint, check that library and notebooks agree, run every test and every notebook
	@$(PYTHON) ci/env.py $(VENV) dev
	@PATH="$(abspath $(BIN)):$$PATH" OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 pytest -n 2 --dist loadgroup $(ARGS)

lab:  ## Open JupyterLab on the first tutorial, with all notebooks beside it
	@$(PYTHON) ci/env.py $(VENV) dev
	@PATH="$(abspath $(BIN)):$$PATH" jupyter lab --ServerApp.root_dir=nbs --LabApp.default_url=/lab/tree/tutorials/train_widget.ipynb $(ARGS)

docs:  ## Build the documentation site into _docs (with Quarto if installed, else Sphinx)
	@$(PYTHON) ci/env.py $(VENV) dev
	@PATH="$(abspath $(BIN)):$$PATH" python docs/build.py $(ARGS)

outputs:  ## Run the tutorials and store what they show (ARGS="first_prompts" for one)
	@$(PYTHON) ci/env.py $(VENV) dev
	@PATH="$(abspath $(BIN)):$$PATH" python docs/outputs.py $(ARGS)

readme:  ## Write README.md from index.ipynb
	@$(PYTHON) ci/env.py $(VENV) dev
	@$(BIN)/python docs/readme.py

prepare:  ## Before a commit: export the notebooks, clean them, write README.md
	@$(PYTHON) ci/env.py $(VENV) dev
	@PATH="$(abspath $(BIN)):$$PATH" nbdev_export
	@PATH="$(abspath $(BIN)):$$PATH" nbdev_clean
	@$(BIN)/python docs/readme.py

hooks:  ## Clean notebooks on save and merge them cell by cell (nbdev's Jupyter and git hooks)
	@$(PYTHON) ci/env.py $(VENV) dev
	@PATH="$(abspath $(BIN)):$$PATH" nbdev_install_hooks

clean:  ## Remove builds and caches (not the environment)
	rm -rf build dist _docs _proc *.egg-info .pytest_cache .ruff_cache .hypothesis
