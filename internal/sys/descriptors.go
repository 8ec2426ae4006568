package sys

import "fmt"

// reserve is how many descriptors are kept for links, the admin socket and files when user connections take all the others.
const reserve = 256

// fewest is what a process can work with: the sockets and files that one has for itself, a link, and a few user connections.
const fewest = 64

// CheckDescriptors returns an error if the descriptor limit is too low to serve anybody. The process would start, but once its
// users have taken the descriptors it could not even be asked for its status.
func CheckDescriptors() error {
	if limit := Descriptors(); limit < fewest {
		return fmt.Errorf("this process may have %d files and connections open, and it needs %d at least", limit, fewest)
	}
	return nil
}

// MaxConnections returns how many user connections this process may have at once. Each takes one descriptor; what the limit leaves
// is for everything else.
func MaxConnections() int {
	limit := Descriptors()
	return max(limit-min(reserve, limit/2), 16)
}
