package sys

const mib = 1 << 20

// mostBudget is what fast paths of many streams need (spec/PROTOCOL.md, section "Credit").
const mostBudget = 128 * mib

// AvailableMemory is the smaller of the machine's memory and the limits that a container or service manager set for this
// process; 0 where the system does not tell.
func AvailableMemory() int64 { return available() }

// MemoryAvailableTo is AvailableMemory for another process of this machine.
func MemoryAvailableTo(pid int) int64 { return availableTo(pid) }

// MemoryBudget is how many bytes streams may hold in flight where that much memory is available: a quarter of it, so that
// the kernel's own socket buffers, which are about as large, and everything else fit beside it.
func MemoryBudget(available int64) int64 {
	if available <= 0 {
		return mostBudget
	}
	return min(mostBudget, available/4)
}

// MostNames is how many names without sockets a proxy holds where that much memory is available: as many as an eighth of it has room for.
//
// 49,152 names of 33 bytes, each of its own host, took 2.4 KB each, and the process grew by 3.4 KB for each, garbage included (Linux, amd64).
func MostNames(available int64) int {
	const each = 4 << 10
	if available <= 0 {
		available = 4 * mostBudget
	}
	return int(available / 8 / each)
}

// MostStrangers is how many connections that no service has let in each of the two ports for names holds where that much memory is available:
// as many as an eighth of it has room for in both; 0 where the system does not tell.
//
// 4,000 clients of HTTP/2 that had sent 100 requests each, and let no answer be written, took some 100 KB each, garbage included (Linux, amd64).
func MostStrangers(available int64) int {
	const each = 128 << 10
	return int(max(available, 0) / 8 / 2 / each)
}

// RuntimeLimit is the memory limit for Go's runtime: from there on it collects more often rather than grow. 0: none.
//
// Where memory is plenty, three quarters of it: the collector's usual rule (twice the live heap) then ends a cycle long
// before, and the limit matters only where growth without it would end with the kernel killing the process, and all users'
// connections with it. The last quarter is for the kernel's socket buffers, which a container is charged for as well.
//
// A limit below what is live would make the collector run all the time and free nothing: it would take half of the
// processors. So the limit is never below what 10,000 idle connections and a budget that is used up need, and a quarter
// on top, which is what the program allocates between two cycles. With 8,500 connections, idle since they were opened, the
// proxy had 61 MB resident and the bridge 79 MB, garbage and code included (Linux, amd64); base and idle below are 94 MiB.
// With 128 MiB of budget (512 MiB available) that makes 278 MiB, and three quarters are more from 270 MiB available on. Below
// that the limit comes near to all that there is, and such a load does not fit anyway.
func RuntimeLimit(available int64) int64 {
	if available <= 0 {
		return 0
	}
	const (
		base = 16 * mib           // code, keys, the buffers of a few links
		idle = 10_000 * (8 << 10) // mostly a stack each
	)
	live := base + idle + MemoryBudget(available)
	return max(available/4*3, live+live/4)
}
