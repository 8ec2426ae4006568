// Package sys holds what differs between operating systems:
//   - how sockets are made (birth*.go, dial*.go, unread*.go), and how many there may be (descriptors*.go);
//   - reading and writing sockets that do not block (socket*.go), and what waits in the kernel (queue*.go);
//   - how much memory this process may use (memory*.go);
//   - what else a machine says of itself: who has a port, how much room a disk has (holder*.go, disk*.go), and which limit another process has (limit*.go);
//   - news that the machine's network changed (network*.go).
//
// The package does not know what sockets carry, nor what a change of the network means for a connection. Goroutines: those that read from the kernel belong to WatchNetwork, which blocks and ends with its context.
package sys
