package admin_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"reverser/internal/admin"
)

// description is as much of openapi.yaml as the tests look at.
type description struct {
	Paths map[string]map[string]struct {
		OperationID string         `yaml:"operationId"`
		Responses   map[string]any `yaml:"responses"`
	} `yaml:"paths"`
}

// TestDescription: openapi.yaml has every route, and no other. A bridge has the same ones as a proxy.
func TestDescription(t *testing.T) {
	text, err := os.ReadFile("openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var d description
	if err := yaml.Unmarshal(text, &d); err != nil {
		t.Fatal(err)
	}
	var described []string
	ids := make(map[string]bool)
	for path, item := range d.Paths {
		for method, op := range item {
			what := strings.ToUpper(method) + " " + path
			described = append(described, what)
			if op.OperationID == "" || ids[op.OperationID] {
				t.Errorf("%s has the operationId %q: it needs one of its own", what, op.OperationID)
			}
			ids[op.OperationID] = true
			if len(op.Responses) == 0 {
				t.Errorf("%s: no answer is described", what)
			}
		}
	}
	for role, s := range map[string]*admin.Server{
		"proxy":  {Status: snapshot, Keys: &fakeKeys{}},
		"bridge": {Status: snapshot},
	} {
		routes := s.Routes()
		for _, r := range routes {
			if !slices.Contains(described, r) {
				t.Errorf("%s: %s is answered and not in openapi.yaml", role, r)
			}
		}
		for _, r := range described {
			if !slices.Contains(routes, r) {
				t.Errorf("%s: %s is in openapi.yaml and not answered", role, r)
			}
		}
	}
}

// TestDescriptionIsServed: a process tells what it answers.
func TestDescriptionIsServed(t *testing.T) {
	want, err := os.ReadFile("openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	dial := serve(t, &admin.Server{Status: snapshot})
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) }}
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport}).Get("http://reverser/api/v1/openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err != nil || string(got) != string(want) || resp.Header.Get("Content-Type") != "application/yaml" {
		t.Errorf("%d bytes of %s, %v; want the %d bytes of openapi.yaml", len(got), resp.Header.Get("Content-Type"), err, len(want))
	}
}
