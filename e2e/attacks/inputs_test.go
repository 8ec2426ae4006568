package attacks

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// inputs are what strangers and peers may say and ought not to, and what somebody takes more of than their share, each with the tests
// that play it: a package and the name of a test, or of a case as it stands there in quotes.
var inputs = []struct {
	name   string
	input  string
	answer string
	tests  []string
}{
	// Connections to the link port.
	{"A1", "silence, before or behind a ClientHello",
		"closed 10 s after it came, sooner when others need the place; bridges attach meanwhile", []string{"internal/auth TestSilenceAtTheProxy", "internal/proxy TestStrangersHoldNothingUp", "e2e/faults N1"}},
	{"A2", "a thousand of them at once",
		"8,192 places at the most, silent ones go first, of the network that has most; a quarter of them is for known addresses only", []string{"internal/proxy TestCrowdOfStrangers", "internal/record TestStrangersCostLittle", "e2e/faults N1"}},
	{"A3", "HTTP, SSH, noise, an older TLS, another ALPN",
		"closed, with nothing but a TLS alert; one line a minute for all of them, with their number", []string{"internal/proxy TestNoiseOnTheLinkPort", "e2e TestNoiseOnTheLinkPort", "internal/auth TestOtherTLSClients"}},
	{"A3 long", "a ClientHello or record that is long, or grows without end",
		"closed when more than 8 KiB of a handshake are announced or have come, and counted as noise is", []string{"internal/record TestStrangersAreBounded", "internal/auth TestStrangersAtTheProxy"}},
	{"A4", "the right key with a wrong proof, or an unknown key",
		"the same Welcome, to the byte but for random ones, and the same work", []string{"internal/auth TestRefusalsLookAlike"}},
	{"A5", "a proxy that cannot prove the key",
		"the bridge sends its Hello and nothing more, dials nothing, and says whom it found", []string{"internal/auth TestFakeProxy"}},
	{"A6", "somebody in between, and a Hello once more",
		"refused: each proof is bound to its TLS connection, and the two sides' differ", []string{"internal/auth TestManInTheMiddle", "internal/auth TestReplayedHello"}},
	{"A7", "the session of another key, or a wrong proof of it",
		"GONE, as for a session that never was; the other session notices nothing", []string{"internal/link A7 the session of another key", "internal/link A7 a wrong proof"}},
	{"A8", "generations that do not follow",
		"STALE; the session goes on", []string{"internal/link A8 the last generation again", "internal/link A8 generation 2^64-1", "internal/link A8 a jump of 2^32+1"}},
	{"A9", "tables that are too long, out of order, cut short or damaged",
		"an error of the connection, before memory is taken for what was announced", []string{"internal/link A9 2^32-1 streams", "internal/link A9 the same id twice",
			"internal/link A9 ids out of order", "internal/link A9 a table that is cut short", "internal/link A9 a wrong checksum"}},

	// Connections to the port that names share (--https).
	{"names: silence", "silence, half a ClientHello, a byte now and then",
		"closed 10 s after it came, sooner when others need the place", []string{"internal/entrance TestReadHelloDeadline", "internal/proxy TestSilentAtTheNames"}},
	{"names: no hello", "HTTP, noise, records and messages that are too long or never end",
		"reset; one line a minute for all of them, with their number; a hello has 16 KiB", []string{"internal/entrance TestReadHelloRefuses", "internal/proxy TestNamesRefused"}},
	{"names: long hellos", "thousands of ClientHellos of more than 4 KiB that do not end, or whose TLS handshake does not",
		"all of them share 16 MiB, an address half of what others leave; who finds no room is reset, and counted as noise is; others are served", []string{"internal/entrance TestLongHellos", "internal/share TestPool", "internal/proxy TestHandshakesAreBounded"}},
	{"names: unknown", "a name that no service has, or none",
		"the TLS alert unrecognized_name, and closed", []string{"internal/proxy TestNamesRefused", "internal/entrance TestNames"}},
	{"HTTP: silence", "no request",
		"closed 10 s after it came, sooner when others need the place", []string{"internal/proxy TestSilentAtTheWeb"}},
	{"HTTP: nothing that is served", "requests that only pages of the proxy answer",
		"the connection goes when others need the place", []string{"internal/proxy TestWebStrangers"}},
	{"HTTP: who leaves", "requests while the bridge is away, by clients that leave at once",
		"their places are free at once", []string{"internal/proxy TestWebLeftWhileAway"}},
	{"HTTP: two readings", "lengths and codings that contradict each other, two hosts, paths that lead to another service when they are decoded, folded lines, bare CR, huge heads",
		"400 or 431, and closed, or one reading only (docs/NAMES.md has the table); nothing reaches a service that the request does not name", []string{"internal/web TestAmbiguous", "internal/web TestFraming", "internal/web TestReadings", "internal/web TestTwoNames"}},
	{"HTTP: long heads", "thousands of heads of many short lines, or of long ones, that do not end",
		"431 behind 200 lines or 64 KiB; those above 8 KiB of clients whom no service has let in share 16 MiB, an address half of what others leave: 503 when there is no room, and others are served", []string{"internal/web TestManyLines", "internal/web TestLongHeads", "internal/web TestStrayHeads", "internal/web TestHugeHead"}},
	{"HTTP: closed windows", "clients of HTTP/2 with a hundred requests each, of large heads or small, who let no answer be written; let in by a service before, or not",
		"64 KiB for each stranger; for heads of others 128 KiB and a share of 16 MiB; the rest waits unread; a page that cannot be written in 10 s is reset", []string{"internal/web TestClosedWindows", "internal/web TestStreamsHold", "internal/web TestHeadCost", "internal/web TestHeadsInside", "internal/web TestHeldBack", "internal/web TestFirstFlight"}},
	{"HTTP: frames", "clients of HTTP/2 that ask for nothing: frames of every kind without end, of 1 MiB, or that do not end; requests that are taken back, or that the proxy has to reset",
		"16 KiB for a frame, 10 s for one that is no body; 1,000 of them between two requests of a stranger, 16 resets; processors go round", []string{"internal/web TestFloodsOfFrames", "internal/web TestFramesInside", "internal/web TestLongFrames", "internal/web TestTakenBack", "internal/web TestSlowHead"}},
	{"HTTP: rapid reset", "20,000 requests on one connection of HTTP/2, each reset at once",
		"100 are under way at once; others are served", []string{"internal/web TestRapidReset"}},
	{"HTTP: who the client is", "X-Forwarded-For, Forwarded and their like from a client, spelled as CGI reads them too",
		"removed, unless the client is one of trusted_proxies", []string{"internal/web TestForwarded"}},
	{"HTTP: passwords", "one after the other or at once, from one address or from many",
		"401, and 429 with a wait that doubles up to a minute for the address at that service; 4 of an address wait to be looked at, others get 429 at once; 4,096 addresses are remembered", []string{"internal/web TestBasicAuth", "internal/web TestGuessesAtOnce"}},
	{"HTTP: a crowd of passwords", "wrong ones for one key's services, whose checks take seconds, from any number of addresses",
		"keys take turns with checks, so that those of another key wait for one check of it at most; behind 100 that wait for a key, 503 with Retry-After at once", []string{"internal/web TestLoginsInRotation", "internal/web TestFullLineOfLogins"}},
	{"HTTP: heads of answers", "a target that sends long heads, never ends them, or sends informational ones (103) without end",
		"502 with the limit in the log: 64 KiB and 200 lines of a head, 16 informational ones; long heads hold, for each key, no more than is left for all others, and are read in turns; status says when that is short, and for which key", []string{"internal/proxy TestCrowdedHeads", "internal/web TestAnswerHeads", "internal/web TestHeadsOfHTTP2", "internal/web TestLongTrailer", "internal/web TestHeadRoom", "internal/web TestLongHeadsInTurn"}},
	{"HTTP: options", "hosts, headers, files and hashes that are none, cost the proxy too much, or are too many for a claim; a header that is set twice, or set and removed",
		"refused by `check`, at the start and at a reload, with file, line and what to do", []string{"internal/config TestHTTPOptions"}},
	{"names: handshakes at the bridge", "where the bridge ends TLS: silence, another version or protocol, and crowds of them",
		"a TLS alert, or a reset after 10 s; 512 at once, of which the oldest of the client with most goes first; the target is not dialled, and half of the processors are left to others",
		[]string{"internal/relay TestTLSHandshake", "internal/bridge TestTLSTarget", "internal/bridge TestTLSSilent", "internal/bridge TestTLSFlood"}},
	{"names: handshakes at the proxy", "where the proxy ends TLS: crowds of them, and clients that say hello and nothing more", "half of the processors compute them; a client that is waited for keeps nobody out",
		[]string{"internal/proxy TestSecureTurns"}},
	{"names: cut short", "where the bridge ends TLS: an end without close_notify, records that are none",
		"the target gets a reset, never a clean end", []string{"internal/relay TestTLSTruncated"}},
	{"names: certificates", "files that are no certificate, do not fit each other or the name, or that others can read or write",
		"refused at the start and at a reload, with the line and what to do; the old ones go on", []string{"internal/config TestCertificateRefused", "internal/config TestCertificateOfOthers", "e2e TestTLSEndsAtTheBridge"}},

	// Certificates that come by themselves, and the port that ends TLS with them.
	{"certificates: authority", "an ACME directory that is no URL, or not https://",
		"refused at the start, with what to give", []string{"internal/config TestACME"}},
	{"certificates: authority", "one that is away, is no ACME directory, or has a certificate that is not trusted",
		"all else is served; log and status say what was tried and what to do, and it is asked again", []string{"internal/certs TestNoAuthority", "e2e TestHTTPSWithoutAuthority"}},
	{"certificates: authority", "a refusal, a name that leads elsewhere",
		"the authority's words, cut at 600 bytes and escaped, the address that the name leads to, and what to do", []string{"internal/certs TestRefusal"}},
	{"certificates: files", "a key of another certificate, a certificate for no name, two for one name",
		"refused at the start or reload with file and line; the old ones stay", []string{"internal/config TestGiven", "e2e TestHTTPSFromFiles"}},
	{"certificates: wildcards", "a claim of https/*.example.com without a certificate from files",
		"DENIED, with the reason", []string{"internal/registry TestSecure", "e2e TestHTTPS"}},
	{"certificates: a greedy key", "a key that claims thousands of names",
		"20 certificates at once, then one every two minutes; three of the eight places for asking", []string{"internal/certs TestTurns"}},
	{"certificates: the disk", "files that are cut short, or do not belong together after a crash", "another certificate is asked for, and the log says why; files that cannot be read now are left alone",
		[]string{"internal/certs TestBroken", "internal/certs TestUnreadable"}},
	{"certificates: strangers", "a client that names a host nobody claims, or plays the authority",
		"unrecognized_name; nothing is asked of the authority, and no proof is given", []string{"internal/certs TestProofs", "e2e TestHTTPS"}},
	{"https: another host", "a request for a host that the connection's certificate is not for",
		"421", []string{"e2e TestHTTPS"}},

	// Tables and frames of a session.
	{"balancers: no header", "from an address of proxy_protocol_from: silence, HTTP, a header that is malformed, too long, of another version or with a wrong checksum",
		"reset, at once or after 10 s; one line a minute for all of them, with their number; a header has 16 KiB, and no byte behind it is read", []string{"internal/proxyproto TestParseRefuses",
			"internal/entrance TestReadHeaderRefuses", "internal/proxy TestNoHeader", "e2e TestBalancerWithoutHeader"}},
	{"balancers: false header", "a header from any other address",
		"not read: its bytes are the user's, and the address is that of the connection", []string{"internal/proxy TestNoHeader", "e2e TestBalancersInFront"}},
	{"R1", "a table that takes back what was acknowledged",
		"the session ends", []string{"internal/link R1 below what was acked"}},
	{"R2", "a table with more than was sent",
		"the session ends", []string{"internal/link R2 "}},
	{"R3", "a table with less credit than before",
		"ignored: credit is not taken back", []string{"internal/link R3 "}},
	{"R4", "a table with the wrong checksum of a stream",
		"that stream is reset at both ends and counted, the others go on; the log says it ten times a second at the most", []string{"internal/link R4 a wrong checksum"}},
	{"R5", "a table with streams that were never opened",
		"the session ends", []string{"internal/link R5 "}},
	{"R6", "ACKs of what was never sent, that go back, or of unknown streams",
		"never sent or opened: the session ends; going back, or of a forgotten stream: ignored and counted, 5,000 in a row at the most", []string{"internal/link R6 ACK of what was never sent", "internal/link R6 ACK that goes back",
			"internal/link R6 ACK of a stream that was never opened"}},
	{"P1", "DATA that is empty, too long, behind a gap, beyond the credit or the last offset",
		"an error with a code for each; the session or the connection ends", []string{"internal/link P1 DATA without bytes", "internal/link P1 DATA of 16,385 bytes",
			"internal/link P1 DATA behind a gap", "internal/link P1 DATA beyond the credit", "internal/link P1 DATA around 2^64"}},
	{"P2", "DATA that was there before",
		"trimmed and counted", []string{"internal/link P2 DATA that was there before", "internal/link P2 DATA of which a part was there before"}},
	{"P3", "ENDs that contradict what came",
		"the session ends; the same END again is ignored", []string{"internal/link P3 DATA after END", "internal/link P3 END below what was received", "internal/link P3 RST where FIN was"}},
	{"P4", "OPENs of ids that are taken, forgotten or another's, and of no service",
		"ignored, or the stream is reset with its reason, or the session ends", []string{"internal/link P4 OPEN of a live stream", "internal/link P4 OPEN of a stream that was forgotten",
			"internal/link P4 OPEN of an id of the receiver", "internal/bridge TestAnswersThatAreWrong", "internal/link OPEN on the control connection"}},
	{"P5", "floods of OPENs",
		"reset with the code of the limit (16,384 streams in a slot, 1,024 dials); memory stays flat", []string{"internal/link TestOPENsBeyondTheLimit", "internal/link TestOPENAndFORGETFlood"}},
	{"P6", "floods of PING and PONG",
		"one PONG waits at the most; the connection ends after 5,000 that nobody asked for", []string{"internal/link TestPINGsFromOneWhoNeverReads", "internal/link P6 PONGs that nobody asked for"}},
	{"P7", "frames that are unknown or in the wrong place",
		"an error, or skipped where the type says that it may be", []string{"internal/link P7 unknown type", "internal/link P7 PING before ATTACH", "internal/link P7 a second Hello",
			"internal/link P7 ATTACH on an attached connection"}},
	{"P7", "GOAWAY in every session, at once",
		"the bridge begins the next session after a pause that grows to a second", []string{"internal/link TestProxyAlwaysStopping"}},
	{"P8", "TLS that is allowed and meant badly",
		"taken as TLS has it; a record that is none ends the connection, and the session goes on", []string{"internal/record TestKeyUpdate", "internal/record TestBadRecords", "internal/link TestCutInsideAFrame"}},
	{"A20", "claims of what a key may not have",
		"DENIED or RETRYING for that claim alone, with the reason", []string{"internal/proxy TestClaimsDenied", "internal/proxy TestHeldByAnotherKey", "internal/proxy TestClaimsThatAreWrong", "internal/grammar TestParsePublicErrors"}},

	{"ways out: odd answers", "a server on the way out that refuses, is silent, answers with a page, another protocol, or without end",
		"an error that says what it answered, in few words and escaped, and what to do; 10 s and 16 KB at the most; a wrong password is said once in a minute or so", []string{"internal/via TestConnect",
			"internal/bridge TestWayOutWantsAnotherPassword"}},
	{"names: a link's ALPN", "noise, or another's key, behind a ClientHello of the link at the port of names",
		"as at the link port: the same gate, limits and line of the log; no service is reached", []string{"internal/proxy TestStrangersAtTheLinkByName", "internal/proxy TestLinkAtTheNames"}},

	// What is configured.
	{"C1", "keys and tokens that are no keys",
		"refused at the start, with file, line and remedy; no secret is printed", []string{"internal/grammar TestEverySlipIsRefused", "internal/config TestReadTokenFile", "internal/state TestDamagedKeysShowNoSecret"}},
	{"C2 to C4", "settings that are unknown or out of range",
		"refused, with the line and the name of the setting", []string{"internal/config TestTOMLErrors", "internal/config TestBadSettings", "internal/config TestNumbers"}},
	{"C5", "files that others can read or write",
		"refused, with what to do about it", []string{"internal/config TestLooseFiles", "internal/config TestWritableByOthers", "internal/config TestOwnedByOthers",
			"internal/state TestDirectoryThatOthersCanWrite", "internal/state TestFileThatOthersCanWrite", "internal/state TestHardLinkIsRefused"}},
	{"admin socket", "somebody else on the machine",
		"only the process's own user and administrators can open it (on Windows a named pipe)", []string{"internal/state TestAdminSocketIsPrivate", "internal/state TestAdminPipeIsPrivate"}},
	{"D1", "requests at the --admin address without the token, also for the page, with one in the query, and with wrong ones, a hundred at once",
		"401, and the form for the token to browsers; of wrong ones 5, then one a second, and 429 to the others. The right token is taken all the while; the log has a line a minute", []string{"internal/admin D1 no token", "internal/admin D1 no token, for the page, by a program",
			"internal/admin TestPageIsNegotiated", "internal/admin D1 a token in the query",
			"internal/admin TestWrongTokens", "internal/admin TestSessions", "internal/admin TestSessionEndsStreams"}},
	{"D2", "a page elsewhere in the operator's browser: a name that leads to the address (DNS rebinding), another origin, site or port, forms",
		"421 for another Host, 403 for all else; an order without the token itself is application/json or has no body", []string{"internal/admin D2 another host", "internal/admin D2 a page of another origin", "internal/admin D2 a browser says that another site asks",
			"internal/admin D2 an order as text", "internal/admin D2 a login as text", "internal/admin TestContentType", "internal/admin TestAdminTLS"}},
	{"D3", "another method: a GET of what changes something, OPTIONS of a page in a browser",
		"405 with the methods that there are; nothing is changed, and no header lets pages in", []string{"internal/admin TestStrangeRequests", "internal/admin D3 an order by GET", "internal/admin D3 a preflight", "internal/admin D3 a preflight of our own"}},
	{"D4", "odd paths, no HTTP, large headers and bodies, slow ones, too many at once, thousands of requests that are reset at once",
		"400, 404, 413 or 431; a header has 20 KiB and 10 s, at the --admin address 5 s; a request 1 MiB and 10 s, at the --admin address 64 KiB; 8 connections at once, at the --admin address 64, of which those that have not shown the token go for newer ones and the others leave 8 places to them, and 100 new ones a second", []string{"internal/admin TestStrangeRequests", "internal/admin TestStrangeBytes",
			"internal/admin TestSlowHeader", "internal/admin TestCrowd", "internal/admin D4 a header of 1 MiB", "internal/admin D4 a body of 1 MiB", "internal/admin D4 //", "internal/admin D4 escaped dots",
			"internal/admin TestSlowAtTCP", "internal/admin TestRoom", "internal/admin TestRoomForOthers", "internal/admin TestPace", "internal/admin TestAdminTLS"}},
	{"API", "whatever a program makes up for each operation of openapi.yaml (schemathesis), at a live proxy and a live bridge",
		"what is described there, what does not fit is refused, and never 5xx", []string{"e2e/openapi TestSchemathesis", "e2e/openapi TestAnswers", "internal/admin TestDescription"}},
	{"D5", "escape sequences, line breaks and HTML in names",
		"escaped, in one line, 4 KiB at the most", []string{"internal/admin TestHostileNames", "cmd/reverser TestHostileBridge", "cmd/reverser TestHostileProxy", "cmd/reverser TestHostileRequest", "internal/escape TestText", "e2e/faults N7"}},
	{"orders: end", "an order to end connections that chooses none, is cut short or says a word that is not known",
		"400, and nobody is reset", []string{"internal/admin TestEndRefused", "internal/traffic TestEndOne"}},
	{"orders: expiry", "times that are over, are none or never come; a clock that jumps a year ahead or back",
		"refused with what to write; the clock alone decides, once a second, and the log says what it changed", []string{"internal/grammar TestParseExpiry", "internal/proxy TestClockJumps"}},
	{"orders: drain", "names that are no service, keys that are none, an undo of what was not ordered",
		"400, 404 or 409 with what is drained, and nothing changes", []string{"internal/admin TestDrainRefused", "internal/proxy TestDrainOrders"}},
	{"orders: rotation", "the token that was replaced, a token that was never used, a live bridge with the old one, a disk that takes nothing",
		"refused; the bridge with the newer token takes the place; what was used counts and is stored later", []string{"internal/proxy TestRotate", "internal/proxy TestNewTokenTakesOver",
			"internal/proxy TestUnusedTokenIsReplaced", "internal/state TestRotateKey", "internal/auth TestOtherSecrets", "e2e TestRotateUnderTransfer"}},
	{"orders: an expired key", "its bridge, and strangers who ask for it",
		"refused, and told why only when it has proven the key; another key notices nothing", []string{"internal/proxy TestKeyExpires", "internal/proxy TestExpiredAtTheStart"}},

	// More than somebody's share.
	{"place before authentication", "floods of strangers",
		"20 handshakes a second and network, 40 at once; half of the turns; known addresses have places of their own and go first", []string{"internal/proxy TestRoomSharesAmongBlocks", "internal/proxy TestRoomRate", "internal/proxy TestRoomKnownAddresses",
			"internal/proxy TestCrowdBehindOneAddress", "internal/proxy TestCrowdIsTakenAsItComes", "e2e/faults N1"}},
	{"processors at --http and --https", "strangers who ask for what nobody serves, or begin TLS and leave, thousands of times a second, from one network or from thousands",
		"20 a second and network, 40 at once, and 100 a second of all networks that had one within a minute; of the pages on one connection every eighth counts; the others are reset before anything is read, and counted; who reached a service is known and not counted", []string{"internal/proxy TestWastedRate", "internal/proxy TestWastedInAll", "internal/proxy TestWastedSettles", "internal/proxy TestWastedByUsers", "internal/proxy TestKnownUsersOutliveTheProcess",
			"internal/proxy TestNamesGate", "internal/proxy TestUnservedRequests", "internal/proxy TestPagesOfAConnection", "internal/proxy TestStrangersAtHTTP", "internal/proxy TestStrangersAtHTTPS", "internal/proxy TestStrangersBehindABalancer", "e2e TestFloodForNobody"}},
	{"authenticated, not attached", "tables that never end, and silence behind the proof",
		"3 connections for each slot and key, 10 s in all; a table is read only of a session that is the key's", []string{"internal/link TestUnfinishedTables", "internal/link TestRefusalBeforeATable", "e2e/faults N2"}},
	{"connections of a key", "a valid key that makes connections and sessions one after the other",
		"200 at once and 50 a second; more wait half a second, and beyond that are refused; no session ends by it, and no other key waits", []string{"internal/link TestConnectionsOfAKey", "internal/link TestTooManyConnectionsOfAKey"}},
	{"control frames", "floods of UNCLAIM, ROUND and GOAWAY, in one session of a key or in several",
		"each in a turn, and at the pace that all sessions of the key share, 2 in a millisecond for each processor; their answers take turns too", []string{"internal/link TestKeyHasOnePace", "internal/link TestClaimsGiveWay", "internal/proxy TestUnclaimedInTurn"}},
	{"questions", "floods of ASK with as many names as there is room for",
		"64 names in a turn, at the pace of the key; 50 connections a second", []string{"internal/link TestAskGivesWay", "internal/link TestConnectionsOfAKey"}},
	{"names without a port", "a key that claims http/ names by the ten thousand, which take no descriptor",
		"half of what others leave of the places for which the proxy has memory, or --max-services; the others wait, are told why, and are served when there is room",
		[]string{"internal/registry TestNamesShareMemory", "internal/registry TestSimulation"}},
	{"listeners", "a key that claims everything",
		"half of the descriptors that others leave, or --max-services; the others wait and are told why; its claims are taken at a pace",
		[]string{"internal/registry TestFloods", "internal/registry TestManyClaimsOfOneSession", "internal/link TestClaimsAtAPace", "e2e/faults N3"}},
	{"listeners", "claims that cannot be bound, such as thousands of addresses of the one port that a key may have",
		"RETRYING, with the reason; 256 of a key are tried again every 2 s, those first that have waited longest; other keys wait for none of them",
		[]string{"internal/registry TestRetryInTurns", "internal/registry TestTurns", "internal/registry TestManyClaimsOfOneSession"}},
	{"listeners", "sessions of one key, each with all the claims that it may have",
		"16,384 claims in all: what the newest session claims beyond takes the place of an older one's; a bridge that takes over is refused nothing",
		[]string{"internal/registry TestClaimsOfAKey"}},
	{"window memory", "a key that acknowledges nothing",
		"half of what others leave; what a peer holds that acknowledges nothing is given to others after 30 s", []string{"internal/link TestAGreedyKey", "internal/link TestSharesGiveWay", "internal/link TestWithdraw", "e2e/faults N4"}},
	{"users", "a crowd of idle users",
		"half of what is free, by key and then by address; keys share the 16 places of those who wait; an idle user of a large key makes way for one of a small key", []string{"internal/traffic TestKeyShare", "internal/traffic TestClientShare", "internal/traffic TestWaitShare", "internal/traffic TestReplacedLeaveRoom", "e2e/faults N5"}},
	{"log lines", "a key that makes the log say something thousands of times",
		"ten a second of a kind and key, then their number; while the log is slow, half of the waiting places that others leave", []string{"internal/lines TestFlood", "internal/lines TestFloodAtASlowLog", "internal/lines TestManyParties", "internal/archtest TestLogsAreBounded", "internal/traffic TestRefusalsOfManyServices",
			"internal/traffic TestAcceptFailsNowAndThen", "internal/bridge TestReportsAreBounded", "e2e/faults N3"}},
	{"operator", "a proxy that is out of descriptors or disk",
		"16 descriptors are kept for orders: status, key and reload are answered, and status and log say what ran out and who has most of it; a key that is removed stays removed though the disk is full, and what an edit takes away stays away",
		[]string{"e2e TestDescriptorsRunOut", "e2e TestRemoveOnAFullDisk", "e2e TestEditOnAFullDisk", "internal/traffic TestStrain"}},
	{"inspection", "what clients and targets say, for whoever looks at it: control characters, bodies and frames without end, frames that are none, messages that unpack to very much; a thousand services of it",
		"escaped where it is shown, on lines of its own; kept up to a bound for each exchange, service and process, the service with most gives way; what cannot be unpacked stays packed",
		[]string{"cmd/reverser TestPrintExchange", "internal/inspect TestMemory", "internal/inspect TestBomb", "internal/inspect TestManyFrames", "internal/inspect TestPieces", "e2e TestInspect"}},
	{"access log", "a full disk, a file that takes nothing, one that cannot be opened",
		"lines are lost and counted, none is there in part, and nobody waits; a reload that names such a file is refused and the old one stays in use; with the name as before, all else of the reload is in force",
		[]string{"e2e TestAccessLogOnAFullDisk", "internal/accesslog TestFullDisk", "internal/accesslog TestStuck", "internal/accesslog TestOpen", "cmd/reverser TestReloadOpensTheAccessLog"}},
	{"files", "a file of the settings or of the state directory that becomes a pipe which nobody writes",
		"refused at a reload or an order, with what to do; nobody waits for it, and the file that is put back is read", []string{"internal/config TestPipeAtReload", "internal/state TestPipeInTheDirectory"}},
	{"usage", "a file that is cut off or changed at any byte, noise, a disk that is full, a clock that is years off, a key whose services have new names all the time, another process that holds the file",
		"a damaged file is put aside with a word and a new one begins; what cannot be stored waits in memory; nothing is lost or counted twice; names beyond 1,024 of a key are added up",
		[]string{"internal/usage TestCut", "internal/usage TestFlip", "internal/usage TestGarbage", "internal/usage TestCutUnderRead", "internal/usage TestFullDisk", "internal/usage TestClock",
			"internal/usage TestNamesAreBounded", "internal/usage TestLocked", "internal/usage TestSideBySide", "cmd/reverser TestScripts"}},
	{"events of one bridge", "a bridge with thousands of services that comes and goes",
		"costs what it touches: nothing that happens to one walks over all, or over all services of one", []string{"internal/registry TestCost", "internal/registry TestLinkUpWakesCallers", "internal/proxy TestFlappingBridge"}},
	{"addresses", "a proxy that names hosts to a bridge",
		"never dialled: a port is proven at the link's own address and the configured port, once a second at most",
		[]string{"internal/bridge TestFalseProxyNamesAddresses", "internal/bridge TestProbeAddr", "internal/bridge TestProbesRest", "e2e/faults N6"}},

	{"notices", "a webhook that answers slowly, wrongly or never, or leads elsewhere; everything flaps while it does",
		"tried again for an hour, 16 messages wait at the most, what is dropped is logged; its secret is in no log, and goes nowhere else", []string{"internal/notify TestSendErrors", "internal/notify TestRun", "internal/notify TestWaitingIsBounded", "internal/notify TestFormats"}},

	// Services of the system, packages, exports.
	{"a service twice", "an installation where there is one already, or where a package has a unit of that name",
		"refused, with --replace as the remedy, and for a package with `systemctl edit`; what runs is not touched",
		[]string{"internal/service TestSystemdTwice", "internal/service TestSystemdForeignUnit", "internal/service TestWindowsTwice", "internal/service TestLaunchd", "e2e TestSystemd"}},
	{"a service without rights", "an installation, start, stop or removal by a user who may not, or where no service manager runs",
		"refused before anything is written, with what to do", []string{"internal/service no rights", "internal/service no systemd", "internal/service TestLaunchdGoesOn", "e2e TestSystemd"}},
	{"a service with hard paths", "spaces, quotes, backslashes, %, $ and Chinese in paths and options",
		"the service gets them as they are; what a unit cannot have (a line break, quotes in the path of the program) is refused with another place", []string{"internal/service TestQuoteWord", "internal/service TestSystemdVerify",
			"internal/service a quote in the program", "internal/service a line break", "internal/service TestLaunchdList", "internal/service TestSystemSCM", "e2e TestSystemd"}},
	{"a service that cannot reach its files", "a program, configuration, socket or state directory where the user of the service has no access",
		"refused with the path and a place that works; --dry-run warns of it", []string{"internal/service a program at home", "internal/service a state directory elsewhere", "internal/service a socket in /tmp",
			"internal/service a closed configuration", "cmd/reverser TestScripts"}},
	{"a service that does not come up", "a token that is mistyped, of another proxy or of a removed key; a port that is taken; a configuration with a mistake; a process that hangs",
		"mistyped: refused before anything is written; else the error says how the process ended and what it said, and what ran before runs again, or nothing is left", []string{"e2e TestSystemd", "internal/service it does not come up",
			"internal/service it hangs", "cmd/reverser TestStillLinked", "packaging TestPackages"}},
	{"a package over another", "another version while services run, an older one, half a file, a broken or unfinished installation, a systemd that does not answer",
		"who is connected finishes, then services run the new program; half a file changes nothing; everything else is mended by the installation", []string{"packaging TestPackages"}},
	{"a damaged export", "cut off or changed at any byte, a wrong passphrase, a newer format, files that are none of a state directory, a disk that is full, a machine that fails in the middle",
		"exit code 2 and what is wrong; the directory is as it was, also with --replace; after a crash the next start finds the old state or the new one, whole", []string{"internal/export TestDamage", "internal/export TestWrongPassphrase", "internal/export TestStrangeFiles",
			"internal/export TestStrangeDocuments", "cmd/reverser TestImportOfADamagedExport", "internal/state TestReplaceCutShort", "internal/state TestReplaceFails"}},
}

var update = flag.Bool("update", false, "write the table of docs/BAD-INPUT.md anew")

// TestInputsDocument: the document has them as they stand here.
func TestInputsDocument(t *testing.T) {
	const file, begin, end = "../../docs/BAD-INPUT.md", "<!-- table: begin -->\n", "<!-- table: end -->"
	var table strings.Builder
	table.WriteString("\n| | input | answer | played by |\n|---|---|---|---|\n")
	for _, in := range inputs {
		fmt.Fprintf(&table, "| %s | %s | %s | `%s` |\n", in.name, in.input, in.answer, strings.Join(trimmed(in.tests), "`, `"))
	}
	table.WriteString("\n")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(text), begin)
	have, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no marks for the table", file)
	}
	switch {
	case have == table.String():
	case !*update:
		t.Errorf("%s has another table: go test ./e2e/attacks -run TestInputsDocument -update", file)
	default:
		if err := os.WriteFile(file, []byte(before+begin+table.String()+end+after), 0o644); err != nil {
			t.Error(err)
		}
	}
}

// trimmed are the names without what only ends a search.
func trimmed(tests []string) (names []string) {
	for _, test := range tests {
		names = append(names, strings.TrimSpace(test))
	}
	return names
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
