package sys

import (
	"context"
	"testing"
	"testing/synctest"
)

// TestPool: links keep some descriptors whatever users and listeners take, the operator keeps some whatever all of them take.
func TestPool(t *testing.T) {
	for _, limit := range []int{64, 256, 1024, 1 << 20} {
		p := NewPool(limit, 12)
		take := func(u Use) (n int) {
			for p.Take(u) {
				n++
			}
			return n
		}
		free := p.Free(ForUsers)
		users := take(ForUsers)
		if users != free || users != p.Size(ForUsers) || p.Taken(ForUsers) != users {
			t.Errorf("limit %d: %d users, %d were free", limit, users, free)
		}
		if p.Take(ForListeners) || p.Free(ForListeners) != 0 {
			t.Errorf("limit %d: a listener took one more than users leave", limit)
		}
		links := take(ForLinks)
		if most := min(keptForLinks, users); links < most {
			t.Errorf("limit %d: %d for links beside %d users, want %d", limit, links, users, most)
		}
		if left := limit - users - links; left < forOperator+forItself {
			t.Errorf("limit %d: %d are left for everything else", limit, left)
		}
		p.Return(ForLinks, links)
		if hellos := take(ForHellos); hellos == 0 || hellos > lentToHellos {
			t.Errorf("limit %d: %d for hellos beside %d users, want some", limit, hellos, users)
		} else if got := take(ForLinks); got != links-hellos {
			t.Errorf("limit %d: %d for links beside %d hellos, want the rest of %d", limit, got, hellos, links)
		} else if p.Return(ForHellos, hellos); take(ForLinks) != hellos {
			t.Errorf("limit %d: links do not get what hellos gave back", limit)
		}
		p.Return(ForUsers, users)
		if n := p.Free(ForUsers); n != users {
			t.Errorf("limit %d: %d users are free again, want %d", limit, n, users)
		}
		p.Return(ForLinks, links)
		if n := take(ForLinks); n != p.Size(ForLinks) || n <= links {
			t.Errorf("limit %d: links alone get %d, want %d", limit, n, p.Size(ForLinks))
		}
		if p.Take(ForUsers) {
			t.Errorf("limit %d: a user took one more than links leave", limit)
		}
	}
}

// TestPoolAwait: who waits is called once, when something is given back, and may take it.
func TestPoolAwait(t *testing.T) {
	p := NewPool(64, 0)
	p.Force(ForLinks, p.Size(ForLinks)+3) // as of another process
	n := 0
	p.Await(func() {
		n++
		if p.Take(ForLinks) {
			t.Error("there were more than there may be")
		}
		p.Await(func() {
			n++
			if !p.Take(ForLinks) {
				t.Error("one is free")
			}
		})
	})
	p.Give(ForLinks)
	if n != 1 {
		t.Fatalf("called %d times", n)
	}
	p.Return(ForLinks, 3)
	p.Give(ForLinks)
	if n != 2 {
		t.Errorf("called %d times", n)
	}
}

// TestPoolAcquire: who asks waits until there is a descriptor, or no longer wants one.
func TestPoolAcquire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := NewPool(64, 0)
		for range p.Size(ForLinks) {
			if !p.Acquire(t.Context(), ForLinks) {
				t.Fatal("there are some")
			}
		}
		got := make(chan bool, 2)
		ctx, cancel := context.WithCancel(t.Context())
		go func() { got <- p.Acquire(ctx, ForLinks) }()
		synctest.Wait()
		if len(got) != 0 {
			t.Error("there was one more")
		}
		p.Give(ForLinks)
		if !<-got {
			t.Error("Acquire = false")
		}
		go func() { got <- p.Acquire(ctx, ForLinks) }()
		synctest.Wait()
		cancel()
		if <-got {
			t.Error("Acquire = true at the end")
		}
	})
}
