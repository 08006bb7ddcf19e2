# Thin on purpose: what a target does is in hack/.
.DEFAULT_GOAL := help
SHELL := /bin/bash

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
export VERSION

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## lhstorage's programs, static, into bin/
	@hack/build

.PHONY: image
image: deps build ## lhstorage's container image, without a daemon, into bin/lhstorage.tar; IMAGE=name
	@hack/image

.PHONY: stock
stock: ## the stock CNI plugins and cnitool beside ours, into bin/
	@hack/stock

.PHONY: deps
deps: ## the Debian packages that tests and demo need (root; quiet when they are there)
	@hack/deps

.PHONY: test
test: deps ## unit, kernel, lab and integration tests (as root; without root the kernel's are skipped)
	@hack/test

.PHONY: test-cluster
test-cluster: deps ## tests in a real cluster (root); FULL=1: every repetition, VERBOSE=1: figures
	@hack/test-cluster

.PHONY: test-longhorn
test-longhorn: ## the real longhorn-manager in such a cluster, built once, then 8 min (root); VERBOSE=1
	@hack/deps longhorn
	@hack/test-cluster ./integration/longhornmanager

.PHONY: test-vm
test-vm: ## tests in a VM with Debian's kernel: iSCSI, NVMe/TCP, VLAN, bond (root); RUN=regexp, VERBOSE=1
	@hack/deps vm
	@hack/test-vm

.PHONY: cluster
cluster: deps ## a real cluster of three nodes on this machine, to try things in (root)
	@hack/cluster up

.PHONY: cluster-down
cluster-down: ## end it, and remove what a crashed one left (root)
	@hack/cluster down

.PHONY: demo
demo: deps build stock ## three nodes, stock macvlan against lhstorage, iSCSI; JSON=file for a report
	@bin/lhstoragectl lab demo --bin-dir bin $(if $(JSON),--json '$(JSON)')

.PHONY: bench
bench: ## side by side with the stock plugins (root); BENCH_QUICK=1, BENCH_CASES=regexp, BENCH_N=1,200, BENCH_OUT=file for JSON
	@hack/bench

.PHONY: generate
generate: ## what is generated: deepcopy functions, deploy/crds, the chart's copies, the kustomize base
	@hack/generate

.PHONY: lint
lint: ## gofmt, go vet, golangci-lint, govulncheck
	@hack/lint
	@hack/vulncheck

.PHONY: vulncheck
vulncheck: ## known vulnerabilities; VULNDB=url, VULNDB_UNREACHABLE=warn: see hack/vulncheck
	@hack/vulncheck

.PHONY: clean
clean: ## remove bin/ (what is cached is in ~/.cache/lhstorage)
	@rm -rf bin
