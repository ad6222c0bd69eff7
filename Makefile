# Every command sets up what it needs; a second run skips what is there. `make setup` first is not needed.
PYTHON ?= python3
WORKBENCH = $(PYTHON) tools/workbench.py
OUT ?= output/demo
ARGS ?=

.PHONY: help setup demo test bench serve workflows export-workflows nano format lint docs

help:
	@echo "make demo [IMAGE=photo.jpg] [OUT=folder]   maps of a picture, out of a real ComfyUI graph"
	@echo "make serve [PORT=8188] [ARGS=...]          ComfyUI with the pack, for a person"
	@echo "make nano [BUDGET=minutes]                  trains the bundled weights further, keeps what is better"
	@echo "make setup | test | bench | workflows | export-workflows | format | lint | docs"

setup:
	@$(WORKBENCH) setup

demo:
	@$(WORKBENCH) demo $(if $(IMAGE),--image "$(IMAGE)") --out "$(OUT)"

serve:
	@$(WORKBENCH) serve $(if $(PORT),--port $(PORT)) $(if $(ARGS),-- $(ARGS))

test:
	@$(WORKBENCH) test $(if $(FRONT_END),--front-end $(FRONT_END)) $(if $(ARGS),-- $(ARGS))

lint docs bench workflows export-workflows:
	@$(WORKBENCH) $@ $(if $(ARGS),-- $(ARGS))

# In the background of other work: OMP_NUM_THREADS=1 nice -n 10 make nano BUDGET=120
nano:
	@$(WORKBENCH) nano $(if $(BUDGET),--budget $(BUDGET)) $(if $(ARGS),-- $(ARGS))

format: setup
	@.venv/bin/ruff format . && .venv/bin/ruff check --fix .
