// Command faults breaks what a tunnel depends on, with real processes, and measures what its users see.
//
// A run reads like this:
//
//  1. scenario.go  the list: what happens, what is promised
//  2. bed.go       the programs, the three hosts or the relay on loopback, and connections with both ends in hand
//  3. traffic.go   users and LAN services: checked streams and echoes
//  4. cuts.go, outage.go, crash.go, shape.go, load.go, path.go, soak.go   the scenarios; fair.go, greedy.go, lies.go   the
//     attacks, with attacker.go for those that are a process of their own and neighbour.go for who works meanwhile
//  5. result.go    figures, promises kept and missed
//  6. peers.go     the same for other programs, where they are installed
//  7. report.go, picture.go   docs/RELIABILITY.md and docs/outage.svg
//
// The tests run all scenarios at a size for continuous integration. A scenario fails when a byte or a connection is wrong or
// when nothing moves any more; how long something took only fails when it is far beyond the promise, because the machine
// may be busy. The report is strict.
package main
