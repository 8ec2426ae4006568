package main

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"compress/zlib"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"reverser/internal/admin"
	"reverser/internal/escape"
	"reverser/internal/grammar"
	"reverser/internal/inspect"
)

func (c *cli) inspectCommand() *cobra.Command {
	var path, replay string
	var asJSON, follow bool
	cmd := &cobra.Command{
		Use:   "inspect SERVICE [ID]",
		Short: "Show what an HTTP service and its clients said to each other",
		Long: `Show what an HTTP service and its clients said to each other: the last 200
exchanges with when, what, status, duration and client, or all that is kept of
one of them: headers, the first 64 KB of each body, and the last frames of a
WebSocket.

A service is inspected when its [[expose]] says inspect = true. Its exchanges
are kept in memory by the process that speaks HTTP for it, which for http/ and
https/ is the proxy: ask there. Values of headers that are secrets are not
shown. Bodies are shown as they are, whatever is in them.

--replay ID sends a request again, with the secrets of its header, and shows
the new exchange. A request whose body is not kept whole is not sent.`,
		Example: `  reverser inspect http/app.example.com
  reverser inspect http/app.example.com 17
  reverser inspect http/app.example.com --follow
  reverser inspect http/app.example.com --replay 17`,
		Args: func(cmd *cobra.Command, args []string) error {
			switch {
			case len(args) == 0:
				return usageHint("reverser inspect http/app.example.com", "reverser inspect needs the SERVICE")
			case len(args) > 2:
				return usageHint("reverser inspect http/app.example.com 17", "reverser inspect takes a SERVICE and an ID, and %q is one more", args[2])
			case len(args) == 2 && (follow || replay != "") || follow && replay != "":
				return usageHint("give one of them", "an ID, --follow and --replay do not go together")
			}
			return nil
		},
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			public, err := grammar.ParsePublic(args[0])
			if err != nil {
				return usageHint("SERVICE is what a bridge publishes, without its target: `reverser inspect http/app.example.com`", "%w", err)
			}
			v := inspector{cli: c, path: path, service: public.String(), json: asJSON}
			switch {
			case follow:
				return v.follow(cmd.Context())
			case replay != "":
				return v.replay(cmd.Context(), replay)
			case len(args) == 2:
				return v.one(cmd.Context(), args[1])
			}
			return v.list(cmd.Context())
		},
	}
	addStateFlag(cmd.Flags(), &path)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON; with --follow one object a line")
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "show exchanges as they end, and frames of WebSockets as they pass, until Ctrl-C")
	cmd.Flags().StringVar(&replay, "replay", "", "send the request of the exchange `ID` again")
	return cmd
}

// inspector asks about one service.
type inspector struct {
	*cli
	path, service string
	json          bool
}

// ask gives a refusal of what was named its exit code. That too many do the same already is nobody's slip.
func (v inspector) ask(ask func(*admin.Client) error) error {
	err := v.askRunning(v.path, "inspect", ask)
	if refused, ok := errors.AsType[*admin.UsageError](err); ok && refused.Code == http.StatusTooManyRequests {
		return err
	}
	return keyError(err)
}

func (v inspector) list(ctx context.Context) error {
	var list []inspect.Summary
	err := v.ask(func(client *admin.Client) (err error) {
		list, err = client.Exchanges(ctx, v.service)
		return err
	})
	switch {
	case err != nil:
		return err
	case v.json:
		return v.printJSON(map[string]any{"exchanges": list})
	case len(list) == 0:
		_, err := fmt.Fprintf(v.stdout, "nothing was exchanged yet with %s since it is inspected\n", printable(v.service))
		return err
	}
	t := newTable(v.stdout)
	t.row("ID", "TIME", "METHOD", "PATH", "STATUS", "DURATION", "CLIENT", "NOTE")
	for _, x := range list {
		t.row(x.ID, clock(x.Begun), x.Method, v.asked(x), statusWord(x), duration(x.Duration), x.Client, note(x))
	}
	return t.flush()
}

func (v inspector) one(ctx context.Context, id string) error {
	var x inspect.Exchange
	err := v.ask(func(client *admin.Client) (err error) {
		x, err = client.Exchange(ctx, v.service, id)
		return err
	})
	switch {
	case err != nil:
		return err
	case v.json:
		return v.printJSON(x)
	}
	return printExchange(v.stdout, x)
}

func (v inspector) replay(ctx context.Context, id string) error {
	var again inspect.Summary
	err := v.ask(func(client *admin.Client) (err error) {
		again, err = client.Replay(ctx, v.service, id)
		return err
	})
	if err != nil {
		return err
	}
	return v.one(ctx, again.ID)
}

func (v inspector) follow(ctx context.Context) error {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt)
	defer stop()
	line := "%-6s %-12s %-7s %-40s %-6s %9s  %-21s %s\n"
	if !v.json {
		// The table has no head when there is nothing to follow.
		if err := v.ask(func(client *admin.Client) error {
			_, err := client.Exchanges(ctx, v.service)
			return err
		}); err != nil {
			return err
		}
		if _, err := fmt.Fprintf(v.stdout, line, "ID", "TIME", "METHOD", "PATH", "STATUS", "DURATION", "CLIENT", "NOTE"); err != nil {
			return err
		}
	}
	return v.ask(func(client *admin.Client) error {
		return client.Follow(ctx, v.service, func(e inspect.Event) error {
			if v.json {
				enc := json.NewEncoder(escape.NewWriter(v.stdout))
				return enc.Encode(e)
			}
			if e.Lost > 0 {
				fmt.Fprintf(v.stdout, "(%d left out: they came faster than they could be shown)\n", e.Lost)
			}
			x := *e.Exchange
			if e.Frame != nil {
				_, err := fmt.Fprintf(v.stdout, "%-6s %s\n", printable(x.ID), frameLine(*e.Frame))
				return err
			}
			_, err := fmt.Fprintf(v.stdout, line, printable(x.ID), clock(x.Begun), printable(x.Method), printable(v.asked(x)), printable(statusWord(x)),
				duration(x.Duration), printable(x.Client), printable(note(x)))
			return err
		})
	})
}

// asked is what a request asked for, short enough for a line.
func (v inspector) asked(x inspect.Summary) string {
	s := x.Path
	if strings.Contains(v.service, "*") {
		s = x.Host + s
	}
	const most = 60
	if utf8.RuneCountInString(s) > most {
		s = string([]rune(s)[:most-1]) + "…"
	}
	return s
}

func clock(t time.Time) string { return t.Local().Format("15:04:05.000") }

func duration(s float64) string {
	switch {
	case s < 1:
		return strconv.FormatFloat(s*1000, 'f', 1, 64) + " ms"
	case s < 100:
		return strconv.FormatFloat(s, 'f', 2, 64) + " s"
	}
	return span(time.Duration(s * float64(time.Second)))
}

func statusWord(x inspect.Summary) string {
	if x.Status == 0 {
		return "-"
	}
	return strconv.Itoa(x.Status)
}

func note(x inspect.Summary) string {
	var words []string
	switch x.State {
	case inspect.StateOpen:
		words = append(words, "goes on")
	case inspect.StateAborted:
		words = append(words, "aborted")
	}
	if x.Upgrade != "" {
		words = append(words, x.Upgrade)
	}
	if x.Frames > 0 {
		words = append(words, fmt.Sprintf("%d frames", x.Frames))
	}
	if x.ReplayOf != "" {
		words = append(words, "replay of "+x.ReplayOf)
	}
	return strings.Join(words, ", ")
}

// printExchange shows one exchange. Every line that the client or the target wrote has a mark of its own before it, which neither can
// write.
func printExchange(w io.Writer, x inspect.Exchange) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "exchange %s of %s, from %s\n", printable(x.ID), printable(x.Service), printable(x.Client))
	fmt.Fprintf(&b, "begun %s", x.Begun.Local().Format("2006-01-02 15:04:05.000"))
	if x.Status != 0 {
		fmt.Fprintf(&b, ", answered after %s", duration(x.Answered))
	}
	switch x.State {
	case inspect.StateOpen:
		fmt.Fprintf(&b, ", goes on for %s", duration(x.Duration))
	case inspect.StateAborted:
		fmt.Fprintf(&b, ", aborted after %s", duration(x.Duration))
	default:
		fmt.Fprintf(&b, ", over after %s", duration(x.Duration))
	}
	if x.ReplayOf != "" {
		fmt.Fprintf(&b, ", replay of %s", printable(x.ReplayOf))
	}
	b.WriteString("\n\n")
	marked(&b, ">", fmt.Sprintf("%s %s %s", x.Method, x.Path, x.Proto))
	marked(&b, ">", "Host: "+x.Host)
	printMessage(&b, ">", x.Request, x.Upgrade != "")
	b.WriteString("\n")
	if x.Status == 0 {
		b.WriteString("no answer\n")
	} else {
		marked(&b, "<", strings.TrimSpace(fmt.Sprintf("%d %s", x.Status, http.StatusText(x.Status))))
		printMessage(&b, "<", x.Response, x.Upgrade != "")
	}
	if x.Frames > 0 {
		fmt.Fprintf(&b, "\n%d frames", x.Frames)
		if left := x.Frames - uint64(len(x.LastFrames)); left > 0 {
			fmt.Fprintf(&b, ", the first %d are not kept", left)
		}
		b.WriteString("\n")
		for _, f := range x.LastFrames {
			fmt.Fprintf(&b, "%8.3f s  %s\n", f.At, frameLine(f))
		}
	}
	_, err := w.Write(b.Bytes())
	return err
}

func marked(b *bytes.Buffer, mark, line string) {
	fmt.Fprintf(b, "%s %s\n", mark, escape.Text(line))
}

func printMessage(b *bytes.Buffer, mark string, m inspect.Message, upgraded bool) {
	for _, f := range m.Header {
		marked(b, mark, f.Name+": "+f.Value)
	}
	if upgraded { // what follows is frames
		return
	}
	body, text := readable(m)
	switch {
	case m.Bytes == 0:
	case text:
		b.WriteString(mark + "\n")
		for line := range strings.Lines(body) {
			marked(b, mark, strings.TrimRight(line, "\r\n"))
		}
	default:
		b.WriteString(mark + "\n")
		const shown = 256
		for line := range strings.Lines(hex.Dump([]byte(body[:min(shown, len(body))]))) {
			marked(b, mark, strings.TrimRight(line, "\n"))
		}
		if len(body) > shown {
			marked(b, mark, "…")
		}
	}
	for _, f := range m.Trailer {
		marked(b, mark, f.Name+": "+f.Value)
	}
	if m.Omitted > 0 {
		fmt.Fprintf(b, "(%d fields for which there was no room)\n", m.Omitted)
	}
	if m.Bytes > 0 {
		fmt.Fprintf(b, "(%d bytes of body", m.Bytes)
		if int64(m.Kept) < m.Bytes {
			fmt.Fprintf(b, ", the first %d are kept", m.Kept)
		}
		b.WriteString(")\n")
	}
}

// readable is the body of a message, decompressed where it is compressed, and reports whether it is text.
func readable(m inspect.Message) (body string, text bool) {
	raw := []byte(m.Body)
	if m.Encoding != "text" {
		var err error
		if raw, err = base64.StdEncoding.DecodeString(m.Body); err != nil {
			return m.Body, true
		}
	}
	for _, f := range m.Header {
		if strings.EqualFold(f.Name, "Content-Encoding") {
			if plain, ok := decompressed(f.Value, raw); ok {
				raw = plain
			}
		}
	}
	if len(raw) == inspect.BodyKept { // its last character may be cut in two
		for i := 1; i < utf8.UTFMax && !utf8.FullRune(raw[len(raw)-i:]); i++ {
			if utf8.RuneStart(raw[len(raw)-i]) {
				raw = raw[:len(raw)-i]
				break
			}
		}
	}
	return string(raw), utf8.Valid(raw) && !bytes.ContainsRune(raw, 0)
}

// decompressed is as much of a body as can be read of its beginning, at most as much as is kept of one that is not compressed.
func decompressed(encoding string, raw []byte) ([]byte, bool) {
	var r io.Reader
	var err error
	switch strings.ToLower(strings.TrimSpace(encoding)) {
	case "gzip", "x-gzip":
		r, err = gzip.NewReader(bytes.NewReader(raw))
	case "deflate":
		if r, err = zlib.NewReader(bytes.NewReader(raw)); err != nil { // some mean the one without a header
			r, err = flate.NewReader(bytes.NewReader(raw)), nil
		}
	default:
		return nil, false
	}
	if err != nil {
		return nil, false
	}
	plain, err := io.ReadAll(io.LimitReader(r, inspect.BodyKept))
	return plain, err == nil || len(plain) > 0
}

// frameLine shows a frame of a WebSocket in one line.
func frameLine(f inspect.Frame) string {
	mark := ">"
	if f.From == "target" {
		mark = "<"
	}
	words := f.Type
	if !f.Final {
		words += ", more follows"
	}
	if f.Cut {
		words += ", cut off"
	}
	if f.Compressed {
		words += ", compressed"
	}
	line := fmt.Sprintf("%s %s, %d bytes", mark, words, f.Bytes)
	raw := []byte(f.Body)
	if f.Encoding != "text" {
		raw, _ = base64.StdEncoding.DecodeString(f.Body)
	}
	const shown = 200
	switch {
	case f.Type == "close" && len(raw) >= 2:
		line += fmt.Sprintf(": %d %s", binary.BigEndian.Uint16(raw), raw[2:])
	case f.Body == "":
	case f.Encoding == "text":
		text := []rune(f.Body)
		if len(text) > shown {
			text = append(text[:shown:shown], '…')
		}
		line += ": " + string(text)
	default:
		line += ": " + hex.EncodeToString(raw[:min(len(raw), shown/4)])
		if len(raw) > shown/4 {
			line += "…"
		}
	}
	return escape.Text(line)
}
