package agent

import (
	"maps"
	"sync"

	"github.com/lhstorage/lhstorage/pkg/kernel"
)

// observed is what passes have looked at: what the kernel's messages are sifted by, and the sysctls that are read again every second
// (the kernel tells of few of them, arp_ignore isn't among those, and inotify doesn't see /proc).
type observed struct {
	mu      sync.Mutex
	names   map[string]bool
	indexes map[int]bool
	sysctls map[string]string
}

// begin forgets what earlier passes looked at.
func (o *observed) begin() {
	o.mu.Lock()
	defer o.mu.Unlock()
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

// observing is a kernel that notes what is looked at.
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
