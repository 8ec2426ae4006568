package grammar

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"
)

// Options say how a service is served: what an [[expose]] of a file has besides public and target. Each field is named there as in its
// tag. The zero value has the default of each.
type Options struct {
	Certificate    string   // path of a certificate, or AutoCertificate, with which the bridge ends the TLS of the service's users; "": the target does
	CertificateKey string   // path of its key
	ALPN           []string // that the target speaks behind such TLS, the best first; nil: HTTP/1.1; empty: what the client likes

	Proxy ProxyOptions // what the proxy has to know

	ProxyProtocol int  // version of the header that tells the target whose connection one is, 1 or 2; 0: none
	Transparent   bool // the target is dialled from the user's address
}

// AutoCertificate stands for a certificate that comes by itself.
const AutoCertificate = "auto"

// Equal reports whether o and p say the same.
func (o Options) Equal(p Options) bool { return reflect.DeepEqual(o, p) }

// ProxyOptions are the options that the proxy acts on. A bridge says them with its claim, in the form of Encode.
type ProxyOptions struct {
	// OneClient is for http/ and https/ services: a connection to the target is used for the requests of one client alone, since the
	// target takes it for that client's.
	OneClient bool `json:"one_client,omitempty"`

	// Of http/ and https/.
	H2C            bool              `json:"h2c,omitempty"`             // the target speaks HTTP/2 without TLS
	HostHeader     string            `json:"host_header,omitempty"`     // the Host that the target gets; "": the client's
	SetHeader      map[string]string `json:"set_header,omitempty"`      // of requests
	RemoveHeader   []string          `json:"remove_header,omitempty"`   // of requests
	TrustedProxies []netip.Prefix    `json:"trusted_proxies,omitempty"` // whose word of who the client is counts
	BasicAuth      []string          `json:"basic_auth,omitempty"`      // NAME:HASH; see ParseUser
	AnswerTime     Duration          `json:"answer_time,omitempty"`     // for the head of an answer; 0: the default
	Inspect        bool              `json:"inspect,omitempty"`         // the last exchanges are kept
	HSTS           Duration          `json:"hsts,omitempty"`            // for how long browsers are to come by TLS only; 0: that is not said
}

// Duration is a time.Duration, as text in JSON.
type Duration time.Duration

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(b []byte) error {
	t, err := time.ParseDuration(string(b))
	if err == nil && t < 0 {
		err = errors.New("a duration is not negative")
	}
	*d = Duration(t)
	return err
}

// check refuses options that no version of a bridge says.
func (o ProxyOptions) check() error {
	for _, u := range o.BasicAuth {
		if _, err := ParseUser(u); err != nil {
			return fmt.Errorf("basic_auth: %w", err)
		}
	}
	for name, value := range o.SetHeader {
		if err := CheckHeader(name, value); err != nil {
			return err
		}
	}
	for _, name := range o.RemoveHeader {
		if err := CheckHeader(name, ""); err != nil {
			return err
		}
	}
	if o.HostHeader != "" {
		if _, err := RequestHost(o.HostHeader); err != nil {
			return fmt.Errorf("host_header: %w", err)
		}
	}
	return nil
}

// framing are the headers that say where a message ends, or concern one connection only: they are nobody's to set.
var framing = []string{"connection", "content-length", "host", "http2-settings", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"}

// CheckHeader refuses what cannot be set as a header of a request (RFC 9110, section 5).
func CheckHeader(name, value string) error {
	if name == "" || strings.ContainsFunc(name, func(r rune) bool {
		return r > '~' || r <= ' ' || strings.ContainsRune("\"(),/:;<=>?@[\\]{}", r)
	}) {
		return fmt.Errorf("%.80q is no name of a header", name)
	}
	if slices.Contains(framing, strings.ToLower(name)) {
		if strings.EqualFold(name, "host") {
			return errors.New("the header Host has an option of its own: host_header")
		}
		return fmt.Errorf("the header %s is about the connection, and not to be changed", name)
	}
	if strings.ContainsFunc(value, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
		return fmt.Errorf("the value of header %s has a control character in it", name)
	}
	return nil
}

// MaxProxyOptions is how many bytes Encode may return for a service, and MaxAllProxyOptions for all services of a bridge.
const (
	MaxProxyOptions    = 2560
	MaxAllProxyOptions = 4 << 20
)

// Encode returns what a claim says of the options, and nothing for the zero value. An error says that they are too long.
func (o ProxyOptions) Encode() ([]byte, error) {
	if reflect.ValueOf(o).IsZero() {
		return nil, nil
	}
	b, err := json.Marshal(o)
	if err == nil && len(b) > MaxProxyOptions {
		err = fmt.Errorf("the options of a service for the proxy are %d bytes long, %d are possible", len(b), MaxProxyOptions)
	}
	return b, err
}

// Size is how many bytes the options take in a claim. Encode refuses more than MaxProxyOptions.
func (o ProxyOptions) Size() int {
	b, _ := json.Marshal(o)
	return len(b)
}

// ParseProxyOptions decodes what Encode returned. An option that this version does not know is an error, since a service that needs it
// must not be served without.
func ParseProxyOptions(b []byte) (o ProxyOptions, err error) {
	if len(b) == 0 {
		return o, nil
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err = d.Decode(&o); err == nil {
		if _, more := d.Token(); !errors.Is(more, io.EOF) {
			err = errors.New("there is more behind them")
		}
	}
	if err == nil {
		err = o.check()
	}
	if err == nil {
		return o, nil
	}
	if name, unknown := strings.CutPrefix(err.Error(), "json: unknown field "); unknown {
		return ProxyOptions{}, fmt.Errorf("the bridge asks for the option %s, which this version does not know: update the proxy", name)
	}
	return ProxyOptions{}, fmt.Errorf("the options of the claim cannot be read: %w", err)
}
