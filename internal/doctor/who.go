package doctor

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"time"

	"reverser/internal/auth"
)

// What whoAnswers gives a server, each time it speaks with it, and how much of it is read.
const (
	whoLimit  = 2 * time.Second
	mostSaid  = 512
	mostShown = 60
)

// whoAnswers finds out what kind of server is at an address where a reverser proxy is expected; "": it cannot tell.
func (w *World) whoAnswers(ctx context.Context, addr string) string {
	if who := w.whoInTLS(ctx, addr); who != "" {
		return who
	}
	if said := w.listen(ctx, addr, ""); len(said) > 0 {
		return nameOf(said)
	}
	if said := w.listen(ctx, addr, "GET / HTTP/1.0\r\n\r\n"); len(said) > 0 {
		return nameOf(said)
	}
	return ""
}

// whoInTLS is what a server shows of itself in a TLS handshake; "": it speaks no TLS.
func (w *World) whoInTLS(ctx context.Context, addr string) string {
	ctx, cancel := context.WithTimeout(ctx, whoLimit)
	defer cancel()
	conn, err := w.Dial(ctx, "tcp", addr)
	if err != nil {
		return ""
	}
	defer conn.Close()
	host, _, _ := net.SplitHostPort(addr)
	tc := tls.Client(conn, &tls.Config{
		InsecureSkipVerify: true, // nothing is believed: who it says to be is shown to a person
		MinVersion:         tls.VersionTLS10,
		NextProtos:         []string{auth.ALPN, "h2", "http/1.1"},
		ServerName:         host,
	})
	if err := tc.HandshakeContext(ctx); err != nil {
		return ""
	}
	cs := tc.ConnectionState()
	if cs.NegotiatedProtocol == auth.ALPN {
		return "another reverser proxy, with an identity of its own,"
	}
	who := "a server of " + tls.VersionName(cs.Version)
	if len(cs.PeerCertificates) > 0 {
		leaf := cs.PeerCertificates[0]
		of := leaf.Subject.CommonName
		if len(leaf.DNSNames) > 0 {
			of = leaf.DNSNames[0]
		}
		who += fmt.Sprintf(" with a certificate for %s, issued by %s,", shown(of), shown(leaf.Issuer.CommonName))
	}
	return who
}

// listen returns the first that a server says, unasked or to a question.
func (w *World) listen(ctx context.Context, addr, question string) []byte {
	ctx, cancel := context.WithTimeout(ctx, whoLimit)
	defer cancel()
	conn, err := w.Dial(ctx, "tcp", addr)
	if err != nil {
		return nil
	}
	defer conn.Close()
	if at, ok := ctx.Deadline(); ok {
		conn.SetDeadline(at)
	}
	if _, err := io.WriteString(conn, question); err != nil {
		return nil
	}
	said := make([]byte, mostSaid)
	n, _ := conn.Read(said)
	return said[:n]
}

// nameOf is what kind of server says so.
func nameOf(said []byte) string {
	line, _, _ := bytes.Cut(said, []byte("\n"))
	kinds := []struct{ prefix, name string }{
		{"SSH-", "an SSH server"}, {"HTTP/", "a web server or HTTP proxy"}, {"220 ", "a mail or FTP server"}, {"220-", "a mail or FTP server"},
		{"* OK", "a mail server"}, {"+OK", "a mail server"}, {"RFB ", "a VNC server"},
	}
	i := slices.IndexFunc(kinds, func(k struct{ prefix, name string }) bool { return bytes.HasPrefix(said, []byte(k.prefix)) })
	name := "something"
	if i >= 0 {
		name = kinds[i].name
	}
	return fmt.Sprintf("%s (it says %s)", name, shown(string(bytes.TrimSpace(line))))
}

// shown are the words of a stranger.
func shown(s string) string {
	if len(s) > mostShown {
		s = s[:mostShown]
	}
	return strconv.QuoteToASCII(s)
}
