package service

import (
	"testing"

	"reverser/internal/leaktest"
)

// asService makes the test binary a service where its command line says so.
var asService = func() {}

func TestMain(m *testing.M) {
	asService()
	leaktest.Main(m)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
