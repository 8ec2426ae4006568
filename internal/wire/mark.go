package wire

// Mark is the highest stream that the proxy opened on a slot before it answered an UNCLAIM.
type Mark struct {
	Slot   uint8
	Stream uint64
}
