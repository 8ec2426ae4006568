package link

// fifo is a list of streams that are linked through fields of their own, so that queueing allocates nothing. A stream is
// in a list once at the most. L names the list, and with it the field.
type fifo[L listName] struct{ head, tail *streamCore }

type hook struct {
	next   *streamCore
	queued bool
}

type listName interface{ hook(s *streamCore) *hook }

type (
	openList    struct{}
	ackList     struct{}
	delayedList struct{}
	flowList    struct{}
)

func (openList) hook(s *streamCore) *hook    { return &s.hooks[0] }
func (ackList) hook(s *streamCore) *hook     { return &s.hooks[1] }
func (delayedList) hook(s *streamCore) *hook { return &s.hooks[2] }
func (flowList) hook(s *streamCore) *hook    { return &s.hooks[3] }

// push appends s unless a list of this name holds it already.
func (q *fifo[L]) push(s *streamCore) {
	var l L
	h := l.hook(s)
	if h.queued {
		return
	}
	h.queued, h.next = true, nil
	if q.tail == nil {
		q.head = s
	} else {
		l.hook(q.tail).next = s
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
	h := l.hook(s)
	q.head = h.next
	if q.head == nil {
		q.tail = nil
	}
	h.queued, h.next = false, nil
	return s
}

func (q *fifo[L]) clear() {
	for q.pop() != nil {
	}
}
