package state_test

import (
	"fmt"
	"os"
	"runtime"
	"testing"
	"time"

	"reverser/internal/leaktest"
	"reverser/internal/state"
)

// TestMain doubles as a process that holds a directory until it is killed.
func TestMain(m *testing.M) {
	if dir := os.Getenv("STATE_TEST_HOLD"); dir != "" {
		d, err := state.Open(dir)
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		if _, err := d.ListenAdmin(); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("held")
		for { // until it is killed
			time.Sleep(time.Hour)
			runtime.KeepAlive(d) // or the lock goes with it
		}
	}
	leaktest.Main(m)
}
