# Two-stream action recognition. Every target sets up what it needs; `make help` lists them.
# User values reach the recipes as data: they are exported to the environment unexpanded and quoted there, never
# pasted into a command.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.ONESHELL:

USER_VALUES := DATASET DATA SPLIT STREAM METHOD JOBS RECIPE RUN FUSION TABLE VIDEOS LISTS CUDA_ARCH ARGS
define as_data
$(1) := $$(value $(1))
export $(1)
endef
