# Two-stream action recognition. Every target sets up what it needs; `make help` lists them.
#
# User values are data: each is taken unexpanded ($(value ...)), exported to the environment, and read there in
# quotes. DATASET='$(shell ...)' or DATASET='x; rm -r y' is a bad dataset name, never a command.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# Any other variable on the command line is refused before make expands it: a misspelt one would be lost without a
# word, and what is in it run.
ifneq ($(filter command,$(origin VALUES) $(origin NAME)),)
$(error VALUES and NAME are no variables for you: see make help)
endif
VALUES := DATASET DATA SET SPLIT STREAM METHOD JOBS RECIPE RUN FUSION TABLE VIDEOS LISTS CUDA_ARCH ARGS PYTEST_ARGS PYTHON
$(foreach NAME,$(filter-out $(VALUES),$(.VARIABLES)),$(if $(filter command,$(origin $(NAME))),\
    $(error $(NAME) is no variable of this Makefile: use $(VALUES))))

PYTHON ?= python3
define as_data
override $(1) := $$(value $(1))
export $(1)
endef
$(foreach NAME,$(VALUES),$(eval $(call as_data,$(NAME))))

# Shell functions for the recipes. `option --split SPLIT` adds "--split VALUE" to the array `options` when SPLIT is
# not empty; ARGS and PYTEST_ARGS are split into words as a shell would quote them, but nothing in them is expanded or
# run.
define functions
python() {  # in the background, where this shell can pass on SIGTERM; make ends only once Python has
    (trap - INT QUIT; exec .venv/bin/python "$$@") <&0 &
    trap 'kill "$$!" || true; wait "$$!"; exit 143' TERM
    trap 'wait "$$!"; exit 130' INT
    wait "$$!"
}
options=()
option() { if [[ -n "$${!2}" ]]; then options+=("$$1=$${!2}"); fi; }
words_of() {
    printf '%s' "$${!1}" | xargs -r printf '%s\0' > /dev/null || { echo "error: $$1 cannot be split into words" >&2; exit 2; }
    mapfile -d '' -t words < <(printf '%s' "$${!1}" | xargs -r printf '%s\0')
    options+=("$${words[@]}")
}
arguments() { words_of ARGS; }
dataset() {
    DATASET="$${DATASET:-demo}"; options+=("--dataset=$$DATASET"); option --data DATA
    if [[ "$$DATASET" == demo ]]; then python -m pipeline demo $${DATA:+"--data=$$DATA"}; fi
}
endef

.PHONY: help setup demo import flow status verify train evaluate report reproduce reproduce-real submit test lint docs benchmark opencv-cuda clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' Makefile
	echo
	echo "Values: DATASET=demo DATA=data SPLIT= STREAM= METHOD= JOBS= RECIPE= RUN= FUSION= TABLE= SET= (shard set) ARGS='more options'"

setup: .venv/ready  ## make the virtual environment .venv and install pinned requirements

.venv/ready: setup.cfg pyproject.toml constraints.txt
	@"$$PYTHON" -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or later is needed: make PYTHON=python3.12 ...")'
	[[ -x .venv/bin/python ]] || "$$PYTHON" -m venv .venv
	.venv/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: setup  ## render the demo dataset and run the whole pipeline on it: flow, training, scores, fusion, report
	@$(functions)
	DATASET=demo; dataset; arguments
	python -m extract_flow "$${options[@]}"
	python -m pipeline status "$${options[@]}"
	python -m train "$${options[@]}" --stream spatial
	python -m train "$${options[@]}" --stream temporal
	python -m evaluate "$${options[@]}" --fusion average --fusion svm --svm-scores in-sample --train-frames 5 --train-crops 1 --report

import: setup  ## make a dataset known: DATASET=ucf101 VIDEOS=folder LISTS=folder
	@$(functions)
	option --videos VIDEOS; option --lists LISTS; option --data DATA; arguments
	python -m pipeline import "$${options[@]}" -- "$${DATASET:?name the dataset: make import DATASET=ucf101 VIDEOS=... LISTS=...}"

flow: setup  ## frames and optical flow of every video of DATASET into shards: METHOD=tvl1 JOBS=n
	@$(functions)
	dataset; option --method METHOD; option --jobs JOBS; option --shards SET; arguments
	python -m extract_flow "$${options[@]}"

status: setup  ## what is done, missing and failed
	@$(functions)
	dataset; option --shards SET; arguments
	python -m pipeline status "$${options[@]}"

verify: setup  ## verify every shard of DATASET and list the bad ones
	@$(functions)
	dataset; option --shards SET; arguments
	python -m pipeline verify "$${options[@]}"

train: setup  ## train one stream on one split: STREAM=spatial|temporal SPLIT=1 RECIPE=name
	@$(functions)
	dataset; option --split SPLIT; option --stream STREAM; option --recipe RECIPE; option --run RUN; option --shards SET
	arguments
	python -m train "$${options[@]}"

evaluate: setup  ## score and fuse: FUSION=svm|average|weighted|none SPLIT=1
	@$(functions)
	dataset; option --split SPLIT; option --fusion FUSION; option --shards SET; arguments
	python -m evaluate "$${options[@]}"

report: setup  ## evaluate, and write the report as one HTML file
	@$(functions)
	dataset; option --split SPLIT; option --fusion FUSION; option --shards SET; arguments
	python -m evaluate --report "$${options[@]}"

reproduce: setup  ## the paper's experiments: TABLE=1a|1b|2|3|4 DATASET=name
	@$(functions)
	dataset; option --table TABLE; arguments
	python -m evaluate reproduce "$${options[@]}"

reproduce-real: setup  ## both streams and their fusion on small sets of real videos (TWO_STREAM_TEST_DATA)
	@$(functions)
	option --data DATA; option --split SPLIT; option --dataset DATASET; arguments
	python -m evaluate reproduce-real "$${options[@]}"

submit: setup  ## submit the whole chain of DATASET to SLURM
	@$(functions)
	dataset; option --split SPLIT; option --stream STREAM; option --method METHOD; option --shards SET; option --run RUN
	option --fusion FUSION; arguments
	python -m slurm submit "$${options[@]}"

test: lint  ## all checks and tests
	@$(functions)
	words_of PYTEST_ARGS
	python -m pytest -n 2 --dist loadgroup "$${options[@]}"

lint: setup  ## ruff, mypy and shellcheck
	@.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	git ls-files '*.sh' '*.sbatch' '*.env' .ci/run containers/bin | xargs .venv/bin/shellcheck

docs: setup  ## the documentation as a site, in dist/site; a broken link fails
	@.venv/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[docs]'
	.venv/bin/python -P -m mkdocs build --strict

benchmark: setup  ## print the tables of docs/performance.md for this machine
	@for table in codec reader extraction flow_cpu flow_accuracy flow_brox loader scoring; do .venv/bin/python "benchmarks/$$table.py"; done

opencv-cuda: setup  ## build OpenCV with CUDA into dist/: CUDA_ARCH=9.0 (about 25 minutes on two free cores)
	@$(functions)
	option --jobs JOBS; arguments
	python opencv_cuda/build.py "$${options[@]}"

clean:  ## remove the virtual environment and caches (never data/)
	@rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
