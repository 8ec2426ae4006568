package auth

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"flag"
	"hash/crc32"
	"os"
	"testing"

	"reverser/internal/wire"
)

var update = flag.Bool("update", false, "write spec/vectors from the code")

const vectorFile = "../../spec/vectors/handshake.json"

// handshakeVectors are the two proofs and what is derived, for a fixed key and a fixed exporter. Byte strings are hex,
// integers above 32 bits decimal strings.
type handshakeVectors struct {
	ALPN          string `json:"alpn"`
	ExporterLabel string `json:"exporter_label"`
	SPKI          string `json:"spki"`
	Pin           string `json:"pin"`

	Secret         string `json:"secret"`
	Exporter       string `json:"exporter"`
	KeyID          string `json:"key_id"`
	BridgeInstance string `json:"bridge_instance"`
	ProxyInstance  string `json:"proxy_instance"`
	AuthKey        string `json:"auth_key"`
	Hello          string `json:"hello"`
	Welcome        string `json:"welcome"`
	Lacking        string `json:"welcome_features_missing"`

	Session       string          `json:"session"`
	SessionSecret string          `json:"session_secret"`
	Resumes       []resumeVectors `json:"resumes"`
}

type resumeVectors struct {
	Name     string `json:"name"`
	Exporter string `json:"exporter"` // of the new connection
	Slot     uint8  `json:"slot"`
	Gen      uint64 `json:"generation,string"`
	Table    string `json:"table"`
	TableCRC uint32 `json:"table_crc"`
	MAC      string `json:"mac"`
	Attach   string `json:"attach"` // the ATTACH frame and the ST frames of the table
}

func makeVectors() handshakeVectors {
	from := func(start byte, n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = start + byte(i)
		}
		return b
	}
	spki := []byte("any bytes do: the SubjectPublicKeyInfo of the proxy's certificate in DER")
	pin := Pin(spki)
	key, exporter := [32]byte(from(0x40, 32)), from(0xa0, 32)
	h := wire.Hello{VersionMin: 1, VersionMax: 1, Role: wire.RoleBridge, Auth: wire.AuthPSK, KeyID: [16]byte(from(0x10, 16)), Instance: [16]byte(from(0x20, 16)),
		Offered: wire.FeatureDatagrams | wire.FeatureDialOpens, Needed: wire.FeatureDialOpens}
	msg := h.Append(nil)
	copy(msg[wire.HelloMACed:], macOf(authKey(key), dialWord, exporter, msg[:wire.HelloMACed]))
	w := wire.Welcome{Verdict: wire.VerdictOK, Version: wire.Version, Instance: [16]byte(from(0x30, 16)), Features: wire.FeatureDialOpens}
	reply := w.Append(nil)
	copy(reply[wire.WelcomeMACed:], macOf(authKey(key), acceptWord, exporter, msg, reply[:wire.WelcomeMACed]))
	without := w
	without.Verdict, without.Features = wire.VerdictFeatures, wire.FeatureDatagrams
	lacking := without.Append(nil)
	copy(lacking[wire.WelcomeMACed:], macOf(authKey(key), acceptWord, exporter, msg, lacking[:wire.WelcomeMACed]))

	sid := [16]byte(from(0xd0, 16))
	session := SessionSecret(&Conn{Secret: key, Exporter: exporter}, sid)
	v := handshakeVectors{
		ALPN: ALPN, ExporterLabel: exporterLabel, SPKI: hex.EncodeToString(spki), Pin: hex.EncodeToString(pin[:]),
		Secret: hex.EncodeToString(key[:]), Exporter: hex.EncodeToString(exporter), KeyID: hex.EncodeToString(h.KeyID[:]),
		BridgeInstance: hex.EncodeToString(h.Instance[:]), ProxyInstance: hex.EncodeToString(w.Instance[:]),
		AuthKey: hex.EncodeToString(authKey(key)), Hello: hex.EncodeToString(msg), Welcome: hex.EncodeToString(reply), Lacking: hex.EncodeToString(lacking),
		Session: hex.EncodeToString(sid[:]), SessionSecret: hex.EncodeToString(session[:]),
	}
	table := wire.AppendStreamState(nil, wire.StreamState{Stream: 0x102, RcvNxt: 5, Credit: 16389, CRC: 0x9a71bb4c})
	table = wire.AppendStreamState(table, wire.StreamState{Stream: 0x302, RcvNxt: 1<<32 + 1, Credit: 1<<32 + 16384, CRC: 0xdeadbeef})
	for _, r := range []struct {
		name  string
		mode  wire.Mode
		slot  uint8
		gen   uint64
		table []byte
	}{
		{"join", wire.ModeJoin, 1, 1, nil},
		{"resume-without-streams", wire.ModeResume, 0, 2, nil},
		{"resume", wire.ModeResume, 2, 1<<40 + 7, table},
	} {
		second := from(0x60, 32)
		mac := ResumeMAC(session, second, sid, r.slot, r.gen, sha256.Sum256(r.table))
		crc := crc32.Checksum(r.table, crc32.MakeTable(crc32.Castagnoli))
		attach := wire.AppendAttach(nil, r.gen, wire.Attach{
			Mode: r.mode, Slot: r.slot, Session: sid, WantInstance: w.Instance, Streams: uint32(len(r.table) / wire.StreamStateLen),
			TableCRC: crc, Window: 16384, MaxStreams: 16384, MAC: mac, Name: "nas",
		})
		v.Resumes = append(v.Resumes, resumeVectors{
			r.name, hex.EncodeToString(second), r.slot, r.gen, hex.EncodeToString(r.table), crc, hex.EncodeToString(mac[:]),
			hex.EncodeToString(wire.AppendTable(attach, r.table)),
		})
	}
	return v
}

// TestVectorsAreUpToDate fails when code and vectors part. Write them anew with
// go test ./internal/auth -run Vectors -update, and look at the difference before it lands.
func TestVectorsAreUpToDate(t *testing.T) {
	want, err := json.MarshalIndent(makeVectors(), "", "\t")
	if err != nil {
		t.Fatal(err)
	}
	want = append(want, '\n')
	if *update {
		if err := os.WriteFile(vectorFile, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(vectorFile)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(bytes.ReplaceAll(got, []byte("\r\n"), []byte("\n")), want) {
		t.Error("spec/vectors/handshake.json is not what the code makes")
	}
}

// TestVectors computes the vectors from spec/PROTOCOL.md alone, with nothing of this package.
func TestVectors(t *testing.T) {
	b, err := os.ReadFile(vectorFile)
	if err != nil {
		t.Fatal(err)
	}
	var v handshakeVectors
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatal(err)
	}
	unhex := func(s string) []byte {
		b, err := hex.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	same := func(name string, got, want []byte) {
		t.Helper()
		if !bytes.Equal(got, want) {
			t.Errorf("%s = %x; want %x", name, got, want)
		}
	}
	pin := sha256.Sum256(unhex(v.SPKI))
	same("pin", unhex(v.Pin), pin[:])
	secret, exporter, hello, welcome := [32]byte(unhex(v.Secret)), unhex(v.Exporter), unhex(v.Hello), unhex(v.Welcome)
	same("auth key", unhex(v.AuthKey), hmacOf(hmacOf(make([]byte, 32), secret[:]), []byte("reverser auth v1"), []byte{1}))
	same("proof of the bridge", hello[96:], mac(secret, "dial", exporter, hello[:96]))
	same("proof of the proxy", welcome[32:], mac(secret, "accept", exporter, hello, welcome[:32]))
	lacking := unhex(v.Lacking)
	same("proof of the proxy that lacks a feature", lacking[32:], mac(secret, "accept", exporter, hello, lacking[:32]))
	same("verdict", lacking[4:5], []byte{4})
	same("features offered", hello[40:48], []byte{0, 0, 0, 0, 0, 0, 0, 3})
	same("features needed", hello[48:56], []byte{0, 0, 0, 0, 0, 0, 0, 2})
	same("features chosen", welcome[8:16], []byte{0, 0, 0, 0, 0, 0, 0, 2})
	same("features of the proxy that lacks one", lacking[8:16], []byte{0, 0, 0, 0, 0, 0, 0, 1})
	same("key id", hello[8:24], unhex(v.KeyID))
	same("instance of the bridge", hello[24:40], unhex(v.BridgeInstance))
	same("instance of the proxy", welcome[16:32], unhex(v.ProxyInstance))
	sid := unhex(v.Session)
	session := hmacOf(hmacOf(exporter, secret[:]), []byte("reverser session v1 "), sid, []byte{1})
	same("session secret", unhex(v.SessionSecret), session)
	for _, r := range v.Resumes {
		table := unhex(r.Table)
		sum := sha256.Sum256(table)
		gen := []byte{byte(r.Gen >> 56), byte(r.Gen >> 48), byte(r.Gen >> 40), byte(r.Gen >> 32), byte(r.Gen >> 24), byte(r.Gen >> 16), byte(r.Gen >> 8), byte(r.Gen)}
		want := hmacOf(session, []byte("resume"), unhex(r.Exporter), sid, []byte{r.Slot}, gen, sum[:])
		same(r.Name+": proof", unhex(r.MAC), want)
		f, _, err := wire.Parse(unhex(r.Attach))
		if err != nil {
			t.Fatal(err)
		}
		a, err := wire.ParseAttach(f)
		if err != nil || f.Offset != r.Gen || a.Slot != r.Slot || a.TableCRC != r.TableCRC || !bytes.Equal(a.MAC[:], want) {
			t.Errorf("%s: ATTACH = %+v, %v", r.Name, a, err)
		}
	}
}

// The proof of a resume depends on everything that it binds.
func TestResumeMACBindsEverything(t *testing.T) {
	base := func(change int) [32]byte {
		session, exporter, sid, slot, gen, table := [32]byte{1}, []byte{2: 0, 31: 1}, [16]byte{3}, uint8(1), uint64(5), []byte("table")
		switch change {
		case 1:
			session[31]++
		case 2:
			exporter[0]++
		case 3:
			sid[15]++
		case 4:
			slot++
		case 5:
			gen++
		case 6:
			gen += 1 << 56
		case 7:
			table[4]++
		case 8:
			table = table[:4]
		}
		return ResumeMAC(session, exporter, sid, slot, gen, sha256.Sum256(table))
	}
	seen := map[[32]byte]int{}
	for i := range 9 {
		m := base(i)
		if j, ok := seen[m]; ok {
			t.Errorf("changes %d and %d give the same proof", i, j)
		}
		seen[m] = i
	}
	a := SessionSecret(&Conn{Secret: [32]byte{1}, Exporter: make([]byte, 32)}, [16]byte{})
	for name, b := range map[string][32]byte{
		"secret":   SessionSecret(&Conn{Secret: [32]byte{2}, Exporter: make([]byte, 32)}, [16]byte{}),
		"exporter": SessionSecret(&Conn{Secret: [32]byte{1}, Exporter: append(make([]byte, 31), 1)}, [16]byte{}),
		"session":  SessionSecret(&Conn{Secret: [32]byte{1}, Exporter: make([]byte, 32)}, [16]byte{1}),
	} {
		if a == b {
			t.Errorf("another %s gives the same session secret", name)
		}
	}
}
