# The two commands that matter: `make demo` and `make test`. Both do all the set-up themselves.
#
# CARGO_TARGET_DIR says where everything is built (default: target). The ordinary Lightning node of the scenarios is
# a workspace of its own and builds into a folder of its own below it.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

TARGET := $(if $(CARGO_TARGET_DIR),$(CARGO_TARGET_DIR),$(CURDIR)/target)
PEER_MANIFEST := integration/peer/Cargo.toml
CARGO := cargo
export CARGO_TARGET_DIR := $(TARGET)
export BIN_PEER := $(TARGET)/peer/debug/peer

# Always the whole workspace, and a filter: what is built for one package alone has other features of shared crates, and
# would be built twice.
NEXTEST := $(shell command -v cargo-nextest 2>/dev/null)
ifneq ($(NEXTEST),)
UNIT := $(CARGO) nextest run --locked --workspace -E 'not package(integration)'
QUICK := $(CARGO) nextest run --locked --workspace -E 'package(integration)'
EVERY := $(CARGO) nextest run --locked --workspace --run-ignored all -E 'package(integration)'
EXITS := $(CARGO) nextest run --locked --workspace --run-ignored only \
	-E 'binary(scenario_exit_reorg) + binary(scenario_mass_exit) + binary(scenario_variants) + binary(~scenario_htlc)'
ADVERSARIES := timeout 2700 $(CARGO) nextest run --locked --workspace --run-ignored only \
	-E 'binary(~scenario_adversary) + binary(~scenario_reorg) + binary(/scenario_rotate_(branch|exit|hostile|race)/) + binary(scenario_retired) + binary(scenario_watcher)'
CRASH := $(CARGO) nextest run --locked --workspace --run-ignored only --no-capture \
	-E 'binary(scenario_crash) + binary(scenario_rotate) + binary(scenario_liquidity)'
HOSTILE := $(CARGO) nextest run --locked --workspace --run-ignored all -E 'binary(scenario_hostile)'
else
UNIT := true
QUICK := $(CARGO) test --locked --workspace --lib --bins --tests -- --test-threads=2
EVERY := $(QUICK) --include-ignored
EXITS := timeout 3600 $(CARGO) test --locked --workspace --test scenario_exit_reorg --test scenario_mass_exit \
	--test scenario_variants --test scenario_htlc_client_exit --test scenario_htlc_lsp_exit -- --test-threads=1 --ignored
ADVERSARIES := timeout 2700 $(CARGO) test --locked --workspace --test 'scenario_adversary_*' --test 'scenario_reorg_*' \
	--test scenario_retired --test scenario_watcher --test 'scenario_rotate_[behr]*' \
	-- --test-threads=1 --ignored
CRASH := timeout 1500 $(CARGO) test --locked --workspace --test scenario_crash --test scenario_rotate --test scenario_liquidity -- --test-threads=1 --ignored --nocapture
HOSTILE := timeout 1800 $(CARGO) test --locked --workspace --test scenario_hostile -- --test-threads=1 --include-ignored
endif

.PHONY: help demo test scenarios figures exits adversaries crash jit checks hostile fuzz fuzz-seeds vectors random relay bench scale build peer bitcoind fmt clippy clean-demo

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

demo: build peer ## a factory is born, paid through, left and closed; result in $CARGO_TARGET_DIR/demo/summary.json
	@export BITCOIND="$$(scripts/bitcoind.sh)"; $(TARGET)/debug/demo --out $(TARGET)/demo

test: build peer ## unit tests and the quick scenarios
	@$(UNIT)
	@$(CARGO) test --locked --workspace --doc
	@export BITCOIND="$$(scripts/bitcoind.sh)"; $(QUICK)

scenarios: build peer ## every scenario, the long ones too
	@export BITCOIND="$$(scripts/bitcoind.sh)"; $(EVERY)

figures: build peer ## what rotations cost, and a hundred of one factory under load (bounded to 20 minutes)
	@export BITCOIND="$$(scripts/bitcoind.sh)"; timeout 1200 $(CARGO) test --locked --workspace --test scenario_rotate_figures \
		-- --test-threads=1 --ignored --nocapture

exits: build peer ## the long exits: in a crowd, every reorganisation, large trees, default delays (each ends after ten minutes)
	@export BITCOIND="$$(scripts/bitcoind.sh)"; $(EXITS)

checks: build peer ## leaves out one protection after the other: the test that guards it has to fail (20 minutes; ONLY=name for some)
	@$(CARGO) build --locked --workspace --bins --tests
	@export BITCOIND="$$(scripts/bitcoind.sh)"; $(TARGET)/debug/checks $(ONLY)

adversaries: build peer ## the long scenarios of attacks, reorganisations and rotations under attack (ends after 45 minutes)
	@export BITCOIND="$$(scripts/bitcoind.sh)"; $(ADVERSARIES)

crash: build peer ## every process dies at every step; table in $CARGO_TARGET_DIR/crash-matrix.md (ends after 25 minutes)
	@export BITCOIND="$$(scripts/bitcoind.sh)"; $(CRASH)

jit: build peer ## the long scenarios of channels beside the factory: deaths at each step, moves, deadlines, a thousand payments held (ends after 30 minutes)
	@export BITCOIND="$$(scripts/bitcoind.sh)"; timeout 1800 $(CARGO) test --locked --workspace --test 'scenario_jit*' --test 'scenario_lsps2*' --test scenario_move \
		-- --test-threads=1 --ignored --nocapture

fuzz: ## every decoder and the four machines under the fuzzer, FUZZ_SECONDS (30) each; a find is an error
	@scripts/fuzz.sh $(TARGET)

random: ## payments and new outpoints in CASES (3000) random orders from SEED on; every commitment valid on every outpoint (ends after 30 minutes)
	@CASES=$${CASES:-3000} timeout 1800 $(CARGO) test --locked --workspace --lib -- --ignored outpoint_that_counts_long

fuzz-seeds: ## makes fuzz/seeds again
	@$(CARGO) test --locked --workspace -- --ignored write_seeds

vectors: ## makes the test vectors again: in the JSON files and in blip-draft.md
	@$(CARGO) test --locked --workspace --lib --test draft -- --ignored write_vectors

bench: bitcoind ## costs of the ceremony against the least possible (release build of its own), and of exits (four minutes)
	@$(CARGO) bench --locked -p factory-core --bench ceremony
	@export BITCOIND="$$(scripts/bitcoind.sh)"; \
		timeout 600 $(CARGO) test --locked --workspace --test tree_on_chain -- --ignored --nocapture as_planned

# The programs as they are shipped. That they hold no trace of the tests' faults is seen to first.
scale: build ## factories of up to 256 clients, each a process, and the speed of payments; release build (15 minutes at most)
	@$(CARGO) build --locked --release -p lsp-server -p client-app
	@for program in lsp-server client-app; do \
		if grep -q FACTORY_FAULTS $(TARGET)/release/$$program; then echo "$$program has fail points in it"; exit 1; fi; \
	done
	@export BITCOIND="$$(scripts/bitcoind.sh)" BIN_LSP_SERVER=$(TARGET)/release/lsp-server \
		BIN_CLIENT_APP=$(TARGET)/release/client-app SCENARIO_POLL_MS=1000; \
		timeout 900 $(TARGET)/debug/scale

relay: build peer ## the long scenarios of payments over several channels (ends after 20 minutes)
	@export BITCOIND="$$(scripts/bitcoind.sh)"; timeout 1200 $(CARGO) test --locked --workspace --test scenario_relay --test scenario_offer \
		-- --test-threads=1 --ignored --nocapture

hostile: build peer ## clients and an LSP that break the protocol, in every way there is a check for (five minutes)
	@export BITCOIND="$$(scripts/bitcoind.sh)"; $(HOSTILE)

# bitcoind comes first: where there is none to be had, that is said before anything is built.
build: bitcoind
	@$(CARGO) build --locked --workspace

peer: bitcoind
	@$(CARGO) build --locked --manifest-path $(PEER_MANIFEST) --target-dir $(TARGET)/peer

bitcoind: ## finds a usable bitcoind, or installs one in the cache folder (Debian, Ubuntu)
	@scripts/bitcoind.sh >/dev/null

fmt: ## formats everything
	@$(CARGO) fmt --all
	@$(CARGO) fmt --manifest-path $(PEER_MANIFEST)
	@$(CARGO) fmt --manifest-path fuzz/Cargo.toml

clippy: ## lints, warnings are errors
	@$(CARGO) clippy --locked --workspace --all-targets -- -D warnings

clean-demo: ## forgets the last demo run
	@rm -rf $(TARGET)/demo
