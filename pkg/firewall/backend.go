package firewall

import (
	"context"
	"errors"
	"os/exec"
	"strings"
)

// Backend is one of the two rule sets that a kernel may have: both see every
// packet, and people look at one of them.
type Backend string

// The backends; plain is whatever the only iptables of a machine uses.
const (
	NFT    Backend = "nft"
	Legacy Backend = "legacy"
	plain  Backend = ""

	unknown Backend = "none" // not looked at yet, or none that is used
)

// program is the name of a backend's program, such as ip6tables-nft-restore.
func (b Backend) program(f Family, suffix string) string {
	name := "iptables"
	if f == IPv6 {
		name = "ip6tables"
	}
	if b != plain {
		name += "-" + string(b)
	}
	return name + suffix
}

func (b Backend) String() string {
	if b == plain {
		return "the only one there is"
	}
	return string(b)
}

// usage is what a backend holds of others.
type usage struct {
	there   bool // its program is
	kubelet bool // it has the chain by which kubelet shows which backend it uses
	rules   int  // of others
	ours    bool // it has chains of ours
}

// backends looks at what the host uses. Nothing is loaded by looking: the save
// programs print the tables that there are.
func backends(ctx context.Context) map[Backend]usage {
	all := map[Backend]usage{}
	for _, b := range []Backend{NFT, Legacy} {
		var u usage
		for _, f := range []Family{IPv4, IPv6} {
			text, err := exec.CommandContext(ctx, b.program(f, "-save")).Output() //nolint:gosec // one of four names
			u.there = u.there || !errors.Is(err, exec.ErrNotFound)
			u.add(string(text))
		}
		all[b] = u
	}
	return all
}

func (u *usage) add(saved string) {
	for line := range strings.Lines(saved) {
		switch {
		case strings.HasPrefix(line, ":KUBE-IPTABLES-HINT "), strings.HasPrefix(line, ":KUBE-KUBELET-CANARY "):
			u.kubelet = true
		case strings.HasPrefix(line, ":"+Prefix):
			u.ours = true
		case strings.HasPrefix(line, "-A ") && !strings.Contains(line, " "+Prefix):
			u.rules++
		}
	}
}

// choose takes the backend that the host uses, as Kubernetes' own images do
// (kubernetes-sigs/iptables-wrappers): kubelet's hint, else the one with more
// rules, else nft.
func choose(all map[Backend]usage) Backend {
	nft, legacy := all[NFT], all[Legacy]
	switch {
	case !nft.there && !legacy.there:
		return plain
	case !legacy.there, nft.there && nft.kubelet:
		return NFT
	case !nft.there, legacy.kubelet, legacy.rules > nft.rules:
		return Legacy
	}
	return NFT
}
