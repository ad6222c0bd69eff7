# Every command sets up what it needs; a second run skips what is there. `make setup` first is not needed.
PYTHON ?= python3
WORKBENCH = $(PYTHON) tools/workbench.py
OUT ?= output/demo
ARGS ?=

.PHONY: help setup demo test bench serve workflows export-workflows nano format lint

help:
	@echo "make demo [IMAGE=photo.jpg] [OUT=folder]   maps of a picture, out of a real ComfyUI graph"
	@echo "make serve [PORT=8188] [ARGS=...]          ComfyUI with the pack, for a person"
	@echo "make setup | test | bench | workflows | export-workflows | nano | format | lint"

setup:
	@$(WORKBENCH) setup

demo:
	@$(WORKBENCH) demo $(if $(IMAGE),--image "$(IMAGE)") --out "$(OUT)"

serve:
	@$(WORKBENCH) serve $(if $(PORT),--port $(PORT)) $(if $(ARGS),-- $(ARGS))

test lint bench workflows export-workflows nano:
	@$(WORKBENCH) $@ $(if $(ARGS),-- $(ARGS))

format: setup
	@.venv/bin/ruff format . && .venv/bin/ruff check --fix .
