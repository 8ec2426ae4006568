package admin_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"

	"reverser/internal/admin"
	"reverser/internal/usage"
)

// fakeUsage answers what it was asked.
type fakeUsage struct {
	asked *usage.Query
	err   error
}

func (f fakeUsage) Usage(_ context.Context, q usage.Query) (usage.Report, error) {
	*f.asked = q
	row := usage.Row{Start: time.Unix(0, 0).UTC(), Key: "nas", Service: "tcp/9000", Counts: usage.Counts{Sent: 1, Received: 2, Connections: 3, Refused: 4}}
	return usage.Report{By: q.By, Rows: []usage.Row{row}}, f.err
}

func (f fakeUsage) History() usage.History {
	return usage.History{StepSeconds: 10, Points: []usage.Point{{At: time.Unix(0, 0).UTC(), Open: 5, Counts: usage.Counts{Sent: 1, Received: 2, Connections: 3, Refused: 4}}}}
}

func TestUsage(t *testing.T) {
	var asked usage.Query
	c := client(t, &admin.Server{Status: snapshot, Usage: fakeUsage{asked: &asked}})
	for _, q := range []usage.Query{
		{By: usage.Hour},
		{By: usage.Day, Service: "tcp/9000", Key: "nas", Last: 7, Group: usage.GroupTotal},
		{By: usage.Month, Service: usage.OtherServices, Key: usage.OtherKeys, Group: usage.GroupService},
	} {
		want, _ := fakeUsage{asked: new(usage.Query)}.Usage(t.Context(), q)
		got, err := c.Usage(t.Context(), q)
		if err != nil || !reflect.DeepEqual(got, want) || asked != q {
			t.Errorf("Usage(%+v) = %+v, %v, and asked %+v; want %+v", q, got, err, asked, want)
		}
	}
	if got, err := c.History(t.Context()); err != nil || !reflect.DeepEqual(got, fakeUsage{}.History()) {
		t.Errorf("History = %+v, %v", got, err)
	}
}

func TestUsageRefused(t *testing.T) {
	get := func(s *admin.Server, path string) (int, string) {
		dial := serve(t, s)
		transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) }}
		defer transport.CloseIdleConnections()
		resp, err := (&http.Client{Transport: transport}).Get("http://reverser" + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil || !json.Valid(b) {
			t.Errorf("%s: %q, %v; want JSON", path, b, err)
		}
		return resp.StatusCode, string(b)
	}
	whole := &admin.Server{Status: snapshot, Usage: fakeUsage{asked: new(usage.Query)}}
	for _, query := range []string{"by=", "by=week", "by=day&last=0", "by=day&last=-1", "by=day&last=x", "by=day&last=99999999999999999999",
		"by=day&group=client", "by=day&service=nonsense/x", "by=day&service=%1b%5b2J"} {
		if code, body := get(whole, "/api/v1/usage?"+query); code != http.StatusBadRequest {
			t.Errorf("%s: %d %s, want 400", query, code, body)
		}
	}
	if code, body := get(whole, "/api/v1/usage"); code != http.StatusOK || !strings.Contains(body, `"by":"day"`) {
		t.Errorf("without by: %d %s, want days", code, body)
	}
	if code, body := get(&admin.Server{Status: snapshot}, "/api/v1/usage?by=day"); code != http.StatusConflict {
		t.Errorf("without usage: %d %s, want 409", code, body)
	}
	if code, body := get(&admin.Server{Status: snapshot}, "/api/v1/history"); code != http.StatusConflict {
		t.Errorf("history without usage: %d %s, want 409", code, body)
	}
	broken := &admin.Server{Status: snapshot, Usage: fakeUsage{asked: new(usage.Query), err: errors.New("no such device")}}
	if code, body := get(broken, "/api/v1/usage?by=day"); code != http.StatusInternalServerError {
		t.Errorf("of a broken disk: %d %s, want 500", code, body)
	}
}
