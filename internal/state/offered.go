package state

import (
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"reverser/internal/grammar"
)

// offeredFile says which key is allowed the public port that the proxy's configuration file offers, whichever that is, and what that made
// the key allow so far. It is no part of keys.json, of which earlier versions refuse what they do not know.
const offeredFile = "offered"

// follower is what the file says. The zero value is that no key follows.
type follower struct {
	id   [16]byte
	gave []string // what it was made to allow, last and before: where keys.json could not be written, it has one of these
}

// mostGiven is how much of what the follower was made to allow is kept.
const mostGiven = 8

// is reports whether a key is the follower. One that allows something else was edited by a version that does not know of it.
func (f follower) is(k Key) bool { return k.ID == f.id && slices.Contains(f.gave, k.Allow.String()) }

// readFollower returns what the file says; false: there is none.
func (d *Dir) readFollower() (f follower, said bool) {
	b, err := d.readFile(offeredFile)
	if errors.Is(err, fs.ErrNotExist) {
		return f, false
	}
	return parseFollower(b), true
}

func parseFollower(b []byte) (f follower) {
	id, gave, _ := strings.Cut(strings.TrimSpace(string(b)), "\n")
	if n, err := hex.Decode(f.id[:], fit(id, len(f.id))); err != nil || n != len(f.id) {
		return follower{}
	}
	return follower{f.id, strings.Split(gave, "\n")}
}

// markOffered sets Offered of the key that follows.
func (f follower) markOffered(keys []Key) {
	for i := range keys {
		keys[i].Offered = f.is(keys[i])
	}
}

// MarkOffered sets Offered of keys that were read from a directory.
func MarkOffered(dir string, keys []Key) {
	if b, err := os.ReadFile(filepath.Join(dir, offeredFile)); err == nil {
		parseFollower(b).markOffered(keys)
	}
}

// setFollower writes which of the keys follows, before they are written. The lock is held.
func (d *Dir) setFollower(keys []Key) error {
	was, _ := d.readFollower()
	i := slices.IndexFunc(keys, func(k Key) bool { return k.Offered })
	if i < 0 {
		if !slices.ContainsFunc(keys, was.is) {
			return nil
		}
		return d.write(offeredFile, []byte("none\n"))
	}
	allow := keys[i].Allow.String()
	gave := []string{allow}
	if was.id == keys[i].ID {
		if was.gave[0] == allow {
			return nil
		}
		before := slices.DeleteFunc(was.gave, func(g string) bool { return g == allow })
		gave = append(gave, before[:min(len(before), mostGiven-1)]...)
	}
	return d.write(offeredFile, []byte(hex.EncodeToString(keys[i].ID[:])+"\n"+strings.Join(gave, "\n")+"\n"))
}

// FollowOffer stores what the key that follows the proxy's offer is allowed by now. A directory of an earlier version does not say which
// one that is: there it is the one of that name, if it is allowed exactly what is offered.
func (d *Dir) FollowOffer(name string, offer grammar.Policy) error {
	if len(offer) == 0 {
		return nil
	}
	keys, err := d.Keys()
	if err != nil || d.behind(keys, name, offer) < 0 {
		return err
	}
	return d.change(func(keys []Key) ([]Key, error) {
		if i := d.behind(keys, name, offer); i >= 0 {
			keys[i].Allow, keys[i].Offered = offer, true
		}
		return keys, nil
	})
}

// behind finds the key of which FollowOffer has something to store.
func (d *Dir) behind(keys []Key, name string, offer grammar.Policy) int {
	_, said := d.readFollower()
	return slices.IndexFunc(keys, func(k Key) bool {
		same := k.Allow.String() == offer.String()
		return k.Offered && !same || !said && k.Name == name && same
	})
}
