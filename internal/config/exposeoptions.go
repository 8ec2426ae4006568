package config

import (
	"fmt"
	"slices"
	"strings"

	"reverser/internal/grammar"
)

// exposeOption is a key of [[expose]] besides public and target.
type exposeOption struct {
	key   string
	kinds []grammar.Kind // of the services for which it means something; none: all
	// read puts the value v into e. Its error names what is wrong; hint is the remedy.
	read func(d *doc, v any, e *grammar.Expose) (hint string, err error)
}

// exposeOptions are all of them, in the order in which they are read.
var exposeOptions []exposeOption

// exposeKeys are the keys that an [[expose]] may have.
func exposeKeys() []string {
	keys := []string{"public", "target"}
	for _, o := range exposeOptions {
		keys = append(keys, o.key)
	}
	return keys
}

// exposeOptions reads what the table t says besides public and target. at gives the path of a key.
func (d *doc) exposeOptions(t map[string]any, at func(string) string, e *grammar.Expose) {
	for _, o := range exposeOptions {
		v, ok := t[o.key]
		if !ok {
			continue
		}
		if len(o.kinds) > 0 && !slices.Contains(o.kinds, e.Public.Kind) {
			var kinds []string
			for _, k := range o.kinds {
				kinds = append(kinds, string(k)+"/")
			}
			d.fail(&Error{Line: d.line(at(o.key)), Key: o.key, Text: fmt.Sprintf("this is for services of %s, and %s is none", strings.Join(kinds, ", "), e.Public), Hint: "leave it out, or give the service another public name"})
			continue
		}
		if hint, err := o.read(d, v, e); err != nil {
			d.fail(&Error{Line: d.line(at(o.key)), Key: o.key, Text: err.Error(), Hint: hint, Err: err})
		}
	}
}
