package main

import (
	"os"
	"os/signal"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"reverser/internal/freeport"
	"reverser/internal/leaktest"
)

func TestMain(m *testing.M) {
	somePort = freeport.Get
	testscript.Main(leakCheck{m}, map[string]func(){
		"reverser": func() {
			passphraseWork = 10      // under the race detector scrypt takes many times its time
			checkLimit = time.Minute // a process of a busy machine may not answer within a second
			main()
		},
	})
}

// leakCheck fails a run that leaves goroutines behind.
type leakCheck struct{ m *testing.M }

func (l leakCheck) Run() int {
	if signal.Ignored(syscall.SIGHUP) { // as under nohup: what is started here would ignore it, too
		signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP)
	}
	return leaktest.Run(l.m)
}
