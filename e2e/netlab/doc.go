// Package netlab makes three hosts in network namespaces and breaks what is between them:
//
//	public 10.1.0.1 ── r0 10.1.0.254 [router] 10.2.0.254 r1 ── 10.2.0.2 lan
//
// Users and proxy stand on public, bridge and LAN services on lan. Between them packets can stop (both ways or one), be
// lost at random, wait, or queue before a thin line, and lan can get another address. Nothing on either host sees a
// link go down or a reset come: as in the internet, packets just do not arrive.
//
// The namespaces have no names and their devices live inside: all are held by descriptors
// of this process, so the kernel removes them with it, however it ends. It needs Linux, root and iproute2. Its only
// goroutines move packets while a delay is set; [Lab.Close] waits for them.
package netlab
