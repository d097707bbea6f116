# Everything here runs from a fresh checkout. See README.md.
CARGO ?= cargo

.DEFAULT_GOAL := help
.PHONY: help run build test torture test-valkey test-clients test-stripe-types test-api test-rules test-deploy test-web web load fuzz bench bench-setup bench-footprint bench-micro bench-usage bench-flush bench-webhooks fmt lint licences

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## Starts the gateway with its demo upstream, a demo user and a key
	$(CARGO) run --release

build: ## The release binary
	$(CARGO) build --release --locked

test: ## Every test, against real servers of its own (installs them on Debian and Ubuntu)
	scripts/setup-test.sh
	scripts/test.sh

torture: ## The property tests of the ledger a million times over, and the fault tests again and again
	scripts/setup-test.sh
	scripts/torture.sh

test-clients: ## The official clients, Python and Node, against the gateway and the simulators: OpenAI, Anthropic, Stripe, jose, Svix
	scripts/test-clients.sh

test-stripe-types: ## Every object of the Stripe simulator, read by async-stripe
	scripts/test-stripe-types.sh

test-web: ## The React package, and the pages in a headless Chromium (installs Node and Chromium on Debian)
	scripts/test-web.sh

web: ## Builds the billing page and the console into web/dist, which the program compiles in
	cd web && npm ci --ignore-scripts --no-audit --no-fund && node pages/build.mjs

test-valkey: ## The ledger's tests against Valkey in place of Redis (installs it into .tools)
	scripts/setup-test.sh
	scripts/test-valkey.sh

test-api: ## A running gateway driven from its OpenAPI documents, by schemathesis
	scripts/test-api.sh

test-rules: ## The Prometheus alert rules and their tests, by promtool
	scripts/test-rules.sh

test-deploy: ## The compose file, the Kubernetes example, the systemd unit; Prometheus with the shipped configuration
	scripts/test-deploy.sh

load: ## The load tests by k6, each with an audit of the books after it; LOAD_LEDGER=redis for Redis and Postgres
	scripts/load.sh

fuzz: ## Each fuzz target for a minute: the SSE meter, the request estimator, the header code, an upstream's answers
	scripts/fuzz.sh

bench-setup: ## What `make bench` needs from Debian
	scripts/install.sh nginx=nginx-light wrk=wrk curl=curl redis-server=redis-server pgrep=procps "/usr/lib/postgresql/*/bin/initdb=postgresql" \
	  /usr/lib/nginx/modules/ngx_http_lua_module.so=libnginx-mod-http-lua /usr/share/lua/5.1/nginx/redis.lua=lua-nginx-redis

bench: ## Faregate against nginx on this machine, in one run: throughput, latency, CPU a request
	benches/compare.sh

bench-footprint: ## Start time, idle memory; 1,000 and 5,000 streams: memory of each, time that the gateway adds
	benches/footprint.sh

bench-micro: ## The hot path's parts, alone: time, and instructions where valgrind is at hand
	$(CARGO) bench --locked --bench hot_path
	if command -v valgrind >/dev/null; then benches/instructions.sh; fi

bench-usage: ## The usage API's questions over ten million rows, in Postgres and in SQLite
	scripts/install.sh "/usr/lib/postgresql/*/bin/initdb=postgresql"
	FAREGATE_USAGE_ROWS=10000000 $(CARGO) test --locked --test it -- store::usage_sums::no_question --nocapture --test-threads 1

bench-webhooks: ## How long an answer to a webhook of Stripe's takes, alone and in a burst of a thousand
	$(CARGO) test --release --locked --test it -- --ignored --nocapture --exact billing::webhooks::bench_time_to_answer

bench-flush: ## Usage rows a second into Postgres, against plain COPY of the same rows in one run
	scripts/install.sh "/usr/lib/postgresql/*/bin/initdb=postgresql"
	benches/flush.sh

fmt: ## Formats the code
	$(CARGO) fmt --all

lint: ## Formatting, clippy, scripts
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	scripts/lint-scripts.sh

licences: ## That every dependency's licence is one we may use; advisories where a database is at hand
	scripts/check-licences.sh
