# Domicile's commands. `make help` lists them.

CARGO ?= cargo
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

.PHONY: help setup demo test verify fix

help: ## Say what there is
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

setup: ## Install what is missing on Debian 12
	@.ci/setup

demo: setup ## Build, then run three regions on this machine with a prompt
	$(CARGO) build --workspace --bin domiciled --bin domicile
	@"$${CARGO_TARGET_DIR:-target}/debug/domiciled" demo $(DEMO)

test: setup ## Build and run every test, the set-up included
	$(CARGO) build --workspace --bins
	$(CARGO) test --workspace --no-fail-fast 2>&1 | .ci/count

verify: setup ## Check format, lints and the fast tests; writes nothing
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	$(CARGO) test --workspace --lib --bins 2>&1 | .ci/count

fix: ## Repair format and what clippy can repair
	$(CARGO) fmt --all
	$(CARGO) clippy --workspace --all-targets --fix --allow-dirty --allow-staged
