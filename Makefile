# Each target sets up what a fresh machine lacks and is quick when nothing is missing.
.DEFAULT_GOAL := help
SERVERS ?= /var/tmp/pgvault-test-servers
export PGVAULT_TEST_SERVERS := $(SERVERS)

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:[^#]*##/\t/' | expand -t 10

demo: setup-demo ## the main job on a throw-away PostgreSQL, in under a minute
	cargo build --release --locked
	target/release/pgvault demo

# Most tests wait for servers, not for a core: twice as many threads as this machine has cores.
test: setup ## the whole test suite
	RUST_TEST_THREADS=$${RUST_TEST_THREADS:-4} cargo test --workspace --locked

lint: ## formatting, clippy, licences and sources of dependencies
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	scripts/lint-deps.sh

fmt: ## format the sources
	cargo fmt --all

bench: setup ## a 2 GiB cluster backed up and restored, beside PostgreSQL's own tools (SCALE=14 for a short run)
	cargo build --release --locked
	python3 bench/main_job.py target/release/pgvault "$(SERVERS)" $(SCALE)

docs: ## the documentation of the code
	cargo doc --workspace --no-deps --locked

setup: ## PostgreSQL and S3 servers for the tests
	@scripts/setup.sh "$(SERVERS)"

setup-demo: ## PostgreSQL of the distribution, for the demo
	@scripts/setup.sh

.PHONY: help demo test lint fmt bench docs setup setup-demo
