package traffic

import "sync"

// members are the connections of a key.
type members struct {
	mu    sync.Mutex
	n     int        // guarded by mu, as all below
	first *Admission // the others follow by Admission.next
}

func (m *members) add(a *Admission) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if a.next = m.first; a.next != nil {
		a.next.prev = a
	}
	m.first = a
	m.n++
}

func (m *members) remove(a *Admission) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if a.prev != nil {
		a.prev.next = a.next
	} else {
		m.first = a.next
	}
	if a.next != nil {
		a.next.prev = a.prev
	}
	a.next, a.prev = nil, nil
	m.n--
}

// all returns the connections that there are now.
func (m *members) all() []*Admission {
	m.mu.Lock()
	defer m.mu.Unlock()
	list := make([]*Admission, 0, m.n)
	for a := m.first; a != nil; a = a.next {
		list = append(list, a)
	}
	return list
}
