package usage

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"slices"
)

// bbolt maps its file into memory and believes what it finds there: of a damaged one it panics, in goroutines of its own too, reads
// beyond the end of the file, or overwrites pages that are in use. So a file is read by ordinary reads and checked before bbolt has it.
//
// The layout of the file is version 2 of bbolt's, which it keeps for compatibility. All numbers are in the order of the machine.

const (
	pageHeader    = 16 // id 8, flags 2, count 2, overflow 4
	elementHeader = 16 // branch: position 4, key size 4, page 8; leaf: flags 4, position 4, key size 4, value size 4
	bucketHeader  = 16 // root page 8, sequence 8

	branchPage   = 0x01
	leafPage     = 0x02
	metaPage     = 0x04
	freelistPage = 0x10

	bucketLeaf = 0x01 // the flag of an element that is a bucket

	fileMagic   = 0xED0CDAED
	fileVersion = 2
	manyFree    = 0xFFFF // the count of a freelist whose first element is the count

	smallestPage = 1 << 9
	largestPage  = 1 << 16
	mostDepth    = 64 // of pages: more means that they go round in a circle
)

// damage says what is wrong with a file.
type damage struct{ what string }

func (d *damage) Error() string { return d.what }

func damaged(format string, args ...any) error { return &damage{fmt.Sprintf(format, args...)} }

// meta is one of the two pages that say where the rest is.
type meta struct {
	pageSize       int64
	root, freelist uint64
	pages          uint64 // from here on nothing is used
	txid           uint64
}

// readMeta reads a meta page that begins at an offset.
func readMeta(f io.ReaderAt, at int64) (m meta, ok bool, err error) {
	b := make([]byte, pageHeader+64)
	if _, err := f.ReadAt(b, at); errors.Is(err, io.EOF) {
		return meta{}, false, nil
	} else if err != nil {
		return meta{}, false, err
	}
	n, body := binary.NativeEndian, b[pageHeader:]
	sum := fnv.New64a()
	sum.Write(body[:56])
	if n.Uint32(body) != fileMagic || n.Uint32(body[4:]) != fileVersion || n.Uint64(body[56:]) != sum.Sum64() {
		return meta{}, false, nil
	}
	m = meta{pageSize: int64(n.Uint32(body[8:])), root: n.Uint64(body[16:]), freelist: n.Uint64(body[32:]), pages: n.Uint64(body[40:]), txid: n.Uint64(body[48:])}
	return m, m.pageSize >= smallestPage && m.pageSize <= largestPage && m.pageSize&(m.pageSize-1) == 0, nil
}

// findMeta returns the newest valid meta page. both reports whether the other one is valid too.
func findMeta(f io.ReaderAt) (newest meta, both bool, err error) {
	first, ok0, err := readMeta(f, 0)
	if err != nil {
		return meta{}, false, err
	}
	// Where the first one is lost, its page size is, too.
	sizes := []int64{first.pageSize}
	if !ok0 {
		sizes = nil
		for size := int64(smallestPage); size <= largestPage; size *= 2 {
			sizes = append(sizes, size)
		}
	}
	for _, size := range sizes {
		second, ok1, err := readMeta(f, size)
		switch {
		case err != nil:
			return meta{}, false, err
		case !ok1 || second.pageSize != size:
		case !ok0 || second.txid > first.txid:
			return second, ok0, nil
		default:
			return first, true, nil
		}
	}
	if !ok0 {
		return meta{}, false, damaged("neither of its first two pages says where the others are")
	}
	return first, false, nil
}

// checker goes through all pages that are in use.
type checker struct {
	file  io.ReaderAt
	meta  meta
	used  []bool // by page
	value func(path [][]byte, key, value []byte) error
}

// check reads a file of some size to the end, and returns a *damage if bbolt could not use it. value is called for each value in it, with
// the names of the buckets that it is in, and with a nil key for each bucket. whole is false where one of the two meta pages is damaged, which
// bbolt does not mind: the file is as the other one says, and where that is the older one the last transaction is missing.
func check(f io.ReaderAt, size int64, value func(path [][]byte, key, value []byte) error) (whole bool, err error) {
	m, both, err := findMeta(f)
	if err != nil {
		return false, err
	}
	if m.pages < 4 || m.pages > uint64(size/m.pageSize) {
		return false, damaged("it should have %d pages of %d bytes, and has %d bytes", m.pages, m.pageSize, size)
	}
	c := &checker{file: f, meta: m, used: make([]bool, m.pages), value: value}
	c.used[0], c.used[1] = true, true
	if err := c.bucket(nil, m.root, 0); err != nil {
		return false, err
	}
	return both, c.freelist()
}

// page reads a page with those that it goes on in, and takes note that it is used.
func (c *checker) page(id uint64) ([]byte, error) {
	if id < 2 || id >= c.meta.pages {
		return nil, damaged("page %d is none of its %d", id, c.meta.pages)
	}
	head := make([]byte, pageHeader)
	if err := c.read(head, id); err != nil {
		return nil, err
	}
	n := binary.NativeEndian
	more := uint64(n.Uint32(head[12:]))
	if n.Uint64(head) != id || more >= c.meta.pages-id {
		return nil, damaged("page %d does not begin as it should", id)
	}
	for i := id; i <= id+more; i++ {
		if c.used[i] {
			return nil, damaged("page %d is used twice", i)
		}
		c.used[i] = true
	}
	b := make([]byte, (int64(more)+1)*c.meta.pageSize)
	return b, c.read(b, id)
}

func (c *checker) read(b []byte, id uint64) error {
	_, err := c.file.ReadAt(b, int64(id)*c.meta.pageSize)
	if errors.Is(err, io.EOF) {
		return damaged("it ends before page %d does", id)
	}
	return err
}

// bucket checks a bucket that has pages of its own.
func (c *checker) bucket(path [][]byte, root uint64, depth int) error {
	return c.tree(path, root, depth, &order{})
}

// order is where a walk through a bucket stands.
type order struct {
	last  []byte // the key that came last
	first []byte // the one that comes next, as the page above says; nil: there is none, or it came
}

// reach reports whether a key may come next.
func (o *order) reach(key []byte) bool {
	ok := (o.last == nil || bytes.Compare(key, o.last) > 0) && (o.first == nil || bytes.Equal(key, o.first))
	o.first = nil
	return ok
}

// tree checks a page and those below it.
func (c *checker) tree(path [][]byte, id uint64, depth int, at *order) error {
	if depth > mostDepth {
		return damaged("its pages go deeper than %d", mostDepth)
	}
	b, err := c.page(id)
	if err != nil {
		return err
	}
	n := binary.NativeEndian
	if n.Uint16(b[8:]) != branchPage {
		return c.leaf(path, b, fmt.Sprintf("page %d", id), depth, at)
	}
	count := int(n.Uint16(b[10:]))
	if count == 0 || pageHeader+count*elementHeader > len(b) {
		return damaged("page %d cannot have %d elements", id, count)
	}
	end := int64(pageHeader + count*elementHeader)
	for i := range count {
		element := pageHeader + i*elementHeader
		key, ok := piece(b, element, &end, n.Uint32(b[element:]), n.Uint32(b[element+4:]))
		if !ok {
			return damaged("element %d of page %d is not where it should be", i, id)
		}
		if !at.reach(key) {
			return damaged("element %d of page %d is out of order", i, id)
		}
		at.first = key
		if err := c.tree(path, n.Uint64(b[element+8:]), depth+1, at); err != nil {
			return err
		}
	}
	return nil
}

// leaf checks the elements of a leaf page, or of a bucket that is kept within one.
func (c *checker) leaf(path [][]byte, b []byte, where string, depth int, order *order) error {
	n := binary.NativeEndian
	if n.Uint16(b[8:]) != leafPage {
		return damaged("%s is of a kind %#x that does not belong there", where, n.Uint16(b[8:]))
	}
	count := int(n.Uint16(b[10:]))
	if pageHeader+count*elementHeader > len(b) {
		return damaged("%s cannot have %d elements", where, count)
	}
	if count == 0 && len(path) > 0 {
		return damaged("%s is empty", where) // nothing that was ever made here is
	}
	end := int64(pageHeader + count*elementHeader)
	for i := range count {
		at := pageHeader + i*elementHeader
		flags, keySize := n.Uint32(b[at:]), n.Uint32(b[at+8:])
		both, ok := piece(b, at, &end, n.Uint32(b[at+4:]), keySize, n.Uint32(b[at+12:]))
		if !ok || keySize == 0 {
			return damaged("element %d of %s is not where it should be", i, where)
		}
		key, value := both[:keySize], both[keySize:]
		if !order.reach(key) {
			return damaged("element %d of %s is out of order", i, where)
		}
		order.last = key
		var err error
		switch flags {
		case 0:
			err = c.value(path, key, value)
		case bucketLeaf:
			err = c.nested(append(slices.Clone(path), key), value, depth)
		default:
			err = damaged("element %d of %s has flags %#x, which mean nothing", i, where, flags)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// nested checks a bucket in a bucket.
func (c *checker) nested(path [][]byte, value []byte, depth int) error {
	if len(value) < bucketHeader {
		return damaged("bucket %x is cut short", path[len(path)-1])
	}
	if err := c.value(path, nil, nil); err != nil {
		return err
	}
	if root := binary.NativeEndian.Uint64(value); root != 0 {
		return c.bucket(path, root, depth+1)
	}
	inline := value[bucketHeader:]
	if len(inline) < pageHeader || depth > mostDepth {
		return damaged("bucket %x is cut short", path[len(path)-1])
	}
	if id := binary.NativeEndian.Uint64(inline); id != 0 {
		return damaged("bucket %x does not begin as it should", path[len(path)-1])
	}
	return c.leaf(path, inline, fmt.Sprintf("bucket %x", path[len(path)-1]), depth+1, &order{})
}

// freelist checks which pages bbolt would write over.
func (c *checker) freelist() error {
	b, err := c.page(c.meta.freelist)
	if err != nil {
		return err
	}
	n := binary.NativeEndian
	if n.Uint16(b[8:]) != freelistPage {
		return damaged("page %d does not say which ones are free", c.meta.freelist)
	}
	ids, count := b[pageHeader:], uint64(n.Uint16(b[10:]))
	if count == manyFree {
		count, ids = n.Uint64(ids), ids[8:]
	}
	if count > uint64(len(ids)/8) {
		return damaged("page %d cannot name %d free ones", c.meta.freelist, count)
	}
	before := uint64(1)
	for i := range count {
		id := n.Uint64(ids[8*i:])
		if id <= before || id >= c.meta.pages || c.used[id] {
			return damaged("page %d is said to be free, and is not", id)
		}
		before = id
		c.used[id] = true // or soon
	}
	if lost := slices.Index(c.used, false); lost >= 0 {
		return damaged("page %d is neither used nor free", lost)
	}
	return nil
}

// piece is the part of a page that belongs to an element, whose position counts from there. The parts follow one another without a gap:
// end is where the last one ended. So one that is missing, since its page says that it has fewer, is noticed.
func piece(b []byte, element int, end *int64, pos uint32, sizes ...uint32) ([]byte, bool) {
	from := int64(element) + int64(pos)
	to := from
	for _, size := range sizes {
		to += int64(size)
	}
	if from != *end || to > int64(len(b)) {
		return nil, false
	}
	*end = to
	return b[from:to], true
}

// unborn reports whether a file was never finished: it is the beginning of what bbolt writes first, or empty pages.
func unborn(f io.ReaderAt, size int64) bool {
	if size >= 4*4096 {
		return false
	}
	b := make([]byte, size)
	if _, err := f.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
		return false
	}
	if len(bytes.Trim(b, "\x00")) == 0 {
		return true
	}
	n := binary.NativeEndian
	head := n.AppendUint32(n.AppendUint32(append(n.AppendUint16(make([]byte, 8), metaPage), make([]byte, 6)...), fileMagic), fileVersion)
	if len(b) < pageHeader+64 {
		return bytes.HasPrefix(b, head[:min(len(head), len(b))])
	}
	m, _, err := findMeta(f)
	return bytes.HasPrefix(b, head) && err == nil && m.txid < 2
}
