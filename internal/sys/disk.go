package sys

// Disk is how much room a file system has, in bytes, for a user who is not root.
type Disk struct{ Free, Size int64 }
