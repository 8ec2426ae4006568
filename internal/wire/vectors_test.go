package wire

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"hash/crc32"
	"net/netip"
	"os"
	"reflect"
	"strings"
	"testing"
)

// The vectors are for programs in any language. Integers above 32 bits are decimal strings, since JSON readers round
// large numbers; byte strings are hex. A run with -update writes them anew; look at the difference before it lands.
var update = flag.Bool("update", false, "write spec/vectors from the code")

const vectorDir = "../../spec/vectors/"

type frameVector struct {
	Name   string         `json:"name"`
	Hex    string         `json:"hex"`
	Type   string         `json:"type"`
	Flags  uint8          `json:"flags"`
	Stream uint64         `json:"stream,string"`
	Offset uint64         `json:"offset,string"`
	Fields map[string]any `json:"fields"`
}

type badVector struct {
	Name   string `json:"name"`
	Hex    string `json:"hex"`
	Reason string `json:"reason,omitempty"`
}

// toleratedVector is a frame that holds something to skip or to ignore, and means what the frame named like does.
type toleratedVector struct {
	Name string `json:"name"`
	Hex  string `json:"hex"`
	Like string `json:"like"`
}

type messageVector struct {
	Name   string         `json:"name"`
	Hex    string         `json:"hex"`
	Fields map[string]any `json:"fields"`
}

type vectors struct {
	Frames      []frameVector     `json:"frames"`
	Hellos      []messageVector   `json:"hellos"`
	Welcomes    []messageVector   `json:"welcomes"`
	Tolerated   []toleratedVector `json:"tolerated"`
	Skipped     []badVector       `json:"skipped"`
	Unsupported []badVector       `json:"unsupported"`
	Malformed   struct {
		Frames   []badVector `json:"frames"`
		Hellos   []badVector `json:"hellos"`
		Welcomes []badVector `json:"welcomes"`
	} `json:"malformed"`
	Table struct {
		Hex     string           `json:"hex"`
		CRC     uint32           `json:"crc32c"`
		Entries []map[string]any `json:"entries"`
	} `json:"table"`
}

// longVector keeps frames of thousands of zeros out of the vectors.
const longVector = 2000

// number is how a 64-bit field stands in a vector.
func number(n uint64) string { b, _ := json.Marshal(n); return string(b) }

func fields(f Frame) map[string]any {
	switch f.Type {
	case TypeAttach:
		a, _ := ParseAttach(f)
		return map[string]any{
			"mode": a.Mode, "slot": a.Slot, "entry": a.Entry, "session": hex.EncodeToString(a.Session[:]), "want_instance": hex.EncodeToString(a.WantInstance[:]),
			"streams": a.Streams, "table_crc": a.TableCRC, "window": a.Window, "max_streams": a.MaxStreams, "detach": a.Detach, "mac": hex.EncodeToString(a.MAC[:]), "name": a.Name, "keepalive": a.Keepalive, "ask": a.Ask,
		}
	case TypeAttached:
		a, _ := ParseAttached(f)
		return map[string]any{
			"status": a.Status, "slot": a.Slot, "carriers": a.Carriers, "entry": a.Entry, "streams": a.Streams, "table_crc": a.TableCRC, "window": a.Window,
			"max_streams": a.MaxStreams, "transfer": a.Transfer, "detach": a.Detach, "text": a.Text, "come_back": a.ComeBack, "answers": a.Answers,
		}
	case TypeST:
		return map[string]any{"entries": entries(f.Payload)}
	case TypeOpen:
		o, _ := ParseOpen(f)
		rest := o.Rest()
		m := map[string]any{
			"kind": o.Kind, "service": o.Service, "client": address(o.Client), "local": address(o.Local), "host": rest.Host, "entrance": o.Entrance,
			"key_name": rest.KeyName, "trace": "", "name": rest.Name, "hops": nil,
		}
		if rest.Trace != [16]byte{} {
			m["trace"] = hex.EncodeToString(rest.Trace[:])
		}
		if rest.HasHops {
			m["hops"] = rest.Hops
		}
		return m
	case TypeData:
		return map[string]any{"data": hex.EncodeToString(f.Payload)}
	case TypeAck:
		return map[string]any{"credit": number(AckCredit(f))}
	case TypeEnd:
		e, _ := ParseEnd(f)
		return map[string]any{"kind": e.Kind, "code": e.Code, "crc32c": e.CRC}
	case TypeGoAway:
		g, _ := ParseGoAway(f)
		return map[string]any{"drain_ms": g.DrainMillis, "text": g.Text, "come_back": g.ComeBack}
	case TypeErr:
		e := ParseErr(f)
		return map[string]any{"code": e.Code, "text": e.Text}
	case TypeClaim:
		id, c, _ := ParseClaim(f)
		return map[string]any{
			"id": id, "public": c.Public, "target": c.Target, "weight": c.Weight, "health": c.Health, "drained": c.Drained,
			"limits": hex.EncodeToString(c.Limits), "group": c.Group, "options": string(c.Options), "unknown": c.Unknown,
		}
	case TypeClaimed:
		id, c, _ := ParseClaimed(f)
		return map[string]any{"id": id, "status": c.Status, "nonce": hex.EncodeToString(c.Nonce[:]), "public": c.Public, "text": c.Text, "drained": c.Drained}
	case TypeUnclaim:
		id, _ := ParseUnclaim(f)
		return map[string]any{"id": id}
	case TypeUnclaimed:
		id, marks, _ := ParseUnclaimed(f)
		list := []any{}
		for _, m := range marks {
			list = append(list, map[string]any{"slot": m.Slot, "stream": number(m.Stream)})
		}
		return map[string]any{"id": id, "marks": list}
	case TypeDatagram:
		d, _ := ParseDatagram(f)
		return map[string]any{"number": number(d.Number), "fragment": d.Fragment, "fragments": d.Fragments, "data": hex.EncodeToString(d.Data)}
	}
	return map[string]any{}
}

func address(a netip.AddrPort) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

func entries(table []byte) []map[string]any {
	t, _ := ParseTable(table, StreamStateLen)
	list := make([]map[string]any, 0, len(t))
	for _, s := range t {
		list = append(list, map[string]any{"stream": number(s.Stream), "rcv_nxt": number(s.RcvNxt), "credit": number(s.Credit), "crc32c": s.CRC})
	}
	return list
}

func helloFields(h Hello) map[string]any {
	return map[string]any{
		"version_min": h.VersionMin, "version_max": h.VersionMax, "role": h.Role, "auth": h.Auth,
		"key_id": hex.EncodeToString(h.KeyID[:]), "instance": hex.EncodeToString(h.Instance[:]), "offered": number(uint64(h.Offered)), "needed": number(uint64(h.Needed)), "mac": hex.EncodeToString(h.MAC[:]),
	}
}

func welcomeFields(w Welcome) map[string]any {
	return map[string]any{"verdict": w.Verdict, "version": w.Version, "features": number(uint64(w.Features)), "instance": hex.EncodeToString(w.Instance[:]), "mac": hex.EncodeToString(w.MAC[:])}
}

func makeVectors(t *testing.T) *vectors {
	v := new(vectors)
	for _, c := range frames() {
		if len(c.bytes) > longVector {
			continue
		}
		f, _, err := Parse(c.bytes)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		v.Frames = append(v.Frames, frameVector{c.name, hex.EncodeToString(c.bytes), f.Type.String(), f.Flags, f.Stream, f.Offset, fields(f)})
	}
	for _, h := range hellos() {
		v.Hellos = append(v.Hellos, messageVector{h.name, hex.EncodeToString(h.Append(nil)), helloFields(h.Hello)})
	}
	for _, w := range welcomes() {
		v.Welcomes = append(v.Welcomes, messageVector{w.name, hex.EncodeToString(w.Append(nil)), welcomeFields(w.Welcome)})
	}
	for _, c := range tolerated() {
		v.Tolerated = append(v.Tolerated, toleratedVector{c.name, hex.EncodeToString(c.bytes), c.like})
	}
	for _, c := range skipped() {
		if len(c.bytes) > longVector {
			continue
		}
		v.Skipped = append(v.Skipped, badVector{c.name, hex.EncodeToString(c.bytes), ""})
	}
	for _, c := range append(unsupported(), named{"claim-with-an-unknown-critical-field", withField("claim", 200, "x")}) {
		v.Unsupported = append(v.Unsupported, badVector{c.name, hex.EncodeToString(c.bytes), ""})
	}
	bads := func(list []bad) (out []badVector) {
		for _, c := range list {
			if len(c.bytes) > longVector {
				continue
			}
			out = append(out, badVector{c.name, hex.EncodeToString(c.bytes), c.reason})
		}
		return out
	}
	h, w := malformedMessages()
	v.Malformed.Frames, v.Malformed.Hellos, v.Malformed.Welcomes = bads(malformedFrames()), bads(h), bads(w)
	table := exampleTable()
	v.Table.Hex, v.Table.CRC, v.Table.Entries = hex.EncodeToString(table), crc32.Checksum(table, crc32.MakeTable(crc32.Castagnoli)), entries(table)
	return v
}

func marshal(t *testing.T, v any) []byte {
	t.Helper()
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "\t")
	if err := e.Encode(v); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func readVectors(t *testing.T, name string, v any) {
	t.Helper()
	b, err := os.ReadFile(vectorDir + name)
	if err != nil {
		t.Fatal(err)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

// TestVectorsAreUpToDate fails when code and vectors part. A change on the wire is meant: write them anew with
// go test ./internal/wire -run Vectors -update.
func TestVectorsAreUpToDate(t *testing.T) {
	want := marshal(t, makeVectors(t))
	if *update {
		if err := os.WriteFile(vectorDir+"wire.json", want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(vectorDir + "wire.json")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(bytes.ReplaceAll(got, []byte("\r\n"), []byte("\n")), want) {
		t.Error("spec/vectors/wire.json is not what the code makes")
	}
}

// TestVectors reads the vectors as another program would, without what this package knows of their origin.
func TestVectors(t *testing.T) {
	var v vectors
	readVectors(t, "wire.json", &v)
	unhex := func(s string) []byte {
		b, err := hex.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	same := func(name string, got, want map[string]any) {
		t.Helper()
		var g map[string]any
		if err := json.Unmarshal(marshal(t, got), &g); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(g, want) {
			t.Errorf("%s: fields = %v; want %v", name, g, want)
		}
	}
	for _, c := range v.Frames {
		b := unhex(c.Hex)
		f, n, err := Parse(b)
		if err != nil || n != len(b) || f.Type.String() != c.Type || f.Flags != c.Flags || f.Stream != c.Stream || f.Offset != c.Offset {
			t.Errorf("%s: Parse = %+v, %d, %v", c.Name, f, n, err)
			continue
		}
		same(c.Name, fields(f), c.Fields)
		if again, err := reencode(f); err != nil || !bytes.Equal(again, b) {
			t.Errorf("%s: encoded again = %x, %v", c.Name, again, err)
		}
	}
	for _, c := range v.Malformed.Frames {
		f, _, err := Parse(unhex(c.Hex))
		if err == nil {
			_, err = reencode(f)
		}
		var fe *FormatError
		if !errors.As(err, &fe) {
			t.Errorf("%s (%s): error = %v", c.Name, c.Reason, err)
		}
	}
	like := map[string][]byte{}
	for _, c := range v.Frames {
		like[c.Name] = unhex(c.Hex)
	}
	for _, c := range v.Tolerated {
		f, n, err := Parse(unhex(c.Hex))
		if err != nil || n != len(c.Hex)/2 {
			t.Errorf("%s: Parse = %d, %v", c.Name, n, err)
			continue
		}
		if again, err := reencode(f); err != nil || like[c.Like] == nil || !bytes.Equal(again, like[c.Like]) {
			t.Errorf("%s: encoded again = %x, %v; want %s", c.Name, again, err, c.Like)
		}
	}
	for _, c := range v.Skipped {
		if f, n, err := Parse(unhex(c.Hex)); err != nil || n != len(c.Hex)/2 || f.Type < TypeSkip {
			t.Errorf("%s: Parse = %s, %d, %v", c.Name, f.Type, n, err)
		}
	}
	for _, c := range v.Unsupported {
		f, _, err := Parse(unhex(c.Hex))
		if err != nil {
			t.Errorf("%s: Parse = %v", c.Name, err)
			continue
		}
		if f.Type == TypeClaim {
			if _, claim, err := ParseClaim(f); err != nil || claim.Unknown != 200 {
				t.Errorf("%s: ParseClaim = %+v, %v; want the unknown field", c.Name, claim, err)
			}
			continue
		}
		_, err = reencode(f)
		var u *UnsupportedError
		if !errors.As(err, &u) || u.Type != f.Type {
			t.Errorf("%s: error = %v; want an UnsupportedError", c.Name, err)
		}
	}
	for _, c := range v.Hellos {
		h, err := ParseHello(unhex(c.Hex))
		if err != nil {
			t.Errorf("%s: %v", c.Name, err)
		}
		same(c.Name, helloFields(h), c.Fields)
	}
	for _, c := range v.Welcomes {
		w, err := ParseWelcome(unhex(c.Hex))
		if err != nil {
			t.Errorf("%s: %v", c.Name, err)
		}
		same(c.Name, welcomeFields(w), c.Fields)
	}
	for _, c := range v.Malformed.Hellos {
		if _, err := ParseHello(unhex(c.Hex)); err == nil {
			t.Errorf("%s is taken", c.Name)
		}
	}
	for _, c := range v.Malformed.Welcomes {
		if _, err := ParseWelcome(unhex(c.Hex)); err == nil {
			t.Errorf("%s is taken", c.Name)
		}
	}
	if crc := crc32.Checksum(unhex(v.Table.Hex), crc32.MakeTable(crc32.Castagnoli)); crc != v.Table.CRC {
		t.Errorf("CRC of the table = %d; want %d", crc, v.Table.CRC)
	}
	names := map[string]bool{}
	for _, c := range v.Malformed.Frames {
		if names[c.Name] || strings.ToLower(c.Name) != c.Name {
			t.Errorf("name %q is used twice or not in lower case", c.Name)
		}
		names[c.Name] = true
	}
}
