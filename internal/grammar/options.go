package grammar

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
)

// Options say how a service is served: what an [[expose]] of a file has besides public and target. Each field is named there as in its
// tag. The zero value has the default of each.
type Options struct {
	Proxy ProxyOptions // what the proxy has to know

	ProxyProtocol int  // version of the header that tells the target whose connection one is, 1 or 2; 0: none
	Transparent   bool // the target is dialled from the user's address
}

// Equal reports whether o and p say the same.
func (o Options) Equal(p Options) bool { return reflect.DeepEqual(o, p) }

// ProxyOptions are the options that the proxy acts on. A bridge says them with its claim, in the form of Encode.
type ProxyOptions struct {
	// OneClient is for http/ and https/ services: a connection to the target is used for the requests of one client alone, since the
	// target takes it for that client's.
	OneClient bool `json:"one_client,omitempty"`
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
		return o, nil
	}
	if name, unknown := strings.CutPrefix(err.Error(), "json: unknown field "); unknown {
		return ProxyOptions{}, fmt.Errorf("the bridge asks for the option %s, which this version does not know: update the proxy", name)
	}
	return ProxyOptions{}, fmt.Errorf("the options of the claim cannot be read: %w", err)
}
