# `make dev` and `make test` are the two commands of the README: each does all set-up on a fresh Debian 12 with cargo and root.
.PHONY: dev test simulate lint build release

HOST := $(shell rustc --print host-tuple)
LIBRARIES := $(firstword $(wildcard /usr/lib/$(shell uname -m)-linux-gnu) /usr/lib)
export LIBSECCOMP_LIB_PATH ?= $(LIBRARIES)

# To link, and to route; then, what the tests' hosts, images and clients are made of.
BUILD_PACKAGES := build-essential libseccomp-dev nftables
TEST_PACKAGES := iproute2 util-linux e2fsprogs procps curl docker-registry skopeo busybox-static nginx-light dnsutils

dev: release
	./target/$(HOST)/release/minik8s dev

# The same seeds of the simulation each time: `simulate` takes other ones.
test: export SIM_SEED ?= 1
test: export SIM_SEEDS ?= 200
test: build
	@.ci/packages $(TEST_PACKAGES)
	cargo test --locked --workspace

# As many seeds as fit into five minutes, other ones each time, on every processor; a failure prints the seed.
simulate: export SIM_SECONDS ?= 300
simulate:
	cargo test --locked --package store --lib sim::seeds_run_clean -- --nocapture

build:
	@.ci/packages $(BUILD_PACKAGES)
	@command -v kubectl >/dev/null || .ci/packages kubernetes-client
	cargo build --locked --workspace

release:
	@.ci/packages $(BUILD_PACKAGES)
	@command -v kubectl >/dev/null || .ci/packages kubernetes-client
	cargo build --locked --release --package minik8s

lint:
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
