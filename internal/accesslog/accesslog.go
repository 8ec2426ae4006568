// Package accesslog writes one line of JSON for each connection or request of a user to a file.
//
// Whoever has a line written never waits: lines wait in a queue, and those that find no room there, or on a full disk, are lost and
// counted. No line is ever written in part. The file is opened anew whenever somebody has moved it aside and says so ([Log.Open]).
// The package does not know what connections and requests are.
//
// Goroutines: run, which New starts and Close ends; and one for each Open, which ends with it unless the system does not answer.
package accesslog

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"reverser/internal/escape"
)

// Entry is one line. Its JSON is read by people's scripts: names are added, never changed.
type Entry struct {
	Time     time.Time `json:"time"`    // of the end
	Kind     string    `json:"kind"`    // KindConnection or KindRequest
	Service  string    `json:"service"` // canonical PUBLIC
	Key      string    `json:"key"`     // whose service it is
	Client   string    `json:"client"`
	Target   string    `json:"target"`
	Sent     uint64    `json:"sent"`     // bytes client → target; of a request those of its body
	Received uint64    `json:"received"` // bytes target → client; of a request those of the body of its answer
	Duration float64   `json:"duration"` // seconds
	Refused  string    `json:"refused,omitempty"`

	// Of a connection that was served.
	Reason  string `json:"reason,omitempty"`
	Resumes uint64 `json:"resumes,omitempty"`

	// Of a request.
	Request *Request `json:"request,omitempty"`
}

// Request is what is written of a request beside what a connection has. Texts that are too long are cut.
type Request struct {
	ID        string `json:"id"`
	Method    string `json:"method"`
	Host      string `json:"host"`
	Path      string `json:"path"` // with the query
	Proto     string `json:"proto"`
	Status    int    `json:"status"` // 0: the client left before there was an answer
	UserAgent string `json:"user_agent"`
	Referer   string `json:"referer"`
}

// Kinds of an Entry.
const (
	KindConnection = "connection"
	KindRequest    = "request"
)

// Stdout in the place of a file's name is standard output.
const Stdout = "-"

const (
	waiting   = 2048             // entries at the most: a few megabytes
	batch     = 64 << 10         // bytes that are written at once, about
	turnWait  = time.Second      // how long Open and Close wait for a write that does not end
	closeWait = 10 * turnWait    // how long Close waits for all of them: service managers kill who takes long to stop
	openWait  = 5 * time.Second  // how long Open waits for the system to open a file
	saidEvery = time.Minute      // how often the log is told of a disk that is full again and again
	pathMost  = 2048             // bytes
	nameMost  = 512              // bytes of host, user agent and referer
	fileMode  = 0o640            // before the umask
	timeForm  = time.Millisecond // of what is written
)

// Log is an access log. Make it with New; until Open it writes nothing.
type Log struct {
	log     *slog.Logger
	on      atomic.Bool
	queue   chan *Entry
	written atomic.Uint64
	lost    atomic.Uint64
	stop    chan struct{}
	done    chan struct{}

	open    func(path string) (io.WriteCloser, error)
	opening chan struct{} // has room for one

	patience time.Duration // turnWait; tests of other things have more
	start    time.Time
	began    atomic.Int64 // nanoseconds from start to the begin of the present write; 0: none is under way

	turn chan struct{} // has room for one: who uses the file. A write may never end
	file io.WriteCloser
	rest []byte    // of a line of which the beginning was written
	said time.Time // when the log was last told of a failure
	told bool      // and not of its end yet

	mu   sync.Mutex
	path string // guarded by mu, as all below
	err  error  // of the last write
}

// New returns a log that is off, and tells log when it cannot write.
func New(log *slog.Logger) *Log {
	l := &Log{
		log: log, queue: make(chan *Entry, waiting), stop: make(chan struct{}), done: make(chan struct{}), turn: make(chan struct{}, 1),
		open: open, opening: make(chan struct{}, 1), patience: turnWait, start: time.Now(),
	}
	go l.run()
	return l
}

// Open has lines written to the end of a file from now on, which is made if it is not there, and nothing to the file before. "" turns the
// log off. With an error everything is as it was.
func (l *Log) Open(path string) error {
	file, err := l.openInTime(path)
	if err != nil {
		return err
	}
	if !l.take() {
		if file != nil {
			file.Close()
		}
		return fmt.Errorf("access log %s: a write to it does not end, so it cannot be closed", l.Path())
	}
	old := l.file
	if len(l.rest) > 0 { // its beginning is in the old file
		l.lost.Add(1)
	}
	l.file, l.rest, l.said, l.told = file, nil, time.Time{}, false
	l.on.Store(file != nil)
	l.mu.Lock()
	l.path, l.err = path, nil
	l.mu.Unlock()
	<-l.turn
	if old != nil {
		old.Close() // what was written is in the hands of the system
	}
	return nil
}

// openInTime opens a file, unless that takes too long: the file may be on a disk of the network that does not answer.
func (l *Log) openInTime(path string) (io.WriteCloser, error) {
	select {
	case l.opening <- struct{}{}:
	default:
		return nil, fmt.Errorf("access log %s: it cannot be opened while the opening of a file before it does not end", path)
	}
	type opened struct {
		file io.WriteCloser
		err  error
	}
	got, late := make(chan opened), make(chan struct{})
	go func() { // nobody can wait for it when the system does not come back
		file, err := l.open(path)
		select {
		case got <- opened{file, err}:
		case <-late:
			if file != nil {
				file.Close()
			}
			<-l.opening
		}
	}()
	limit := time.NewTimer(openWait)
	defer limit.Stop()
	select {
	case o := <-got:
		<-l.opening
		return o.file, o.err
	case <-limit.C:
		close(late)
		return nil, fmt.Errorf("access log %s: its opening has not ended after %v: see that its disk answers", path, openWait)
	}
}

func (l *Log) take() bool {
	for left := l.patience; left > 0; left = l.patience - l.stuck() {
		select {
		case l.turn <- struct{}{}:
			return true
		case <-time.After(left):
		}
	}
	return false
}

// stuck is how long the present write has been under way. On a busy machine it may take long until one begins: that does not count.
func (l *Log) stuck() time.Duration {
	if began := l.began.Load(); began != 0 {
		return time.Since(l.start) - time.Duration(began)
	}
	return 0
}

// Path is where lines are written; "": nowhere.
func (l *Log) Path() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.path
}

// State is how far the log is.
type State struct {
	Path    string
	Written uint64 // lines, to all files
	Lost    uint64 // lines
	Err     error  // why the last line could not be written; nil: it could
}

// State returns it.
func (l *Log) State() State {
	l.mu.Lock()
	defer l.mu.Unlock()
	return State{l.path, l.written.Load(), l.lost.Load(), l.err}
}

// open returns nil for no path.
func open(path string) (io.WriteCloser, error) {
	switch path {
	case "":
		return nil, nil
	case Stdout:
		return standardOutput{}, nil
	}
	if err := isFile(path); err != nil {
		return nil, err
	}
	file, err := openToAppend(path)
	if err != nil {
		return nil, whyNot(err)
	}
	return file, nil
}

// isFile refuses what is there and no file. The open of a pipe would wait for a reader.
func isFile(path string) error {
	if fi, err := os.Stat(path); err == nil && !fi.Mode().IsRegular() && fi.Mode()&os.ModeCharDevice == 0 {
		what := "no file"
		if fi.IsDir() {
			what = "a directory"
		}
		return &fault{fmt.Errorf("access log %s: this is %s", path, what), "name a file, or - for standard output"}
	}
	return nil
}

// whyNot is why a file was not opened, with what to do.
func whyNot(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return &fault{fmt.Errorf("access log: %w", err), "make the directory first"}
	}
	return fmt.Errorf("access log: %w", err)
}

// fault is an error with the remedy, which is a part of its text.
type fault struct {
	err    error
	remedy string
}

func (f *fault) Error() string { return f.err.Error() + ": " + f.remedy }
func (f *fault) Unwrap() error { return f.err }

// Remedy is the end of the text that says what to do.
func (f *fault) Remedy() string { return f.remedy }

// Look reports why Open would refuse a path. It makes no file.
func Look(path string) error {
	if path == "" || path == Stdout {
		return nil
	}
	if err := isFile(path); err != nil {
		return err
	}
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		dir := filepath.Dir(path)
		info, err := os.Stat(dir)
		if pe, ok := errors.AsType[*os.PathError](err); ok {
			err = pe.Err
		} else if !info.IsDir() { // which Windows does not tell from one that is not there
			err = os.ErrNotExist
		} else {
			err = mayMake(dir)
		}
		if err != nil {
			return whyNot(&os.PathError{Op: "open", Path: path, Err: err})
		}
		return nil
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return whyNot(err)
	}
	return f.Close()
}

// standardOutput is not closed: it is not the log's own.
type standardOutput struct{}

func (standardOutput) Write(p []byte) (int, error) { return os.Stdout.Write(p) }
func (standardOutput) Close() error                { return nil }

// On reports whether lines are written at all.
func (l *Log) On() bool { return l.on.Load() }

// Write has a line written, and does not wait for it. The entry is the log's from then on.
func (l *Log) Write(e *Entry) {
	if !l.on.Load() {
		return
	}
	e.Time = e.Time.UTC().Truncate(timeForm)
	if r := e.Request; r != nil {
		// A short text may be a piece of a long one, which would wait with it.
		r.Method, r.Proto = cut(r.Method, nameMost), cut(r.Proto, nameMost)
		r.Host, r.UserAgent, r.Referer = cut(r.Host, nameMost), cut(r.UserAgent, nameMost), cut(r.Referer, nameMost)
		r.Path = cut(r.Path, pathMost)
	}
	select {
	case l.queue <- e:
	default:
		l.lost.Add(1)
	}
}

func cut(s string, most int) string {
	if len(s) > most {
		return s[:most] + "…"
	}
	return strings.Clone(s)
}

// run writes what is in the queue, until Close.
func (l *Log) run() {
	defer close(l.done)
	var b bytes.Buffer
	// Terminals are where logs are looked at, and JSON lets through what moves their cursor.
	encoder := json.NewEncoder(escape.NewWriter(&b))
	encoder.SetEscapeHTML(false)
	for {
		var e *Entry
		select {
		case e = <-l.queue:
		case <-l.stop:
			select {
			case e = <-l.queue:
			default:
				return
			}
		}
		b.Reset()
		lines := 0
		for more := true; more; {
			if err := encoder.Encode(e); err != nil { // a number that is none
				l.lost.Add(1)
			} else {
				lines++
			}
			if more = b.Len() < batch; more {
				select {
				case e = <-l.queue:
				default:
					more = false
				}
			}
		}
		l.write(b.Bytes(), lines)
	}
}

// write writes whole lines. Of those for which there is no room, the first one may be there in part: its rest is written when there is.
func (l *Log) write(p []byte, lines int) {
	l.turn <- struct{}{}
	defer func() { <-l.turn }()
	l.began.Store(int64(time.Since(l.start)) + 1)
	defer l.began.Store(0)
	if l.file == nil { // it was turned off meanwhile
		l.lost.Add(uint64(lines))
		return
	}
	var err error
	if len(l.rest) > 0 {
		var n int
		n, err = l.file.Write(l.rest)
		if l.rest = l.rest[n:]; len(l.rest) == 0 {
			l.rest, err = nil, nil
			l.written.Add(1)
		}
	}
	if err == nil {
		var n int
		n, err = l.file.Write(p)
		whole := bytes.Count(p[:n], []byte{'\n'})
		l.written.Add(uint64(whole))
		lines -= whole
		if begun := p[bytes.LastIndexByte(p[:n], '\n')+1 : n]; len(begun) > 0 {
			end := n + bytes.IndexByte(p[n:], '\n') + 1
			l.rest = bytes.Clone(p[n:end])
			lines--
		}
	}
	l.lost.Add(uint64(lines))
	l.tell(err)
}

// tell says when lines are lost, and when they are not any more.
func (l *Log) tell(err error) {
	l.mu.Lock()
	path, before := l.path, l.err
	l.err = err
	l.mu.Unlock()
	switch {
	case err != nil && before == nil && time.Since(l.said) >= saidEvery:
		l.said, l.told = time.Now(), true
		l.log.Error("the access log cannot be written: its lines are lost, and nothing else is", "file", path, "err", err)
	case err == nil && l.told:
		l.told = false
		l.log.Info("the access log is written again", "file", path, "lost", l.lost.Load())
	}
}

// Close writes what waits, unless a write takes longer than a second, or all of them longer than ten: they end with the process.
func (l *Log) Close() {
	close(l.stop)
	end := time.Now().Add(closeWait / turnWait * l.patience)
	for left := l.patience; left > 0; left = min(l.patience-l.stuck(), time.Until(end)) {
		select {
		case <-l.done:
			if len(l.rest) > 0 {
				l.lost.Add(1)
			}
			if l.file != nil {
				l.file.Close()
			}
			return
		case <-time.After(left):
		}
	}
}
