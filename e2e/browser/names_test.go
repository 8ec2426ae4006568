package browser

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"reverser/e2e/faultnet"
	"reverser/e2e/process"
	"reverser/internal/acmetest"
)

// A site is one web server behind a proxy: as http://plain.example.com, as https://app.example.com, whose TLS the proxy ends, and as
// https://bridge.example.com, whose TLS the bridge ends.
type site struct {
	proxy                *process.Process
	link                 *faultnet.Relay
	plain, https, bridge string // origins
	certs                []*x509.Certificate
}

func startSite(t *testing.T, h http.Handler) *site {
	t.Helper()
	target := httptest.NewUnstartedServer(h)
	target.Config.Protocols = new(http.Protocols)
	target.Config.Protocols.SetHTTP1(true)
	target.Config.Protocols.SetUnencryptedHTTP2(true) // for the bridge, which says h2 to browsers
	target.Start()
	t.Cleanup(target.Close)
	dir, plain, https := t.TempDir(), freePort(t), freePort(t)
	chain, key := acmetest.Certificate(t, "*.example.com")
	at := strings.TrimPrefix(target.URL, "http://127.0.0.1:")
	conf := "[[certificate]]\nchain = \"chain.pem\"\nkey = \"key.pem\"\n"
	const ended = "tls/bridge.example.com"
	expose := fmt.Sprintf("[[expose]]\npublic = %q\ntarget = %s\ncertificate = \"own.pem\"\ncertificate_key = \"ownkey.pem\"\nalpn = [\"h2\", \"http/1.1\"]\n", ended, at)
	// A certificate for its name alone: what browsers send for other names of a certificate would come to the bridge's target as well.
	own, ownKey := acmetest.Certificate(t, "bridge.example.com")
	for name, b := range map[string][]byte{"chain.pem": chain, "key.pem": key, "own.pem": own, "ownkey.pem": ownKey, "proxy.toml": []byte(conf), "bridge.toml": []byte(expose)} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s := &site{plain: fmt.Sprintf("http://plain.example.com:%d", plain), https: fmt.Sprintf("https://app.example.com:%d", https), bridge: fmt.Sprintf("https://bridge.example.com:%d", https)}
	for _, chain := range [][]byte{chain, own} {
		block, _ := pem.Decode(chain)
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		s.certs = append(s.certs, cert)
	}
	var link int
	var state string
	s.proxy, state, link = startProxy(t, "--http", loopback(plain), "--https", loopback(https), "--config", filepath.Join(dir, "proxy.toml"))
	s.link = startRelay(t, link)
	b := startBridge(t, state, s.link.Addr(), "--config", filepath.Join(dir, "bridge.toml"), "http/plain.example.com="+at, "https/app.example.com="+at)
	said(t, b, "service up", "service", ended)
	return s
}

// origins are the two names of a site, as the names of subtests.
func (s *site) origins() map[string]string {
	return map[string]string{"http": s.plain, "https": s.https}
}

// browse starts a browser that trusts the site's certificate.
func (s *site) browse(t *testing.T) *Browser {
	t.Helper()
	return Start(t, Config{Trust: s.certs})
}

// blank is a page without anything, of which a browser wants nothing more.
const blank = `<!doctype html><html lang="en"><title>blank</title><link rel="icon" href="data:,">`

// TestPages: a page with a style, a module, a picture and data that it fetches, forms and cookies, over http/, https/ and tls/ that the
// bridge ends; and a page that the proxy itself makes. A server that shows another certificate is not believed.
func TestPages(t *testing.T) {
	t.Parallel()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		http.SetCookie(w, &http.Cookie{Name: "seen", Value: "yes", HttpOnly: true, SameSite: http.SameSiteStrictMode, Secure: r.Header.Get("X-Forwarded-Proto") != "http"})
		w.Header().Set("Content-Security-Policy", "default-src 'self'; img-src 'self' data:")
		fmt.Fprint(w, `<!doctype html><html lang="en"><title>shop</title><link rel="icon" href="data:,"><link rel="stylesheet" href="/style.css">
<h1>loading</h1><img src="/picture.svg" alt="a picture"><form method="post" action="/order"><input name="what" value="tea &amp; 茶"><button>order</button></form>
<script type="module" src="/shop.js"></script>`)
	})
	serve := func(path, kind, text string) {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", kind)
			fmt.Fprint(w, text)
		})
	}
	serve("/style.css", "text/css", "h1 { color: rgb(1, 2, 3) }")
	serve("/picture.svg", "image/svg+xml", `<svg xmlns="http://www.w3.org/2000/svg" width="40" height="30"><circle cx="15" cy="15" r="10"/></svg>`)
	serve("/shop.js", "text/javascript", `const answer = await (await fetch("/data?x=%2F&y=a+b")).json();
document.querySelector("h1").textContent = answer.text;`)
	mux.HandleFunc("GET /data", func(w http.ResponseWriter, r *http.Request) {
		cookie := "no cookie"
		if c, err := r.Cookie("seen"); err == nil {
			cookie = c.Value
		}
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"text":"%s, %s, %s, 你好"}`, r.URL.RawQuery, cookie, r.Header.Get("X-Forwarded-Proto"))
	})
	mux.HandleFunc("POST /order", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, blank+"<h1>%s ordered %s</h1>", r.Header.Get("Origin"), r.FormValue("what"))
	})
	type look struct {
		Color              string
		Picture            int
		Secure             bool
		Via, Script, Fetch string
	}
	s := startSite(t, mux)
	b := s.browse(t)
	// In this order: a browser that has a connection to app.example.com, whose certificate is for *.example.com, tries it for bridge.example.com.
	for _, c := range []struct{ scheme, origin string }{{"http", s.plain}, {"https", s.https}, {"", s.bridge}} {
		scheme, origin := c.scheme, c.origin
		t.Run(strings.NewReplacer("://", " ", ".example.com", "").Replace(origin), func(t *testing.T) {
			p := b.Open(t, origin+"/")
			want := "x=%2F&y=a+b, yes, " + scheme + ", 你好" // the bridge adds nothing to a request
			p.Await(fmt.Sprintf("document.querySelector('h1').textContent == %q", want))
			got := Eval[look](p, `const via = name => performance.getEntriesByName(new URL(name, location).href)[0]?.nextHopProtocol ?? "not loaded";
				return {Color: getComputedStyle(document.querySelector("h1")).color, Picture: document.querySelector("img").naturalWidth, Secure: isSecureContext,
					Via: performance.getEntriesByType("navigation")[0].nextHopProtocol, Script: via("/shop.js"), Fetch: via("/data?x=%2F&y=a+b")}`)
			version := "h2"
			if scheme == "http" {
				version = "http/1.1"
			}
			if got.Color != "rgb(1, 2, 3)" || got.Picture != 40 || got.Secure != (scheme != "http") || got.Via != version || got.Script != version || got.Fetch != version {
				t.Errorf("the page is %+v; want the color of its style, the picture, and all by %s", got, version)
			}
			p.Picture("page-" + map[string]string{"http": "http", "https": "https", "": "tls"}[scheme])
			p.Script(`document.querySelector("button").click()`)
			p.Await(fmt.Sprintf("document.querySelector('h1')?.textContent == %q", origin+" ordered tea & 茶"))
			p.Quiet()

			if scheme == "http" { // a page of the proxy's own, which the browser complains of as of every error
				p = b.Open(t, strings.Replace(origin, "plain.", "nobody.", 1)+"/")
				p.Await("document.body.innerText.includes('404')")
				p.Picture("page-404")
			}
		})
	}

	p := Start(t, Config{}).Tab(t)
	if err := p.Go(s.https + "/"); err == nil || !strings.Contains(err.Error(), "ERR_CERT_AUTHORITY_INVALID") {
		t.Errorf("a browser that does not know the certificate: %v", err)
	}
}
