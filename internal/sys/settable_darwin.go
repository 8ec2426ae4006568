package sys

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// sonpxSetOptShut is SONPX_SETOPTSHUT of <sys/socket.h>.
const sonpxSetOptShut = 1

// keepSettable has a socket take options also when both directions of its connection have ended: macOS refuses them otherwise. To close a
// socket in peace takes one (SO_LINGER), and without it the last bytes, which may be under way still, would be followed by a
// reset. Connections inherit this from their listener.
func keepSettable(fd int) {
	extensions := binary.NativeEndian.AppendUint32(nil, sonpxSetOptShut)                  // npx_flags
	extensions = binary.NativeEndian.AppendUint32(extensions, sonpxSetOptShut)            // npx_mask
	unix.SetsockoptString(fd, unix.SOL_SOCKET, unix.SO_NP_EXTENSIONS, string(extensions)) // what the kernel refuses is not missed until then
}
