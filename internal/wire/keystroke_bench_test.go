package wire

import "testing"

// BenchmarkKeystroke makes and reads the two frames that a single byte costs: its DATA and the ACK for it.
func BenchmarkKeystroke(b *testing.B) {
	const id = 5<<8 | 1
	buf := make([]byte, 0, 256)
	b.ReportAllocs()
	for off := uint64(0); b.Loop(); off++ {
		buf = append(AppendHeader(buf[:0], TypeData, id, off, 1), 'k')
		buf = AppendAck(buf, id, off+1, off+1<<16)
		data, n, err := Parse(buf)
		if err != nil || len(data.Payload) != 1 {
			b.Fatal(data, err)
		}
		ack, _, err := Parse(buf[n:])
		if err != nil || AckCredit(ack) != off+1<<16 {
			b.Fatal(ack, err)
		}
	}
}
