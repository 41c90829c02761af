# `make help` lists the targets. V=1 shows the commands.
SHELL := /bin/bash
Q := $(if $(V),,@)
PY := .venv/bin/python
WORKERS ?= $(shell nproc)
KERNEL ?= 6.12
KERNEL_TESTS ?= tests/bpf
KERNEL_MATRIX ?= ../shared/kernel-matrix

.PHONY: help setup demo demo-docker demo-overlay test lint unit kernel bench bench-gate panels docs clean

help: ## list the targets
	$(Q)grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: ## install what is missing: Debian packages, .venv, the cffi module
	$(Q)tools/setup dev bench

demo: setup ## an accelerated network, end to end, with what it is worth; leaves nothing behind
	$(Q)$(PY) -m bench.demo

demo-docker: setup ## a real Docker Engine on Linkspan: the guide's commands, then Docker's bridge beside it; leaves nothing behind
	$(Q)$(PY) -m bench.demo_docker

demo-overlay: setup ## one network across three hosts, with what it is worth and a host that dies; leaves nothing behind
	$(Q)$(PY) -m bench.demo_overlay

lint: setup ## ruff, mypy --strict, the direction of imports
	$(Q)$(PY) -m ruff check .
	$(Q)$(PY) -m ruff format --check .
	$(Q)$(PY) -m mypy
	$(Q).venv/bin/lint-imports --no-cache

test: lint ## all tests, root's included, then bench-gate; what .ci/run calls
	$(Q)$(PY) -m pytest -n $(WORKERS) --dist loadfile tests
	$(Q)$(PY) -m pytest -q --benchmark-disable bench
	$(Q)$(PY) -m bench.gate

unit: setup ## the tests that need no root
	$(Q)$(PY) -m pytest -q tests/unit tests/contract

kernel: setup ## tests in a guest of another kernel: KERNEL=6.1, KERNEL_TESTS="tests/bpf ...", KERNEL_MATRIX=folder with the commands prepare and run
	$(Q)$(KERNEL_MATRIX)/prepare $(KERNEL)
	$(Q)$(KERNEL_MATRIX)/run -t 1800 $(KERNEL) '$(PY) -m pytest -q --timeout 1500 -p no:cacheprovider $(KERNEL_TESTS)'

bench: setup ## the measured bars, as tables and as a report in bench/results/: SUITES="latency join" make bench
	$(Q)$(PY) -m bench --report $(SUITES)

bench-gate: setup ## what a change may cost, as hard limits; part of `make test`
	$(Q)$(PY) -m bench.gate $(GATES)

panels: setup ## the pictures of docs/dashboards.md, from a Prometheus that scrapes nodes with traffic
	$(Q)$(PY) -m bench.panels

clean: ## remove what was built
	$(Q)rm -rf .venv build dist *.egg-info out datapath/_native.* .mypy_cache .ruff_cache .pytest_cache .hypothesis
