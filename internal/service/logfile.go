package service

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// LogFile is the log of a service, in its state directory, where the manager keeps none. When it has grown to a megabyte it
// becomes LogFile.old, and a new one begins.
const LogFile = "service.log"

// CrashFile, beside it, has what the Go runtime said when the program crashed.
const CrashFile = "service.crash"

const mostLog = 1 << 20

// Log is the log of a service in files of bounded size. Each line may begin with a priority as systemd's journal takes it ("<4>"),
// which is left out. Lines of warning and worse go to Events as well.
type Log struct {
	path string
	// Events hears of each line that is a warning or worse, without its end. nil: nobody does.
	Events func(line string, isError bool)

	mu   sync.Mutex
	file *os.File // guarded by mu, as size; nil: it cannot be written
	size int64
}

// OpenLog opens the log in a state directory. The error is that of a file which cannot be written; the Log tells Events all the same.
func OpenLog(state string) (*Log, error) {
	l := &Log{path: filepath.Join(state, LogFile)}
	return l, l.open()
}

func (l *Log) open() (err error) {
	if l.file, err = os.OpenFile(l.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600); err != nil {
		return err
	}
	l.size, err = l.file.Seek(0, io.SeekEnd)
	return err
}

// TakesPriorities makes a writer of log lines put priorities before them.
func (l *Log) TakesPriorities() {}

// Write writes whole lines.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out strings.Builder
	for line := range strings.Lines(string(p)) {
		priority, text := cutPriority(line)
		out.WriteString(text)
		if l.Events != nil && priority <= '4' {
			l.Events(strings.TrimRight(text, "\r\n"), priority <= '3')
		}
	}
	if err := l.append(out.String()); err != nil {
		return 0, err
	}
	return len(p), nil
}

// cutPriority takes the priority off a line. What has none is what a program says before it ends: an error.
func cutPriority(line string) (byte, string) {
	if len(line) > 2 && line[0] == '<' && line[2] == '>' && line[1] >= '0' && line[1] <= '7' {
		return line[1], line[3:]
	}
	return '3', line
}

// append writes to the file. mu is held.
func (l *Log) append(text string) error {
	if l.file == nil {
		if err := l.open(); err != nil {
			return err
		}
	}
	if l.size > 0 && l.size+int64(len(text)) > mostLog {
		l.file.Close()
		l.file = nil
		os.Rename(l.path, l.path+".old") // if that is not to be, the file goes on to grow
		if err := l.open(); err != nil {
			return err
		}
	}
	n, err := l.file.WriteString(text)
	l.size += int64(n)
	return err
}

// Close closes the file.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return nil
	}
	err := l.file.Close()
	l.file = nil
	return err
}

// lastLines are the last n lines of a log file.
func lastLines(path string, n int) []string {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	const most = 64 << 10
	info, err := f.Stat()
	if err != nil {
		return nil
	}
	at := max(info.Size()-most, 0)
	b := make([]byte, info.Size()-at)
	if _, err := f.ReadAt(b, at); err != nil && err != io.EOF {
		return nil
	}
	lines := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	if at > 0 {
		lines = lines[1:] // the first is not whole
	}
	lines = lines[max(len(lines)-n, 0):]
	if len(lines) == 1 && lines[0] == "" {
		return nil
	}
	return lines
}

// recent is how long a warning is worth to be shown of a service that runs.
const recent = 10 * time.Minute

// warnings are the last n of the lines that warn of something, without those that are older than recent.
func warnings(lines []string, n int) []string {
	var found []string
	for _, l := range lines {
		if !strings.Contains(l, " WRN ") && !strings.Contains(l, " ERR ") && !strings.Contains(l, `"level":"WARN"`) && !strings.Contains(l, `"level":"ERROR"`) {
			continue
		}
		if at, err := time.ParseInLocation(time.DateTime, l[:min(len(l), len(time.DateTime))], time.Local); err == nil && time.Since(at) > recent {
			continue
		}
		found = append(found, l)
	}
	return found[max(len(found)-n, 0):]
}
