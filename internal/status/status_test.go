package status_test

import (
	"encoding/json"
	"testing"
	"time"

	"reverser/internal/status"
)

// The JSON is a contract with people's scripts: this test holds its names.
func TestSnapshotJSON(t *testing.T) {
	since := time.Date(2026, 7, 1, 8, 0, 0, 0, time.UTC)
	tests := []struct {
		name string
		in   status.Snapshot
		want string
	}{
		{"empty", status.Snapshot{}, `{"role":"","version":"","uptime_seconds":0,"links":[],"services":[],"pairs":[],"keys":[],"clients":[],"removed":[],"pressure":[]}`},
		{"full", status.Snapshot{
			Role: "proxy", Version: "v1", UptimeSeconds: 1.5,
			Links:    []status.Link{{Key: "nas", Bridge: "b1", Remote: "192.0.2.1:5", State: status.LinkUp, RTTMillis: 2.5, Carriers: 4, Resumes: 3, Since: since}},
			Services: []status.Service{{Public: "tcp/9000", Target: "127.0.0.1:9904", State: status.ServiceUp, Connections: 1}},
			Pairs:    []status.Pair{{ID: "7", Service: "tcp/9000", Client: "c", Target: "t", Sent: 1, Received: 2, Since: since, State: status.PairHalfClosed}},
			Keys:     []status.Key{{Key: "nas", ID: "0a", Connections: 1, Total: 2, Sent: 3, Received: 4, Refused: 5}},
			Clients:  []status.Client{{Client: "192.0.2.7", Service: "tcp/9000", Key: "nas", Connections: 1, Total: 2, Sent: 3, Received: 4, Refused: 5}},
			Removed:  []status.Service{{Public: "tcp/22", Key: "nas", State: status.ServiceRemoved, Total: 2, Sent: 3, Received: 4, Refused: 5}},
			Pressure: []status.Pressure{{What: "w", Used: 1, Limit: 2, Largest: status.Holder{Key: "nas", Service: "tcp/9000", Client: "c", Used: 3}, Hint: "h", Since: since}},
		}, `{"role":"proxy","version":"v1","uptime_seconds":1.5,` +
			`"links":[{"key":"nas","bridge":"b1","remote":"192.0.2.1:5","state":"up","rtt_ms":2.5,"carriers":4,"resumes":3,"since":"2026-07-01T08:00:00Z"}],` +
			`"services":[{"public":"tcp/9000","target":"127.0.0.1:9904","state":"up","connections":1}],` +
			`"pairs":[{"id":"7","service":"tcp/9000","client":"c","target":"t","sent":1,"received":2,"since":"2026-07-01T08:00:00Z","state":"half-closed"}],` +
			`"keys":[{"key":"nas","id":"0a","connections":1,"total":2,"sent":3,"received":4,"refused":5}],` +
			`"clients":[{"client":"192.0.2.7","service":"tcp/9000","key":"nas","connections":1,"total":2,"sent":3,"received":4,"refused":5}],` +
			`"removed":[{"public":"tcp/22","target":"","key":"nas","state":"removed","connections":0,"total":2,"sent":3,"received":4,"refused":5}],` +
			`"pressure":[{"what":"w","used":1,"limit":2,"largest":{"key":"nas","service":"tcp/9000","client":"c","used":3},"hint":"h","since":"2026-07-01T08:00:00Z"}]}`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := json.Marshal(tt.in)
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != tt.want {
				t.Errorf("Marshal =\n%s\nwant\n%s", got, tt.want)
			}
		})
	}
}
