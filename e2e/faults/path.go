//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"reverser/e2e/netlab"
)

// L6
func packetLoss(ctx context.Context, b *bed) error {
	const oneWay = 100 * time.Millisecond
	losses := by(b, []float64{.01, .05}, []float64{.001, .01, .05}, []float64{.001, .01, .05})
	return sideBySide(losses, func(loss float64) error {
		each := by(b, int64(128<<10), 1<<20, 8<<20)
		t, err := b.tunnel(ctx, options{lab: true})
		if err != nil {
			return err
		}
		if err := t.lab.SetDelay(oneWay); err != nil {
			return err
		}
		for _, d := range []netlab.Direction{netlab.ToProxy, netlab.ToBridge} {
			if err := t.lab.SetLoss(d, loss); err != nil {
				return err
			}
		}
		users, err := t.echoUsers(ctx, 5, 50*time.Millisecond)
		if err != nil {
			return err
		}
		begin := time.Now()
		var wg sync.WaitGroup
		for range 4 {
			l, err := t.connect(ctx)
			if err != nil {
				return err
			}
			wg.Go(func() { b.failIf(l.duplex(newFlow(each), newFlow(each)), fmt.Sprintf("transfer at %.1f %%", 100*loss)) })
		}
		wg.Wait()
		took := time.Since(begin)
		b.finishAll(users)
		echoes := roundTrips(users)
		again := t.resumes(ctx)
		b.note("%.1f %%: 4 transfers of %s each way in %s, echo p50 / p95 / max %s, %d connections of the link given up",
			100*loss, bytesText(each), seconds(took), spread(echoes), again)
		b.undisturbed(again)
		return b.allEndedWell(ctx, t)
	})
}

// L7
func thinUplink(ctx context.Context, b *bed) error {
	const rate = 256_000 / 8
	lasts := by(b, 25*time.Second, time.Minute, 10*time.Minute)
	t, err := b.tunnel(ctx, options{lab: true})
	if err != nil {
		return err
	}
	if err := t.lab.SetThin("256kbit", "4mb"); err != nil {
		return err
	}
	users, err := t.echoUsers(ctx, 2, 200*time.Millisecond)
	if err != nil {
		return err
	}
	l, err := t.connect(ctx)
	if err != nil {
		return err
	}
	begin := time.Now()
	err = l.duplex(newFlow(1000), newFlow(int64(rate*lasts.Seconds())))
	took := time.Since(begin)
	b.finishAll(users)
	echoes := roundTrips(users)
	again := t.resumes(ctx)
	b.note("%s to a user in %s, checksum equal; echo beside it p50 / p95 / max %s; %d connections of the link given up",
		bytesText(int64(rate*lasts.Seconds())), seconds(took), spread(echoes), again)
	b.undisturbed(again)
	return errors.Join(err, b.allEndedWell(ctx, t))
}
