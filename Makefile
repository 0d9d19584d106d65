# The verbs. `make help` lists them.
.PHONY: help demo test tools kubernetes helm images e2e test-clients retries clients lint build bench fuzz gen deny

help: ## List the verbs
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

demo: ## Show the main job from end to end, in network namespaces of its own
	@.ci/tools nft curl
	cargo build --workspace --bins
	@cargo run --quiet -p demo

test: tools clients kubernetes helm lint build deny ## Everything that a change must pass; the closing line sums the tests up
	.ci/gen --check
	@[ "$$(id -u)" = 0 ] && deploy/images dev || [ "$$(id -u)" != 0 ]
	tests/fuzz/run 5
	.ci/last-release
	.ci/summary cargo test --workspace --no-fail-fast

tools:
	@.ci/tools nft curl nsenter setpriv c++ node dnsmasq tinyproxy

test-clients: build ## The real clients, every one that can be installed here
	tests/clients/setup all
	.ci/summary cargo test -p tests --test netns -- clients:: dialects:: trust::

retries: ## Which client asks again after which status, how often and for how long
	tests/clients/setup all
	tests/clients/retries

clients: ## The real clients of a CI run, for the tests
	tests/clients/setup

kubernetes: ## A real API server for the tests, built once
	.ci/kubernetes

helm: ## The helm that the chart is tested with, built once
	@.ci/helm || true

images: ## Both images, from static programs; PROFILE=quick-release in a fraction of the time
	deploy/images $(PROFILE)

PROFILE ?= release

e2e: ## The whole story in the cluster that KUBECONFIG points at; skipped without one
	tests/e2e/run

lint: ## Format and clippy, without warnings
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	@! .ci/helm 2> /dev/null || .ci/helm lint --quiet --strict charts/countersign

build: ## The programs, which the tests run
	cargo build --workspace --bins

bench: ## What the proxy costs: against a direct call, against nginx, in memory; PEERS=haproxy for one more
	@.ci/tools nft curl nginx h2load $(PEERS)
	cargo build --profile quick-release --workspace --bins
	cargo build --profile $(BENCH_PROFILE) -p proxy
	@mkdir -p target/bench
	@find target/quick-release -maxdepth 1 -type f -perm -u+x -exec cp -t target/bench {} +
	@cp target/$(BENCH_PROFILE)/countersign-proxy target/bench/
	@COUNTERSIGN_BIN_DIR=target/bench target/bench/benches $(BENCH) $(addprefix --peers ,$(PEERS))

# What is measured is what is shipped: `release`. `quick-release` builds in a fraction of the time.
BENCH_PROFILE ?= release

fuzz: ## A minute of each fuzz target
	tests/fuzz/run 60

gen: ## Write the generated pages of docs/reference and the custom resource definitions anew
	.ci/gen

deny: ## Bans, licences and sources of dependencies; advisories where their database can be reached
	.ci/deny
