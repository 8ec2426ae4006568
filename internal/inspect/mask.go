package inspect

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
)

// secretWords are words in names of header fields whose values are secrets, as in X-Auth-Token or X-Api-Key.
var secretWords = []string{"auth", "cookie", "cookie2", "pass", "pwd", "sid", "assertion", "csrf", "xsrf", "otp", "dpop"}

// secretParts are parts of such words, which are often written as one: AccessToken, X-AuthToken. WWW-Authenticate has none of them.
var secretParts = []string{
	"authorization", "authentication", "token", "secret", "password", "passwd", "passphrase", "credential", "session", "sessid", "signature", "jwt",
	"apikey", "accesskey", "authkey", "privatekey",
}

// secretKeys are words before "key" that make it one: a Sec-WebSocket-Key or an Idempotency-Key is none.
var secretKeys = []string{"api", "access", "secret", "private", "auth", "subscription", "master", "admin", "app", "account", "signing"}

// schemes of Authorization are shown: they say what went wrong more often than not.
var schemes = []string{"basic", "bearer", "digest", "negotiate", "ntlm", "token", "apikey", "hawk", "aws4-hmac-sha256", "dpop", "scram-sha-256"}

// webSocketProtocol is the only header in which a page can send a token with a WebSocket.
const webSocketProtocol = "Sec-WebSocket-Protocol"

// longestProtocol is how long the name of a protocol may be that is no token.
const longestProtocol = 24

// secret reports whether the values of a header field are secrets.
func secret(name string) bool {
	if strings.EqualFold(name, webSocketProtocol) {
		return true
	}
	words := strings.FieldsFunc(strings.ToLower(name), func(r rune) bool { return r == '-' || r == '_' || r == '.' })
	for i, w := range words {
		part := func(p string) bool { return strings.Contains(w, p) }
		if slices.Contains(secretWords, w) || slices.ContainsFunc(secretParts, part) || w == "key" && i > 0 && slices.Contains(secretKeys, words[i-1]) {
			return true
		}
	}
	return false
}

// mask makes the secrets in header fields unreadable. What helps to find a mistake stays: the scheme of Authorization, the names and
// attributes of cookies, and how long the secret is.
func mask(list []Field) {
	for i, f := range list {
		if secret(f.Name) {
			list[i].Value = masked(f.Name, f.Value)
		}
	}
}

func masked(name, value string) string {
	switch http.CanonicalHeaderKey(name) {
	case "Authorization", "Proxy-Authorization":
		scheme, rest, ok := strings.Cut(value, " ")
		if ok && slices.Contains(schemes, strings.ToLower(scheme)) {
			return scheme + " " + hidden(rest)
		}
	case "Cookie":
		parts := strings.Split(value, ";")
		for i, part := range parts {
			parts[i] = maskedCookie(part)
		}
		return strings.Join(parts, ";")
	case http.CanonicalHeaderKey(webSocketProtocol):
		parts := strings.Split(value, ",")
		for i, part := range parts {
			if part = strings.TrimSpace(part); len(part) > longestProtocol {
				parts[i] = hidden(part)
			}
		}
		return strings.Join(parts, ",")
	case "Set-Cookie":
		first, attributes, ok := strings.Cut(value, ";")
		if ok {
			return maskedCookie(first) + ";" + attributes
		}
		return maskedCookie(value)
	}
	return hidden(value)
}

// maskedCookie keeps the name of a cookie. Without one, all of it is the value.
func maskedCookie(s string) string {
	name, value, ok := strings.Cut(s, "=")
	if !ok {
		return hidden(s)
	}
	return name + "=" + hidden(value)
}

func hidden(s string) string {
	if s == "" {
		return ""
	}
	return fmt.Sprintf("[%d bytes]", len(s))
}
