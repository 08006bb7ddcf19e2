package probe

import (
	"fmt"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
)

// LinkBytes are an interface's counters since it was made, in bytes.
type LinkBytes struct {
	Tx uint64
	Rx uint64
}

// Counters reads the counters of all interfaces in the calling thread's network
// namespace, by interface name.
func Counters() (map[string]LinkBytes, error) {
	links, err := netlinksafe.LinkList()
	if err != nil {
		return nil, fmt.Errorf("read the interfaces' byte counters: %w", err)
	}
	counters := make(map[string]LinkBytes, len(links))
	for _, link := range links {
		attrs := link.Attrs()
		if attrs.Statistics == nil {
			return nil, fmt.Errorf("read the interfaces' byte counters: the kernel gave none for %s", attrs.Name)
		}
		counters[attrs.Name] = LinkBytes{Tx: attrs.Statistics.TxBytes, Rx: attrs.Statistics.RxBytes}
	}
	return counters, nil
}
