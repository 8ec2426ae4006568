package usage

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"slices"
	"time"

	bolt "go.etcd.io/bbolt"
)

// In the file there is one bucket for each kind of period; in it, one for each period, by its start; in that, a row for each service of a
// key. The sequence of a period's bucket says which one was written to last: by it the oldest ones are dropped, so that a clock that is
// wrong for some time costs nothing. Each value begins with a checksum of itself, its key and the buckets that it is in.
//
//	v1/hour/START/KEY 0 SERVICE → sum, sent, received, connections, refused
//	v1/saves/PROCESS → sum, number of its last save, order
//
// The number of a process's last save is in the same transaction as what was saved: where the disk does not say whether a save
// succeeded, the next one sees it, and nothing is added twice.
var (
	versionBucket = []byte("v1")
	savesBucket   = []byte("saves")
)

// mostSavers is of how many processes the last save is known.
const mostSavers = 8

var table = crc32.MakeTable(crc32.Castagnoli)

func sum(path [][]byte, key, body []byte) uint32 {
	s := uint32(0)
	for _, p := range path {
		s = crc32.Update(s, table, p)
	}
	return crc32.Update(crc32.Update(s, table, key), table, body)
}

func seal(path [][]byte, key, body []byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, sum(path, key, body)), body...)
}

func unseal(path [][]byte, key, value []byte) ([]byte, error) {
	if len(value) < 4 || binary.BigEndian.Uint32(value) != sum(path, key, value[4:]) {
		return nil, damaged("the checksum of a value is wrong")
	}
	return value[4:], nil
}

// checkValue is for check: it knows where buckets and values may be. A nil key stands for a bucket.
func checkValue(path [][]byte, key, value []byte) error {
	switch {
	case len(path) == 0 || !bytes.Equal(path[0], versionBucket):
		return damaged("it is not of version 1, which this program knows")
	case len(path) == 1 && key == nil:
		return nil
	case len(path) == 1:
		return damaged("a value is in the place of a bucket")
	}
	saves := bytes.Equal(path[1], savesBucket)
	if key == nil {
		if ofPeriod := slices.Contains(periods, Period(path[1])); len(path) == 2 && (saves || ofPeriod) || len(path) == 3 && ofPeriod && len(path[2]) == 8 {
			return nil
		}
		return damaged("a bucket is where none can be")
	}
	body, err := unseal(path, key, value)
	if err != nil {
		return err
	}
	if saves {
		if len(path) != 2 || len(body) != 16 {
			return damaged("a value has a length that it cannot have")
		}
		return nil
	}
	if _, ok := parseCounts(body); !ok || len(path) != 3 || len(path[2]) != 8 || bytes.IndexByte(key, 0) < 0 {
		return damaged("a value is not what it should be")
	}
	return nil
}

func appendCounts(b []byte, c Counts) []byte {
	for _, n := range []uint64{c.Sent, c.Received, c.Connections, c.Refused} {
		b = binary.AppendUvarint(b, n)
	}
	return b
}

func parseCounts(b []byte) (c Counts, ok bool) {
	for _, to := range []*uint64{&c.Sent, &c.Received, &c.Connections, &c.Refused} {
		v, n := binary.Uvarint(b)
		if n <= 0 {
			return Counts{}, false
		}
		*to, b = v, b[n:]
	}
	return c, len(b) == 0
}

// The bytes of times are in the order of the times.
func timeKey(t time.Time) []byte {
	return binary.BigEndian.AppendUint64(nil, uint64(t.Unix())^1<<63)
}

func keyTime(b []byte) time.Time { return time.Unix(int64(binary.BigEndian.Uint64(b)^1<<63), 0).UTC() }

func (n name) row() []byte { return append(append([]byte(n.key), 0), n.service...) }

func rowName(b []byte) name {
	key, service, _ := bytes.Cut(b, []byte{0})
	return name{string(key), string(service)}
}

// book adds a batch to the file, as a process's save of a number. It reports whether that had happened before.
func book(tx *bolt.Tx, process [16]byte, number uint64, b batch) (before bool, err error) {
	root, err := tx.CreateBucketIfNotExists(versionBucket)
	if err != nil {
		return false, err
	}
	saves, err := root.CreateBucketIfNotExists(savesBucket)
	if err != nil {
		return false, err
	}
	if savedLast(saves, process) == number {
		return true, nil
	}
	for _, p := range periods {
		if err := bookPeriod(root, p, b); err != nil {
			return false, err
		}
	}
	return false, noteSave(saves, process, number)
}

func bookPeriod(root *bolt.Bucket, p Period, b batch) error {
	all, err := root.CreateBucketIfNotExists([]byte(p))
	if err != nil {
		return err
	}
	open := make(map[string]*rows)
	for _, hour := range b.hours() {
		start := timeKey(p.start(time.Unix(hour, 0)))
		to := open[string(start)]
		if to == nil {
			if to, err = openRows(all, p, start); err != nil {
				return err
			}
			open[string(start)] = to
		}
		for n, c := range b[hour] {
			if err := to.add(n, c); err != nil {
				return err
			}
		}
	}
	return dropOldest(all, p.kept())
}

// rows are those of one period.
type rows struct {
	bucket *bolt.Bucket
	path   [][]byte
	count  map[string]int // by key; nil: not counted yet
	all    int
}

func openRows(all *bolt.Bucket, p Period, start []byte) (*rows, error) {
	b, err := all.CreateBucketIfNotExists(start)
	if err != nil {
		return nil, err
	}
	b.FillPercent = 0.9 // most rows of a period come together, and stay
	if b.Sequence() == 0 || b.Sequence() != all.Sequence() {
		order, err := all.NextSequence()
		if err != nil {
			return nil, err
		}
		if err := b.SetSequence(order); err != nil {
			return nil, err
		}
	}
	return &rows{bucket: b, path: rowPath(p, start)}, nil
}

func rowPath(p Period, start []byte) [][]byte { return [][]byte{versionBucket, []byte(p), start} }

func (r *rows) add(n name, more Counts) error {
	key := n.row()
	value := r.bucket.Get(key)
	if value == nil {
		n = r.name(n)
		key = n.row()
		if value = r.bucket.Get(key); value == nil {
			r.count[n.key]++
			r.all++
		}
	}
	var c Counts
	if value != nil {
		body, err := unseal(r.path, key, value)
		if err != nil {
			return err
		}
		c, _ = parseCounts(body)
	}
	c.add(more)
	return r.bucket.Put(key, seal(r.path, key, appendCounts(nil, c)))
}

// name is the name that a row gets that is not there yet.
func (r *rows) name(n name) name {
	if r.count == nil {
		r.count = make(map[string]int)
		c := r.bucket.Cursor()
		for key, _ := c.First(); key != nil; key, _ = c.Next() {
			r.count[rowName(key).key]++
			r.all++
		}
	}
	if r.all >= MostRows && (r.count[n.key] == 0 || r.all >= 2*MostRows) {
		return name{OtherKeys, OtherServices}
	}
	if r.all >= MostRows || r.count[n.key] >= MostServices {
		n.service = OtherServices
	}
	return n
}

// dropOldest keeps so many periods: those that were written to last.
func dropOldest(all *bolt.Bucket, keep int) error {
	for keep > 0 {
		var oldest []byte
		var order uint64
		n := 0
		c := all.Cursor()
		for start, _ := c.First(); start != nil; start, _ = c.Next() {
			b := all.Bucket(start)
			if b == nil {
				continue
			}
			if n++; oldest == nil || b.Sequence() < order {
				oldest, order = bytes.Clone(start), b.Sequence()
			}
		}
		if n <= keep {
			return nil
		}
		if err := all.DeleteBucket(oldest); err != nil {
			return err
		}
	}
	return nil
}

func savesPath() [][]byte { return [][]byte{versionBucket, savesBucket} }

// savedLast is the number of a process's last save; 0: it has none.
func savedLast(saves *bolt.Bucket, process [16]byte) uint64 {
	number, _ := parseSave(process[:], saves.Get(process[:]))
	return number
}

func parseSave(key, value []byte) (number, order uint64) {
	body, err := unseal(savesPath(), key, value)
	if err != nil || len(body) != 16 {
		return 0, 0
	}
	return binary.BigEndian.Uint64(body), binary.BigEndian.Uint64(body[8:])
}

func noteSave(saves *bolt.Bucket, process [16]byte, number uint64) error {
	order, err := saves.NextSequence()
	if err != nil {
		return err
	}
	body := binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, number), order)
	if err := saves.Put(process[:], seal(savesPath(), process[:], body)); err != nil {
		return err
	}
	var oldest []byte
	n, least := 0, uint64(0)
	c := saves.Cursor()
	for key, value := c.First(); key != nil; key, value = c.Next() {
		_, order := parseSave(key, value)
		if n++; oldest == nil || order < least {
			oldest, least = bytes.Clone(key), order
		}
	}
	if n > mostSavers {
		return saves.Delete(oldest)
	}
	return nil
}
