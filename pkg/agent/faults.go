package agent

import (
	"context"
	"sync"
)

// faults are the definitions that aren't gone by. Every agent finds the same ones; the leader alone writes the Events.
type faults struct {
	mu   sync.Mutex
	list []Fault
	wake chan struct{}
}

func (f *faults) set(list []Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.list = list
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// fresh are those of list that weren't told of; told holds them afterwards.
func fresh(list []Fault, told map[string]string) (now map[string]string, news []Fault) {
	now = map[string]string{}
	for _, f := range list {
		id, what := f.UID+" "+f.Ref(), f.Reason+" "+f.Err.Error()
		now[id] = what
		if told[id] != what {
			news = append(news, f)
		}
	}
	return now, news
}

// tellFaults writes Events about definitions while this agent leads.
func (a *Agent) tellFaults(ctx context.Context) error {
	var told map[string]string
	for {
		a.faults.mu.Lock()
		list := a.faults.list
		a.faults.mu.Unlock()
		var news []Fault
		told, news = fresh(list, told)
		for _, f := range news {
			a.log.Warn("a network definition isn't gone by", "definition", f.Ref(), "reason", f.Reason, "error", f.Err)
			a.event(definitionObject(f.Definition), f.Reason, "Compile", "%v", f.Err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-a.faults.wake:
		}
	}
}
