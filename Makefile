# Chancery. `make run` and `make test` do everything on a fresh Debian or Ubuntu.
export GOTOOLCHAIN ?= auto
# One way of building for all targets, so that each finds what the others compiled.
export GOFLAGS ?= -trimpath
export PATH := /usr/lib/go-1.24/bin:/usr/lib/go-1.23/bin:/usr/local/go/bin:$(PATH)

VERSION := $(shell git describe --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -buildid= -X main.version=$(VERSION)
PKGS    := ./...
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
GOVULNCHECK := golang.org/x/vuln/cmd/govulncheck@v1.9.0

.PHONY: run build test check bench soak hsmfault deps-run deps-test

run: deps-run build
	bin/chancery dev --dir ./data

build:
	go build -ldflags '$(LDFLAGS)' -o bin/chancery ./cmd/chancery
	CGO_ENABLED=0 go build -ldflags '$(LDFLAGS)' -o bin/chancery-verify ./cmd/chancery-verify

# Everything: the unit tests of every room and the tests on real parts under test/.
test: deps-test
	go test -race -count=1 -timeout 30m $(PKGS)

check: deps-run
	@out=$$(gofmt -l $$(git ls-files '*.go')); test -z "$$out" || { echo "gofmt differs in: $$out"; exit 1; }
	go mod verify
	go vet $(PKGS)
	go vet -tags failpoint ./audit
	go run $(STATICCHECK) $(PKGS)
	go test -count=1 -run 'TestFloors|TestSecondImplementation' ./cmd/...
	@if [ -n "$$VULNDB" ]; then go run $(GOVULNCHECK) -db "file://$$VULNDB" $(PKGS); \
	else go run $(GOVULNCHECK) $(PKGS) || { s=$$?; [ $$s -eq 3 ] && exit 3; echo "govulncheck: skipped, no vulnerability database can be reached (set VULNDB to a folder)"; }; fi

bench: deps-test
	@mkdir -p bin
	go test -run '^$$' -bench . -benchtime 2s -timeout 30m ./hsmstore ./ca ./audit ./test | tee bin/bench.txt
	go run ./test/ratios bin/bench.txt

soak:
	CHANCERY_KILLS=1000 CHANCERY_RACE=1 go test -count=1 -timeout 80m -v -run 'Crash' ./test

# The PKCS#11 module that plays a failing HSM; the tests build their own copy.
hsmfault:
	@mkdir -p bin
	gcc -std=gnu11 -O2 -g -Wall -Wextra -Werror -fPIC -shared -fvisibility=hidden -Wl,-z,nodelete,-z,defs \
		-I "$$(go list -m -f '{{.Dir}}' github.com/miekg/pkcs11)" -o bin/hsmfault.so test/hsmfault/module.c -ldl -lpthread

deps-run:
	@sh deploy/deps.sh run

deps-test:
	@sh deploy/deps.sh test

NFPM := github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.45.2
.PHONY: deb
deb: build
	VERSION=0.1.0~$(VERSION) GOARCH=$$(go env GOARCH) go run $(NFPM) package --config deploy/nfpm.yaml --packager deb --target bin/chancery.deb
