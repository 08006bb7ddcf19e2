package iscsipath

import (
	"slices"
	"strings"

	"github.com/lhstorage/lhstorage/pkg/kernel"
)

// IsTarget says whether a pod (namespace/name) is one that the initiator dials: Longhorn's instance managers, by the names that Longhorn gives them.
func IsTarget(pod string) bool {
	_, name, _ := strings.Cut(pod, "/")
	return strings.HasPrefix(name, "instance-manager-")
}

// Dump are a pod's interfaces in the order of an address dump of its kernel, those without addresses last: what Longhorn goes by.
func Dump(links []kernel.Link, addrs []kernel.Addr) []Iface {
	var list []Iface
	at := func(index int) int {
		return slices.IndexFunc(list, func(f Iface) bool { return f.Index == index })
	}
	for _, a := range addrs {
		i := at(a.Link)
		if i < 0 {
			list = append(list, Iface{Index: a.Link, Name: nameOf(links, a.Link)})
			i = len(list) - 1
		}
		list[i].Addrs = append(list[i].Addrs, a.Prefix.Addr())
	}
	for _, l := range links {
		if at(l.Index) < 0 {
			list = append(list, Iface{Index: l.Index, Name: l.Name})
		}
	}
	return list
}

func nameOf(links []kernel.Link, index int) string {
	for _, l := range links {
		if l.Index == index {
			return l.Name
		}
	}
	return ""
}
