package link

import "crypto/sha256"

// ProbeQuestion is what a bridge shows at a public port to prove that it leads to the proxy that sent it the nonce in CLAIMED. The
// nonce does not cross itself, or a proxy could choose what its bridges write to others' ports.
func ProbeQuestion(nonce [16]byte) [16]byte {
	sum := sha256.Sum256(append([]byte("reverser probe v1"), nonce[:]...))
	return [16]byte(sum[:16])
}

// ProbeAnswer is what the proxy answers to that.
func ProbeAnswer(nonce [16]byte) [16]byte {
	sum := sha256.Sum256(append([]byte("reverser probe answer v1"), nonce[:]...))
	return [16]byte(sum[:16])
}
