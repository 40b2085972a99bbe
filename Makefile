# Each target sets up what a fresh machine lacks and is quick when nothing is missing.
.DEFAULT_GOAL := help
SERVERS ?= /var/tmp/pgvault-test-servers
export PGVAULT_TEST_SERVERS := $(SERVERS)

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:[^#]*##/\t/' | expand -t 14

setup: ## PostgreSQL and S3 servers for the tests
	@scripts/setup.sh "$(SERVERS)"

fmt: ## format the sources
	cargo fmt --all

lint: ## formatting, clippy, licences and advisories
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	scripts/lint-deps.sh

test: setup ## the whole test suite
	cargo test --workspace --locked

.PHONY: help setup fmt lint test
