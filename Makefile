# SPDX-License-Identifier: GPL-2.0-or-later
# Every goal sets up what it needs. 'make help' lists the goals.
#
# What takes long to get (packages, build roots, kernels) lies in one directory, ELIVEPATCH_CACHE; 'make clean-cache'
# empties it.

SHELL := /bin/sh
ifeq ($(shell id -u),0)
ELIVEPATCH_CACHE ?= /var/cache/elivepatch
else
ELIVEPATCH_CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/elivepatch
endif
export ELIVEPATCH_CACHE
BIN := .venv/bin
STAMP := .venv/.ready
PYTEST := $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help setup demo man check test test-unit test-guest test-slow bench bench-kernels bench-own bench-klp-build survey requirements packages single-file gentoo-overlay clean clean-cache

help: ## what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' Makefile

setup: $(STAMP) ## install what is needed; leaves elivepatch and elivepatch-server in .venv/bin

$(STAMP): scripts/setup.sh pyproject.toml requirements/dev.txt
	sh scripts/setup.sh

demo: setup ## a guest with a stock Debian kernel asks this machine's server for a livepatch and loads it
	$(BIN)/python scripts/demo.py

man: setup ## the manual pages of both programs, in dist-build/man
	$(BIN)/python scripts/man_pages.py dist-build/man

packages: setup ## Debian packages of client and server for Debian 12 and 13, in dist
	$(BIN)/python scripts/packages.py deb --output dist

single-file: setup ## the client as one file that python3 runs, for hosts without our packages, in dist
	$(BIN)/python scripts/single_file.py --output dist

gentoo-overlay: setup ## the Gentoo overlay with this version's ebuild, and its archive, in dist
	$(BIN)/python scripts/gentoo_overlay.py --output dist

check: setup ## style, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports

test: setup ## the tests, with one guest that runs the client
	$(PYTEST) -m "(not guest and not slow) or smoke" $(ARGS)

test-unit: setup ## the tests that need no kernel: seconds
	$(PYTEST) tests/unit $(ARGS)

test-guest: setup ## the tests that boot kernels, but for those of the next tier
	$(PYTEST) -m "guest and not slow" tests/guest $(ARGS)

test-slow: setup ## what takes minutes: whole kernels, builds that are killed, several kernels side by side
	$(PYTEST) -m slow $(ARGS)

bench: setup ## measure builds against the bare compiler; results in bench.json
	$(BIN)/python scripts/bench.py --json bench.json

bench-kernels: setup ## cold and warm times for every kernel that Debian 12 and 13 publish; results in bench-kernels.json
	$(BIN)/python scripts/bench_kernels.py --json bench-kernels.json

bench-own: setup ## cold and warm times for kernels of one's own, with and without their image (half an hour); results in bench-own.json
	$(BIN)/python scripts/bench_own.py --json bench-own.json

bench-klp-build: setup ## measure the kernel's own klp-build against ours on a small kernel (an hour); results in bench-klp-build.json
	$(BIN)/python scripts/compare_klp_build.py --json bench-klp-build.json

survey: setup ## prove N random objects of a kernel: make survey N=200
	$(BIN)/elivepatch-server proof survey --objects $(or $(N),200)

requirements: setup ## renew the pinned Python packages
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	  --no-emit-index-url pyproject.toml --extra server --group dev -o requirements/dev.txt
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	  --no-emit-index-url pyproject.toml -c requirements/dev.txt -o requirements/client.txt
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	  --no-emit-index-url pyproject.toml --extra server -c requirements/dev.txt -o requirements/server.txt
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	  --no-emit-index-url requirements/gentoo.in -o requirements/gentoo.txt

clean: ## remove what was set up in this directory
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis bench*.json

clean-cache: ## remove downloads, build roots and prepared kernels
	rm -rf --one-file-system "$(ELIVEPATCH_CACHE)"
