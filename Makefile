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
	go run ./bench/compare -out bench/results -doc docs/PERFORMANCE.md $(BENCH)
