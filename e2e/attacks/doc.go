// Package attacks plays those who wish a tunnel ill, on real connections: strangers at the link port (strangers.go), holders of
// a valid key who do not keep to what the protocol is for (bridge.go), and a proxy that lies to its bridges (proxy.go).
//
// Its secret is what they say and when. It speaks the protocol by itself, with the packages that only know its bytes and its
// proofs. It knows neither the programs that it attacks nor what becomes of them: package faults looks at that. Whoever starts
// something here closes it, which waits for all its goroutines.
package attacks
