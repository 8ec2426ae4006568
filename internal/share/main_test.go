package share

import (
	"testing"

	"reverser/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }
