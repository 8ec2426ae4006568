//go:build linux

package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"reverser/e2e/netlab"
)

// A scenario is one thing that happens to a tunnel.
type scenario struct {
	id      string
	name    string
	user    string // what a user sees, in one sentence
	promise string // what the report holds it to
	how     string // with which means
	lab     bool   // needs the three hosts, and so root
	busy    bool   // uses all the processor there is: not beside another such one
	run     func(ctx context.Context, b *bed) error
}

// scenarios is the list, in the order of the report.
var scenarios = []scenario{
	{id: "F1", name: "cuts during bulk transfers", run: cutsDuringBulk,
		user:    "A big transfer goes on through any number of breaks of the link.",
		promise: "every byte once, checksums equal, no connection ended",
		how:     "relay on loopback cuts (RST or FIN) after random bytes, a quarter of them inside handshake and table"},
	{id: "F2", name: "a cut behind every byte", run: cutBehindEveryByte,
		user:    "It does not matter at which byte the link breaks.",
		promise: "all echoes right, no connection ended",
		how:     "relay on loopback cuts after n bytes of one direction, n from 1 to 20,000, in random order"},
	{id: "F3", name: "many connections through cuts", run: manyThroughCuts,
		user:    "Long and short connections alike notice a break as a pause only.",
		promise: "no wrong byte, no unexpected end; descriptors and memory as before",
		how:     "relay on loopback resets the whole link every 2 to 5 s under long and short connections"},
	{id: "F4", name: "black hole that heals", run: blackHole, lab: true,
		user:    "When the uplink is back, so is every connection.",
		promise: "same connections go on; stall after heal ≤ 1 s, after outages of 20 s and more p95 ≤ 2 s and at most 4 s",
		how:     "router drops everything, both ends' devices stay up; echo users, bulk both ways, curl from nginx"},
	{id: "F5", name: "the bridge's address changes", run: addressChange, lab: true,
		user:    "A new address (Wi-Fi to cable, a new lease) costs a moment.",
		promise: "back within 2 s, connections go on",
		how:     "the old address is deleted, another one and the route added"},
	{id: "F6", name: "one-way black hole", run: oneWay, lab: true,
		user:    "A way that works in one direction only is found out.",
		promise: "noticed within 16 s; connections go on after it",
		how:     "an XDP program in the router drops one direction, then the other"},
	{id: "F7", name: "outage longer than the limit", run: beyondLimit, lab: true,
		user:    "Who waited for too long is told so: by RST, not by a clean end.",
		promise: "RST to users and LAN within 1 s of the limit; a new session works",
		how:     "router drops everything for longer than --resume-within 20s"},
	{id: "F8", name: "bridge killed and restarted", run: bridgeKilled,
		user:    "Connections through a killed bridge end by RST; new ones work at once.",
		promise: "RST ≤ 1 s after the new bridge attached; new connections ≤ 2 s after its start",
		how:     "kill -9, start again; on loopback"},
	{id: "F9", name: "proxy killed and restarted", run: proxyKilled,
		user:    "A killed proxy is a reset connection, never a short file that looks whole.",
		promise: "users see RST, never FIN; bridge back p95 ≤ 1.5 s and at most 3 s after the proxy listens; LAN side RST ≤ 1 s after that",
		how:     "kill -9 under full-speed downloads, start again; on loopback"},
	{id: "F10", name: "drain", run: drain,
		user:    "An update lets running transfers finish.",
		promise: "all transfers whole, exit 0; new users are refused by a proxy and served by a bridge; a second signal ends it at once",
		how:     "SIGTERM to either side under five transfers of 8 MiB"},
	{id: "F11", name: "a side that sleeps", run: asleep,
		user:    "A laptop that was shut and opened again goes on where it was.",
		promise: "same connections go on, no byte lost",
		how:     "SIGSTOP, SIGCONT to either side; on loopback"},
	{id: "F18", name: "damaged bytes on the link", run: damaged,
		user:    "Broken hardware on the way costs a moment, never a wrong byte.",
		promise: "no wrong byte delivered, transfers go on",
		how:     "relay on loopback inverts one bit in every so many bytes"},
	{id: "F19", name: "a second bridge with the same key", run: duplicateBridge,
		user:    "A copied configuration does not disturb the bridge that works.",
		promise: "the second is refused for as long as it tries; the first keeps every connection, and takes no new attach",
		how:     "two bridges with one token; on loopback"},
	{id: "F20", name: "slow readers", run: slowReaders, busy: true,
		user:    "Somebody who does not read slows nobody else.",
		promise: "beside one that stalls fast users have ≥ 95 % of their speed, p99 of echoes ≤ twice; it holds ≤ 8 MiB at each end, many the budget",
		how:     "users who read nothing beside users at full speed; on loopback"},
	{id: "F21", name: "half-close and reset", run: halfClose,
		user:    "Ends arrive as they were sent, also across an outage.",
		promise: "FIN stays FIN, RST stays RST behind the bytes before it",
		how:     "H1 user ends first, H2 service ends first, H3 FIN in an outage, H4 RST in an outage, H5 RST behind data, H6 both end at once"},
	{id: "F22", name: "a user leaves during an outage", run: leavesDuringOutage, lab: true,
		user:    "Who gives up during an outage holds nothing.",
		promise: "noticed ≤ 6 s after the user left although nothing is read; the LAN service is told after the heal",
		how:     "router drops everything; users with full windows close"},
	{id: "F23", name: "the LAN service fails", run: serviceFails,
		user:    "A service that is down, resets or does not answer looks like that.",
		promise: "RST at once (≤ 11 s where nothing answers); works again at once; nothing left behind",
		how:     "nothing listens; accept, then RST; a full backlog"},
	{id: "L1", name: "idle connections", run: idle, busy: true,
		user:    "Ten thousand open connections cost little, and come back together.",
		promise: "≤ 12 KiB of the proxy's memory each, < 1 % of a core while idle; all resumed ≤ 1 s after a cut",
		how:     "connections on loopback; one reset of the whole link"},
	{id: "L2", name: "full windows in an outage", run: fullWindows, lab: true,
		user:    "Users who go on sending during an outage do not fill the memory.",
		promise: "memory ≤ budget + 30 %; every stream goes on",
		how:     "every user writes until nothing more is taken while the router drops everything"},
	{id: "L6", name: "packet loss and long delay", run: packetLoss, lab: true,
		user:    "A bad line is slow, and nothing else.",
		promise: "no errors, no connection of the link given up",
		how:     "XDP drops 0.1, 1 and 5 % of the packets in both directions, 200 ms round trip"},
	{id: "L7", name: "thin uplink", run: thinUplink, lab: true,
		user:    "A line that is full for minutes is not taken for dead.",
		promise: "no connection of the link given up",
		how:     "tc tbf, 256 kbit/s with a queue of 4 MiB, bulk towards the user"},
	{id: "L8", name: "one very large stream", run: largeStream, busy: true,
		user:    "A transfer may be of any size.",
		promise: "checksum equal through cuts",
		how:     "one stream on loopback, cut at random moments"},
	{id: "N1", name: "strangers at the link port", run: strangers, lab: true, busy: true,
		user:    "Whoever knocks without a key is nobody's trouble.",
		promise: "no connection lost; p99 of echoes ≤ twice; back after a cut ≤ 1 s, at 200 ms of round trip ≤ 3 s; a new bridge ≤ 5 s; the operator ≤ 1 s",
		how:     "connections to the link port from many loopback addresses, held for as long as they are let"},
	{id: "N2", name: "tables that never end", run: unfinishedTables, busy: true,
		user:    "Somebody with a key cannot take the memory or the descriptors of others.",
		promise: "as N1; the proxy's memory grows by ≤ 32 MiB",
		how:     "connections with a valid key that send a table of 65,536 streams but for its end, or nothing; the proxy has 1,024 descriptors"},
	{id: "N3", name: "a key that claims everything", run: manyClaims, busy: true,
		user:    "A key with very many ports leaves room for everybody else's.",
		promise: "as N1; at most half of the descriptors; at most 10 lines of log a second for each kind of message",
		how:     "CLAIMs of one session; the proxy has 1,024 descriptors"},
	{id: "N4", name: "a key that acknowledges nothing", run: neverAcknowledged, lab: true, busy: true,
		user:    "A key that takes all it can get slows nobody's download.",
		promise: "as N1; a download over 200 ms of round trip keeps half of its speed, and has it back when the key is gone",
		how:     "a bridge that grants a credit of 2^40 and sends no acknowledgement, users who write as much as they can"},
	{id: "N5", name: "a crowd of idle users", run: idleUsers, busy: true,
		user:    "Connections that somebody leaves open do not close the door for others.",
		promise: "as N1; new users of the neighbour ≤ 1 s",
		how:     "connections from one address to another key's port that are held and say nothing; the proxy has 1,024 descriptors"},
	{id: "N6", name: "a proxy that lies", run: falseProxy,
		user:    "A bridge connects to what its own configuration names, and to nothing that a proxy says.",
		promise: "as N1, for the users of the bridge's other proxy; no connection to a host that the proxy named; descriptors stay as they were",
		how:     "a second proxy with the same identity answers a claim 20,000 times a second, with addresses of other hosts"},
	{id: "N7", name: "escape sequences", run: escapeSequences,
		user:    "Whatever a stranger or a peer says, a terminal shows it and does not obey.",
		promise: "as N1; no control character, no forged line, in log and status at a colour terminal",
		how:     "ALPN, server name and HTTP of strangers; host name, claims, targets, GOAWAY and ERR of a bridge; refusals, answers, GOAWAY and ERR of a proxy"},
	{id: "L9", name: "soak", run: soak, lab: true,
		user:    "It works tomorrow as it does today.",
		promise: "no errors; memory grows ≤ 1 MiB per 100,000 connections",
		how:     "long and short connections, resets of the link, packet loss and strangers at the link port, all at once"},
}

// busy is held by the scenario that may use the whole processor.
var busy = make(chan struct{}, 1)

// runScenario runs a scenario of the size. Whatever it started has ended when it returns.
func runScenario(ctx context.Context, s scenario, set settings) *result {
	b := &bed{size: set.size, race: set.race, bin: set.bin, soak: set.soak}
	if s.lab {
		if err := netlab.Available(); err != nil {
			b.skipped = err.Error()
			return &b.result
		}
	}
	if s.busy {
		select {
		case busy <- struct{}{}:
			defer func() { <-busy }()
		case <-ctx.Done():
			b.fail("not run: %v", context.Cause(ctx))
			return &b.result
		}
	}
	limit := by(b, 9*time.Minute, 10*time.Minute, 2*time.Hour) + set.soak // go test gives a package ten
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("%s took more than %v", s.id, limit))
	defer cancel()
	begin := time.Now()
	dir, err := os.MkdirTemp("", "reverser-faults-")
	if err != nil {
		b.fail("%v", err)
		return &b.result
	}
	defer os.RemoveAll(dir)
	b.dir = dir
	defer b.close()
	if err := s.run(ctx, b); err != nil {
		b.fail("%v", err)
	}
	b.took = time.Since(begin)
	return &b.result
}

// settings are what a run of the scenarios is given.
type settings struct {
	size size
	race bool
	bin  string
	soak time.Duration // how long L9 takes; 0: as the size says
}
