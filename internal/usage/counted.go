package usage

import (
	"encoding/hex"
	"slices"
	"sync"
	"time"

	"reverser/internal/status"
)

// Source is who counts. Both functions are called once in some seconds and must not wait.
type Source interface {
	// Counted yields what each service of each key has counted so far. A service that is gone is still among them.
	Counted(yield func(status.Counted) bool)
	// KeyName is what people call a key, or called it when it was removed since the last call of Counted; "" if it is not known any more.
	KeyName(id [16]byte) string
}

// mostPending is how many rows wait for the disk at the most. Beyond that, hours are added up.
const mostPending = 4 * MostRows

// batch is what was counted in each hour, by its start in seconds since 1970.
type batch map[int64]map[name]Counts

// counted reads a source.
type counted struct {
	source Source

	mu      sync.Mutex
	seen    map[counter]Counts // guarded by mu, as all below
	names   map[[16]byte]string
	pending batch
	taken   Counts // by take, and not stored so far
	history history
}

type counter struct {
	key     [16]byte
	service string
}

// read books what the counters have grown by.
func (c *counted) read(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.readLocked(now)
}

func (c *counted) readLocked(now time.Time) {
	hour := Hour.start(now).Unix()
	c.history.open = 0
	for t := range c.source.Counted {
		id := counter{t.Key, t.Service}
		all := Counts{t.Sent, t.Received, t.Connections, t.Refused}
		grown := all.growth(c.seen[id])
		c.history.open += t.Open
		if grown == (Counts{}) {
			continue
		}
		c.seen[id] = all
		c.history.grown.add(grown)
		c.pending.add(hour, name{c.nameLocked(t.Key), t.Service}, grown)
	}
	c.pending.bound(mostPending)
}

// nameLocked is what people call a key, or called it while it was there.
func (c *counted) nameLocked(id [16]byte) string {
	if n := c.source.KeyName(id); n != "" {
		c.names[id] = n
		return n
	}
	if n := c.names[id]; n != "" {
		return n
	}
	return hex.EncodeToString(id[:])
}

// take returns what is pending, and begins anew.
func (c *counted) take() batch {
	c.mu.Lock()
	defer c.mu.Unlock()
	b := c.pending
	c.pending = make(batch)
	c.taken = b.sum()
	return b
}

// saved says that what take returned last is stored.
func (c *counted) saved() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.taken = Counts{}
}

// unsaved is what was counted and is not stored.
func (c *counted) unsaved() Counts {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := c.pending.sum()
	all.add(c.taken)
	return all
}

// copyTo adds what is pending to b.
func (c *counted) copyTo(b batch) {
	c.mu.Lock()
	defer c.mu.Unlock()
	b.join(c.pending)
}

func (b batch) add(hour int64, n name, more Counts) {
	rows := b[hour]
	if rows == nil {
		rows = make(map[name]Counts)
		b[hour] = rows
	}
	if _, there := rows[n]; !there {
		n = bounded(rows, n)
	}
	sum := rows[n]
	sum.add(more)
	rows[n] = sum
}

// bounded is the name that a new row may have in an hour. How many services a key has is left to the file.
func bounded(rows map[name]Counts, n name) name {
	if len(rows) < MostRows {
		return n
	}
	if n.service = OtherServices; len(rows) < 2*MostRows {
		return n
	}
	return name{OtherKeys, OtherServices}
}

func (b batch) join(o batch) {
	for hour, rows := range o {
		for n, c := range rows {
			b.add(hour, n, c)
		}
	}
}

func (b batch) sum() (all Counts) {
	for _, rows := range b {
		for _, c := range rows {
			all.add(c)
		}
	}
	return all
}

func (b batch) size() (n int) {
	for _, rows := range b {
		n += len(rows)
	}
	return n
}

func (b batch) hours() []int64 {
	hours := make([]int64, 0, len(b))
	for h := range b {
		hours = append(hours, h)
	}
	slices.Sort(hours)
	return hours
}

// bound adds up the oldest hours until there are at most so many rows, or one hour.
func (b batch) bound(most int) {
	for len(b) > 1 && b.size() > most {
		hours := b.hours()
		oldest := b[hours[0]]
		delete(b, hours[0])
		for n, c := range oldest {
			b.add(hours[1], n, c)
		}
	}
}
