package link

import "runtime"

// Bulk work, a batch at a time, waits for its turn here. The Go scheduler looks for sockets that became ready when one of its
// processors has nothing else to do, and otherwise only every 10 ms: were all of them busy with downloads, each keystroke
// would wait so long at every step. So one of them stays free of bulk, and a download gives way after each batch instead of
// after 10 ms. An echo beside 20 downloads at full speed on two cores took 36 ms (median; p99 80 to 105) without turns, and
// 1.2 ms (12) with them; the downloads lost nothing. Beside one stream each way it went from 1.0 ms (17) to 0.38 (10) when bulk was
// read off its socket in its turn, too.
var turns = make(chan struct{}, max(runtime.GOMAXPROCS(0)-1, 1))

// TakeTurn waits until a batch of n bytes may be processed. A small one is not bulk and does not wait. EndTurn, with the same
// n, says that it is done; nothing in between may wait for a socket or a peer. Nor may the callback of a RawConn wait for a turn:
// closing the socket waits for the callback, and slot.mu may be held meanwhile, which somebody in his turn wants.
func TakeTurn(n int) {
	if n >= ChunkSize {
		turns <- struct{}{}
	}
}

// EndTurn ends what TakeTurn began.
func EndTurn(n int) {
	if n >= ChunkSize {
		<-turns
	}
}
