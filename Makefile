# `make help` lists what there is. Everything is installed into .venv, nothing outside this folder.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# The Python to make .venv with; looked for where it isn't given.
PYTHON ?=
# Passed on by run, test and bench.
ARGS ?=
# How long `make fuzz` tries each target.
FUZZ_SECONDS ?= 60

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
# The lists are whole; without --no-deps pip would complain of what the carriers name and nobody uses.
LOCKED := $(PIP) --require-hashes --only-binary=:all: --no-deps
UV := uv==0.13.8

# Stamps: what was installed, for which lists.
VENV := .venv/.stamp-venv
LOCAL := .venv/.stamp-local
DEV := .venv/.stamp-dev

PROTO_IMPORTS := build/protos
OUR_PROTOS := $(wildcard protos/headrace/bus/v1/*.proto protos/headrace/v1/*.proto)

.PHONY: help setup run test test-cluster test-cluster-machine test-cluster-rules test-cluster-images test-cluster-node test-keda coverage check lint types imports protos stubs gen requirements fuzz bench clean

help: ## List the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1|\2/' | column -t -s '|'

$(VENV):
	@python=$$(scripts/find-python $(PYTHON)); echo "setting up .venv with $$python"; "$$python" -m venv .venv
	@touch $@

$(LOCAL): $(VENV) requirements/local.txt requirements/carriers.txt requirements/build.txt pyproject.toml
	@echo "installing what Headrace needs (about a minute the first time)"
	@$(LOCKED) -r requirements/local.txt
	@$(LOCKED) -r requirements/carriers.txt
	@$(LOCKED) -r requirements/build.txt
	@$(PIP) --no-index --no-deps --no-build-isolation --editable .
	@touch $@

$(DEV): $(LOCAL) requirements/dev.txt
	@echo "installing what its tests and checks need"
	@$(LOCKED) -r requirements/dev.txt
	@touch $@

setup: $(DEV) ## Set up .venv for development, without running anything

run: $(LOCAL) ## Start the whole stack on this machine; options as ARGS="--replicas 2"
	@exec $(BIN)/headrace up $(ARGS)

test: $(DEV) ## Run the tests; pytest's options as ARGS="-k registry"
	@$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

# Against the cluster that KUBECONFIG names, or two of its own: a control plane with many pretended nodes, and a real node.
# These take Go and, the first time, minutes to build; the second takes root and Debian's packages too.
ifdef KUBECONFIG
test-cluster: $(DEV)
	@tests/cluster/build/build crds
	@$(BIN)/python -m pytest tests/cluster --ignore tests/cluster/keda $(ARGS)
else
test-cluster: test-cluster-machine test-cluster-rules test-cluster-node ## Test deploy/k8s on a real Kubernetes, or on yours with KUBECONFIG
endif

# Known before anything is built.
test-cluster-machine:
	@tests/cluster/node/enter true

# ARGS may choose tests of one of them alone: then the other finds none, which pytest calls 5.
FOUND_NONE = [ $$? = 5 ] && [ -n "$(ARGS)" ]

test-cluster-rules: $(DEV) ## The part of it that needs no root: rules, rights, autoscalers, spread
	@tests/cluster/build/build
	@$(BIN)/python -m pytest tests/cluster --ignore tests/cluster/node --ignore tests/cluster/keda $(ARGS) || { $(FOUND_NONE); }

# As root.
test-cluster-images: $(DEV) ## The images of that part, in build/cluster/images.tar, for a cluster of yours too
	@tests/cluster/build/build
	@$(BIN)/python -m tests.cluster.images.build build/cluster

test-cluster-node: test-cluster-images ## The part of it that runs pods: calls, faults, upgrades, drains
	@tests/cluster/node/enter $(BIN)/python -m pytest tests/cluster/node $(ARGS) || { $(FOUND_NONE); }

# Root, Go and Debian's packages as above; KEDA takes minutes more to build the first time.
test-keda: $(DEV) ## Let KEDA itself scale from no pod to several and back, on the real node
	@tests/cluster/build/build keda
	@$(BIN)/python -m tests.cluster.images.build build/cluster --with keda
	@tests/cluster/node/enter $(BIN)/python -m pytest tests/cluster/keda $(ARGS)

coverage: $(DEV) ## Fail where the quick tests cover less of the code than before
	@rm -f .coverage .coverage.*
	@$(BIN)/python -m coverage run -m pytest -q tests/unit
	@$(BIN)/python -m coverage combine --quiet
	@$(BIN)/python -m coverage report

check: lint types imports protos stubs ## Check style, types, imports and protos

lint: $(DEV)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(DEV)
	$(BIN)/mypy

imports: $(DEV)
	$(BIN)/lint-imports

protos: $(PROTO_IMPORTS)
	$(BIN)/buf lint
	scripts/check-breaking $(BIN)/buf $(PROTO_IMPORTS)

stubs: $(PROTO_IMPORTS)
	rm -rf build/stubs
	mkdir -p build/stubs/headrace/v1
	$(call generate,build/stubs)
	scripts/check-stubs build/stubs

gen: $(PROTO_IMPORTS) ## Generate the stubs in headrace/ from protos/
	$(call generate,.)

PROTOC := $(BIN)/python -m grpc_tools.protoc -Iprotos -I$(PROTO_IMPORTS)

# Of the reply service alone there are gRPC stubs: the bus calls it, and nobody in Python calls the REST service.
define generate
$(PROTOC) --python_out=$(1) --pyi_out=$(1) $(OUR_PROTOS)
$(PROTOC) --grpc_python_out=$(1) protos/headrace/bus/v1/reply.proto
$(PROTOC) --include_imports --descriptor_set_out=$(1)/headrace/v1/rest.binpb protos/headrace/v1/rest.proto
endef

# buf has no path to look imports up in, only modules: this is one, with the files that ours import.
$(PROTO_IMPORTS): $(DEV)
	mkdir -p $@/google/api
	cp $$($(BIN)/python -c 'import google.api as api; print(*api.__path__)')/{annotations,http,httpbody}.proto $@/google/api/
	touch $@

COMPILE = $(BIN)/uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --custom-compile-command 'make requirements'

requirements: $(VENV) ## Bring the pinned versions in requirements/ up to date with pyproject.toml
	$(PIP) $(UV)
	$(COMPILE) $(ARGS) --extra local --group dev --output-file requirements/dev.txt
	$(COMPILE) --extra local --constraint requirements/dev.txt --output-file requirements/local.txt
	$(COMPILE) --constraint requirements/dev.txt --output-file requirements/runtime.txt
	$(COMPILE:pyproject.toml=) --group build --constraint requirements/dev.txt --output-file requirements/build.txt
	$(COMPILE:pyproject.toml=) --group carriers --no-deps --output-file requirements/carriers.txt

fuzz: $(DEV) ## Try random input on the parsers; how long as FUZZ_SECONDS=600
	@for target in tests/fuzz/fuzz_*.py; do \
		echo "$$target, $(FUZZ_SECONDS) s"; \
		$(BIN)/python "$$target" -max_total_time=$(FUZZ_SECONDS); \
	done

bench: $(DEV) ## Measure against the peers; options as ARGS="--rounds 4"
	@$(BIN)/python -m benchmarks $(ARGS)

clean: ## Remove .venv and all that was built
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage*
