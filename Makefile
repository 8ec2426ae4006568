# The files of a release, in dist/: archives of six platforms, bills of materials and checksums, with the same bytes each time
# (docs/RELEASING.md). It needs Go and git. DIST='-version v1.2.3' names the version, DIST=-help says more.
.PHONY: dist
dist:
	cd packaging && go run . $(DIST)

# Measurements that take longer than the tests. They need Linux and root, for network namespaces, and iproute2.

# Everything that RELIABILITY.md promises is broken on purpose and measured: a quarter of an hour; its table and picture
# are written anew. FAULTS=-full takes every scenario to the size of its promise: hours. FAULTS=-help says more.
.PHONY: faults
faults:
	go run ./e2e/faults $(FAULTS)

# Long and short connections, resets of the link, packet loss and strangers, all at once, for SOAK.
SOAK = 1h
.PHONY: soak
soak:
	go run ./e2e/faults -soak $(SOAK)

# Speed, latency and cost beside other ways to the same servers: a quarter of an hour on a machine that does nothing else.
# BENCH=-quick takes three minutes, BENCH='-rows bulk' repeats some rows, BENCH=-help says more. Without root, the rows over
# a distance are left out.
.PHONY: bench
bench:
	go run ./bench/compare -out bench/results -doc docs/PERFORMANCE.md -namedoc docs/PERFORMANCE.md $(BENCH)

# The part of these that is about names instead of ports: http/, https/ and tls/, two minutes.
.PHONY: bench-names
bench-names:
	go run ./bench/compare -rows '^(http|https|tls)/' -namedoc docs/PERFORMANCE.md $(BENCH)

# Fleets of bridges: how long until all serve, and what each costs; and a picture of their return after a restart of the proxy.
# 5,000 bridges need 15,500 open files (ulimit -n). FLEETS='-fleets 100,1000' measures others, with -peers DIRECTORY frp too.
.PHONY: fleets
fleets:
	go run ./bench/compare -rows '^fleet' -fleets 100,400/1,1000,5000 -rounds 1 -return docs/return.svg -fleetdoc docs/RELIABILITY.md $(FLEETS)
