//go:build !unix

package link

const canTry = false

func (b *batchConn) tryWrite(uintptr) bool { return true }

func (b *batchConn) tryRead(uintptr) bool { return true }
