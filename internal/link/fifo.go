package link

// fifo is a list of streams that are linked through fields of their own, so that queueing allocates nothing. A stream is
// in a list once at the most. L names the list, and with it the field.
type fifo[L listName] struct{ head, tail *streamCore }

// hooks is a stream's place in each list.
type hooks struct {
	next   [4]*streamCore
	queued [4]bool
}

type listName interface{ index() int }

type (
	openList    struct{}
	ackList     struct{}
	delayedList struct{}
	flowList    struct{}
)

func (openList) index() int    { return 0 }
func (ackList) index() int     { return 1 }
func (delayedList) index() int { return 2 }
func (flowList) index() int    { return 3 }

// holds reports whether s is in the list.
func (q *fifo[L]) holds(s *streamCore) bool {
	var l L
	return s.hooks.queued[l.index()]
}

// push appends s unless a list of this name holds it already.
func (q *fifo[L]) push(s *streamCore) {
	var l L
	i := l.index()
	if s.hooks.queued[i] {
		return
	}
	s.hooks.queued[i], s.hooks.next[i] = true, nil
	if q.tail == nil {
		q.head = s
	} else {
		q.tail.hooks.next[i] = s
	}
	q.tail = s
}

// pop removes the first stream, nil when there is none.
func (q *fifo[L]) pop() *streamCore {
	s := q.head
	if s == nil {
		return nil
	}
	var l L
	i := l.index()
	q.head = s.hooks.next[i]
	if q.head == nil {
		q.tail = nil
	}
	s.hooks.queued[i], s.hooks.next[i] = false, nil
	return s
}

func (q *fifo[L]) clear() {
	for q.pop() != nil {
	}
}
