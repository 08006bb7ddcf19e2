package agent

import (
	"maps"
	"net/netip"
	"sync"
	"time"

	"github.com/lhstorage/lhstorage/pkg/kernel"
)

// observed is what passes have looked at: what the kernel's messages are sifted by, and the sysctls that are read again every second
// (the kernel tells of few of them, arp_ignore isn't among those, and inotify doesn't see /proc).
type observed struct {
	mu      sync.Mutex
	names   map[string]bool
	indexes map[int]bool
	sysctls map[string]string
	made    map[floodChange]time.Time // what passes did themselves, of which the kernel's message is yet to come
}

// floodChange is that an entry for unknown destinations comes or goes.
type floodChange struct {
	index int
	vtep  netip.Addr
	gone  bool
}

// messageTime is how long after a change the kernel's message of it may be read.
const messageTime = 2 * time.Second

// making notes a change that a pass is about to make: the message of it is no reason for another pass.
func (o *observed) making(c floodChange) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.made == nil {
		o.made = map[floodChange]time.Time{}
	}
	o.made[c] = time.Now()
}

// isOwn says that a pass made a change, and forgets it: the same one made once more is another's.
func (o *observed) isOwn(c floodChange) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	at, ok := o.made[c]
	delete(o.made, c)
	return ok && time.Since(at) <= messageTime
}

// begin forgets what earlier passes looked at, and the changes whose messages never came.
func (o *observed) begin() {
	o.mu.Lock()
	defer o.mu.Unlock()
	maps.DeleteFunc(o.made, func(_ floodChange, at time.Time) bool { return time.Since(at) > messageTime })
	o.names, o.indexes, o.sysctls = map[string]bool{}, map[int]bool{}, map[string]string{}
}

func (o *observed) link(name string, index int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.names[name] = true
	if index != 0 {
		o.indexes[index] = true
	}
}

func (o *observed) sysctl(path, value string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.sysctls[path] = value
}

// concerns says whether a device is one of those looked at. Before the first pass every one may be.
func (o *observed) concerns(name string, index int) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.names == nil || o.names[name] || o.indexes[index]
}

// changed reads the sysctls again; a path whose value is another by now, "" for none.
func (o *observed) changed(k kernel.Kernel) string {
	o.mu.Lock()
	known := maps.Clone(o.sysctls)
	o.mu.Unlock()
	for path, value := range known {
		if now, err := k.Sysctl(path); err == nil && now != value {
			return path
		}
	}
	return ""
}

// observing is a kernel that notes what is looked at, and which flood entries are changed.
type observing struct {
	kernel.Kernel
	seen *observed
}

// Link implements kernel.Kernel.
func (k observing) Link(name string) (kernel.Link, error) {
	link, err := k.Kernel.Link(name)
	k.seen.link(name, link.Index)
	return link, err
}

// Sysctl implements kernel.Kernel.
func (k observing) Sysctl(path string) (string, error) {
	value, err := k.Kernel.Sysctl(path)
	if err == nil {
		k.seen.sysctl(path, value)
	}
	return value, err
}

// SetSysctl implements kernel.Kernel.
func (k observing) SetSysctl(path, value string) error {
	err := k.Kernel.SetSysctl(path, value)
	if err == nil {
		k.seen.sysctl(path, value)
	}
	return err
}

// AddFlood implements kernel.Kernel.
func (k observing) AddFlood(index int, vtep netip.Addr) error {
	k.seen.making(floodChange{index: index, vtep: vtep})
	return k.Kernel.AddFlood(index, vtep)
}

// DelFlood implements kernel.Kernel.
func (k observing) DelFlood(index int, vtep netip.Addr) error {
	k.seen.making(floodChange{index: index, vtep: vtep, gone: true})
	return k.Kernel.DelFlood(index, vtep)
}
