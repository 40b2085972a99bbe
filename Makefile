# Each target sets up what a fresh machine lacks and is quick when nothing is missing.
.DEFAULT_GOAL := help
SERVERS ?= /var/tmp/pgvault-test-servers
PEERS ?= /var/tmp/pgvault-tools
export PGVAULT_TEST_SERVERS := $(SERVERS)

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:[^#]*##/\t/' | expand -t 10

demo: setup-demo ## the main job on a throw-away PostgreSQL, in under a minute
	cargo build --release --locked
	target/release/pgvault demo

# Most tests wait for servers, not for a core: twice as many threads as this machine has cores.
test: setup ## the whole test suite
	RUST_TEST_THREADS=$${RUST_TEST_THREADS:-4} cargo test --workspace --locked

# Each has its own etcd, members and ports; one at a time, since their figures are times.
integration: setup ## pgvault beside Patroni with etcd, and repmgr: switchovers and killed leaders
	@scripts/setup-integration.sh
	cargo test --locked --test suite -- --ignored --nocapture --test-threads=1 patroni:: repmgr::

# Long scenarios, by name: `make test` leaves them out.
CHAOS = failover::
CHAOS += a_store_that_is_away_for_minutes every_operation_of_the_spool segments_of_a_gigabyte a_restart_with_a_gigabyte
CHAOS += a_relation_of_more_than_a_gigabyte two_hundred_thousand_files a_file_beyond_the_octal_sizes
CHAOS += power_loss:: recovery_point:: server_trouble::
CHAOS += damage_of_every_object

chaos: setup ## failover storms, minutes of outage, every call that can fail, large segments and spools
	RUST_TEST_THREADS=1 cargo test --locked --test suite -- --ignored --nocapture $(CHAOS)
	PGVAULT_TEST_SPOOL_SEGMENTS=100000 cargo test --locked --test suite -- --nocapture a_spool_of_many_segments

# What asks for backups and restores, over every version; `make test` uses one or two of them in each test.
MAJORS ?= 14 15 16 17 18
MATRIX ?= backup_engine:: incremental_backups:: restore_files:: recover_branches:: branches_are_kept:: main_job:: refusals:: kill_nine:: wal_fetch_contract:: format_is_readable:: standbys:: restore_delta:: files_source:: encrypted_repository:: backups_are_proven:: backups_are_deleted::
# These name the version that they are about.
PINNED = --skip of_postgresql_1 --skip read_from_1 --skip done_on_18 --skip a_standby_of_1 --skip directory_of_1

matrix: setup ## the tests of backups and restores on PostgreSQL 14 to 18 (a part: MAJORS="17 18" MATRIX=restore_files::)
	cargo test --locked --test suite --no-run
	@for major in $(MAJORS); do echo "PostgreSQL $$major"; \
	  PGVAULT_TEST_MAJOR=$$major RUST_TEST_THREADS=$${RUST_TEST_THREADS:-4} cargo test --locked --quiet --test suite -- $(MATRIX) $(PINNED) || failed="$$failed $$major"; done; \
	  test -z "$$failed" || { echo "fails on PostgreSQL$$failed"; exit 1; }

lint: ## formatting, clippy, licences and sources of dependencies
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	scripts/lint-deps.sh

fmt: ## format the sources
	cargo fmt --all

bench: bench-backup bench-second bench-wal bench-replay ## all benchmarks, beside other tools in the same run

bench-backup: setup ## backups and restores, beside other tools (BACKUP="--scale 20 --runs 1 --only full,second" for a short run)
	cargo build --release --locked
	@scripts/setup-peers.sh "$(PEERS)" pgbackrest wal_rus barman
	python3 bench/backup.py target/release/pgvault "$(SERVERS)" "$(PEERS)" $(BACKUP)

bench-second: setup ## what a second backup adds, restored exactly, also without the first (SECOND="--major 17" for incremental ones)
	cargo build --release --locked
	@scripts/setup-peers.sh "$(PEERS)" pgbackrest wal_rus barman
	python3 bench/backup.py target/release/pgvault "$(SERVERS)" "$(PEERS)" --scale 100 --only second,again,kept $(SECOND)

bench-standby: setup ## a new standby until it streams, and what that costs the primary, beside pg_basebackup (STANDBY="--scale 20 --runs 1" for a short run)
	cargo build --release --locked
	python3 bench/backup.py target/release/pgvault "$(SERVERS)" "$(PEERS)" --only standby --tools pgvault $(STANDBY)

bench-wal: setup ## WAL taken in, stored and acknowledged, beside other tools (WAL="--segments 14 --runs 1 --seconds 3" for a short run)
	cargo build --release --locked
	@scripts/setup-peers.sh "$(PEERS)" wal_rus
	python3 bench/wal.py target/release/pgvault "$(SERVERS)" "$(PEERS)" $(WAL)

bench-replay: setup ## WAL fetched and replayed, beside other tools (REPLAY="--megabytes 256 --runs 1" for a short run)
	cargo build --release --locked
	@scripts/setup-peers.sh "$(PEERS)" pgbackrest wal_rus
	python3 bench/replay.py target/release/pgvault "$(SERVERS)" "$(PEERS)" $(REPLAY)

docs: ## the documentation of the code
	cargo doc --workspace --no-deps --locked

setup: ## PostgreSQL and S3 servers for the tests
	@scripts/setup.sh "$(SERVERS)"

setup-demo: ## PostgreSQL of the distribution, for the demo
	@scripts/setup.sh

.PHONY: help demo test chaos integration matrix lint fmt bench bench-backup bench-second bench-standby bench-wal bench-replay docs setup setup-demo
