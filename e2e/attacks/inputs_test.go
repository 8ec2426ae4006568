package attacks

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// inputs are what strangers and peers may say and ought not to, and what somebody takes more of than their share, each with the tests
// that play it: a package and the name of a test, or of a case as it stands there in quotes.
var inputs = []struct {
	name  string
	input string
	tests []string
}{
	// Connections to the link port.
	{"A1", "silence, before or behind a ClientHello", []string{"internal/auth TestSilenceAtTheProxy", "internal/proxy TestStrangersHoldNothingUp", "e2e/faults N1"}},
	{"A2", "a thousand of them at once", []string{"internal/proxy TestCrowdOfStrangers", "internal/record TestStrangersCostLittle", "e2e/faults N1"}},
	{"A3", "HTTP, SSH, noise, an older TLS, another ALPN", []string{"internal/proxy TestNoiseOnTheLinkPort", "e2e TestNoiseOnTheLinkPort", "internal/auth TestOtherTLSClients"}},
	{"A4", "the right key with a wrong proof, or an unknown key", []string{"internal/auth TestRefusalsLookAlike"}},
	{"A5", "a proxy that cannot prove the key", []string{"internal/auth TestFakeProxy"}},
	{"A6", "somebody in between, and a Hello once more", []string{"internal/auth TestManInTheMiddle", "internal/auth TestReplayedHello"}},
	{"A7", "the session of another key, or a wrong proof of it", []string{"internal/link A7 the session of another key", "internal/link A7 a wrong proof"}},
	{"A8", "generations that do not follow", []string{"internal/link A8 the last generation again", "internal/link A8 generation 2^64-1", "internal/link A8 a jump of 2^32+1"}},
	{"A9", "tables that are too long, out of order, cut short or damaged", []string{"internal/link A9 2^32-1 streams", "internal/link A9 the same id twice",
		"internal/link A9 ids out of order", "internal/link A9 a table that is cut short", "internal/link A9 a wrong checksum"}},

	// Tables and frames of a session.
	{"R1", "a table that takes back what was acknowledged", []string{"internal/link R1 below what was acked"}},
	{"R2", "a table with more than was sent", []string{"internal/link R2 "}},
	{"R3", "a table with less credit than before", []string{"internal/link R3 "}},
	{"R4", "a table with the wrong checksum of a stream", []string{"internal/link R4 a wrong checksum"}},
	{"R5", "a table with streams that were never opened", []string{"internal/link R5 "}},
	{"R6", "ACKs of what was never sent, that go back, or of unknown streams", []string{"internal/link R6 ACK of what was never sent", "internal/link R6 ACK that goes back",
		"internal/link R6 ACK of a stream that was never opened"}},
	{"P1", "DATA that is empty, too long, behind a gap, beyond the credit or the last offset", []string{"internal/link P1 DATA without bytes", "internal/link P1 DATA of 16,385 bytes",
		"internal/link P1 DATA behind a gap", "internal/link P1 DATA beyond the credit", "internal/link P1 DATA around 2^64"}},
	{"P2", "DATA that was there before", []string{"internal/link P2 DATA that was there before", "internal/link P2 DATA of which a part was there before"}},
	{"P3", "ENDs that contradict what came", []string{"internal/link P3 DATA after END", "internal/link P3 END below what was received", "internal/link P3 RST where FIN was"}},
	{"P4", "OPENs of ids that are taken, forgotten or another's, and of no service", []string{"internal/link P4 OPEN of a live stream", "internal/link P4 OPEN of a stream that was forgotten",
		"internal/link P4 OPEN of an id of the receiver", "internal/bridge TestAnswersThatAreWrong", "internal/link OPEN on the control connection"}},
	{"P5", "floods of OPENs", []string{"internal/link TestOPENsBeyondTheLimit", "internal/link TestOPENAndFORGETFlood"}},
	{"P6", "floods of PING and PONG", []string{"internal/link TestPINGsFromOneWhoNeverReads", "internal/link P6 PONGs that nobody asked for"}},
	{"P7", "frames that are unknown or in the wrong place", []string{"internal/link P7 unknown type", "internal/link P7 PING before ATTACH", "internal/link P7 a second Hello",
		"internal/link P7 ATTACH on an attached connection"}},
	{"P8", "TLS that is allowed and meant badly", []string{"internal/record TestKeyUpdate", "internal/record TestBadRecords", "internal/link TestCutInsideAFrame"}},
	{"A20", "claims of what a key may not have", []string{"internal/proxy TestClaimsDenied", "internal/proxy TestHeldByAnotherKey", "internal/proxy TestClaimsThatAreWrong", "internal/grammar TestParsePublicErrors"}},

	// What is configured.
	{"C1", "keys and tokens that are no keys", []string{"internal/grammar TestEverySlipIsRefused", "internal/config TestReadTokenFile", "internal/state TestDamagedKeysShowNoSecret"}},
	{"C2 to C4", "settings that are unknown or out of range", []string{"internal/config TestTOMLErrors", "internal/config TestBadSettings", "internal/config TestNumbers"}},
	{"C5", "files that others can read or write", []string{"internal/config TestLooseFiles", "internal/config TestWritableByOthers", "internal/config TestOwnedByOthers",
		"internal/state TestDirectoryThatOthersCanWrite", "internal/state TestFileThatOthersCanWrite", "internal/state TestHardLinkIsRefused"}},
	{"D3, D4", "requests at the admin socket that make no sense, or too many", []string{"internal/admin TestStrangeRequests", "internal/admin TestCrowd"}},
	{"D5", "escape sequences", []string{"cmd/reverser TestHostileBridge", "cmd/reverser TestHostileProxy", "cmd/reverser TestHostileRequest", "internal/escape TestText", "e2e/faults N7"}},

	// More than somebody's share.
	{"place before authentication", "floods of strangers", []string{"internal/proxy TestRoomSharesAmongBlocks", "internal/proxy TestRoomRate", "internal/proxy TestRoomKnownAddresses",
		"internal/proxy TestCrowdBehindOneAddress", "e2e/faults N1"}},
	{"authenticated, not attached", "tables that never end, and silence behind the proof", []string{"internal/link TestUnfinishedTables", "internal/link TestRefusalBeforeATable", "e2e/faults N2"}},
	{"listeners", "a key that claims everything", []string{"internal/registry TestFloods", "internal/registry TestManyClaimsOfOneSession", "e2e/faults N3"}},
	{"window memory", "a key that acknowledges nothing", []string{"internal/link TestAGreedyKey", "internal/link TestSharesGiveWay", "internal/link TestWithdraw", "e2e/faults N4"}},
	{"users", "a crowd of idle users", []string{"internal/traffic TestKeyShare", "internal/traffic TestClientShare", "e2e/faults N5"}},
	{"log lines", "a key that makes the log say something thousands of times", []string{"internal/lines TestFlood", "internal/lines TestManyParties", "e2e/faults N3"}},
	{"addresses", "a proxy that names hosts to a bridge", []string{"internal/bridge TestFalseProxyNamesAddresses", "internal/bridge TestProbeAddr", "e2e/faults N6"}},
}

// TestInputs: each of them is played by a test that is there.
func TestInputs(t *testing.T) {
	sources := make(map[string]string) // the tests of a package
	for _, in := range inputs {
		if len(in.tests) == 0 {
			t.Errorf("%s (%s): no test", in.name, in.input)
		}
		for _, test := range in.tests {
			pkg, name, _ := strings.Cut(test, " ")
			if _, ok := sources[pkg]; !ok {
				sources[pkg] = source(t, filepath.Join("..", "..", filepath.FromSlash(pkg)))
			}
			want := `"` + name // a case; its name may go on
			if strings.HasPrefix(name, "Test") {
				want = "\nfunc " + name + "("
			}
			if !strings.Contains(sources[pkg], want) {
				t.Errorf("%s (%s): package %s has no test %q", in.name, in.input, pkg, name)
			}
		}
	}
}

// source is the text of a package's tests, and of its scenarios where it has some.
func source(t *testing.T, dir string) string {
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for _, file := range append(files, filepath.Join(dir, "scenario.go")) {
		text, err := os.ReadFile(file)
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		all.WriteString("\n" + string(text))
	}
	return all.String()
}
