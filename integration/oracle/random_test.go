package oracle

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// randomTime bounds the random sequences; a call of whereabouts takes about 100 ms.
const randomTime = 25 * time.Second

var ranges = []string{"10.0.0.0/29", "10.0.0.0/28", "10.0.0.0/24", "10.0.0.8/29", "fd00:1::/125", "fd00:1::/120"}

// random drives the same random sequences through both programs on twin pools. A pod keeps its network, for moves to one that
// excludes its address, or to a second one, are divergences, and so is an earlier record in one of several ranges. The networks
// of a sequence differ in all but the first range's net: where claims of another range are met one by one, ours doesn't
// insist on the lowest free address.
func random(t *testing.T, b *bed) {
	end := time.Now().Add(randomTime)
	runs, calls, finished := 0, 0, 0
	rapid.Check(t, func(rt *rapid.T) {
		if time.Now().After(end) && finished == runs { // once one failed, rapid has to find the smallest that does
			return
		}
		runs++
		net := netip.MustParsePrefix(rapid.SampledFrom(ranges).Draw(rt, "net"))
		nets := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) network { return drawNetwork(t, net) }), 1, 3).Draw(rt, "networks")
		deeds := rapid.SliceOfN(rapid.Custom(drawDeed), 4, 12).Draw(rt, "deeds")
		w := &walk{nets: nets}
		w.theirs, w.ours = b.twins(t)
		for _, d := range deeds {
			calls++
			w.do(rt, d)
			w.compare(rt)
		}
		finished++
	})
	t.Logf("%d sequences with %d deeds", runs, calls)
	require.Greater(t, calls, 20, "too few to say anything")
}

// network is a configuration with what a test has to know of it.
type network struct {
	section string
	net     netip.Prefix // of its first range, masked
	name    string       // prefix of objects' names
	overlap bool
	exclude bool
	several bool // ranges
}

func (n network) String() string { return n.section }

func drawNetwork(t *rapid.T, net netip.Prefix) network {
	n := network{
		net:     net,
		overlap: rapid.IntRange(0, 3).Draw(t, "overlap") > 0,
		name:    rapid.SampledFrom([]string{"", "", "blue"}).Draw(t, "network_name"),
	}
	main := drawRange(t, n.net)
	n.exclude = main["exclude"] != nil
	conf := map[string]any{"enable_overlapping_ranges": n.overlap}
	if n.name != "" {
		conf["network_name"] = n.name
	}
	if rapid.Bool().Draw(t, "in ipRanges") {
		conf["ipRanges"] = []any{main}
	} else {
		for key, value := range main {
			conf[key] = value
		}
	}
	if rapid.IntRange(0, 3).Draw(t, "more") == 0 {
		more := map[string]any{"range": rapid.SampledFrom([]string{"10.7.0.0/24", "fd00:7::/64"}).Draw(t, "second")}
		list, _ := conf["ipRanges"].([]any)
		conf["ipRanges"] = append(list, more)
		n.several = true
	}
	drawRest(t, conf, n.net)
	if conf["ipRanges"] == nil && rapid.IntRange(0, 3).Draw(t, "with gateway") == 0 { // not for two families: a divergence
		conf["gateway"] = at(n.net, 1).String()
	}
	text, err := json.Marshal(conf)
	if err != nil {
		t.Fatal(err)
	}
	n.section = string(text[1 : len(text)-1])
	return n
}

// drawRest draws what goes into the result without being claimed.
func drawRest(t *rapid.T, conf map[string]any, net netip.Prefix) {
	seldom := func(what string) bool { return rapid.IntRange(0, 3).Draw(t, what) == 0 }
	if seldom("with routes") {
		routes := []map[string]string{{"dst": "172.16.0.0/12"}, {"dst": "10.200.0.0/16", "gw": "10.0.0.5"}, {"dst": "fd00:200::/32", "gw": "fd00:1::5"}}
		conf["routes"] = rapid.SliceOfN(rapid.SampledFrom(routes), 0, 3).Draw(t, "routes")
	}
	if seldom("with dns") {
		conf["dns"] = map[string]any{
			"nameservers": rapid.SliceOfN(rapid.SampledFrom([]string{"10.0.0.53", "fd00::53"}), 0, 2).Draw(t, "nameservers"),
			"domain":      rapid.SampledFrom([]string{"", "storage.example"}).Draw(t, "domain"),
			"search":      rapid.SliceOfN(rapid.Just("storage.example"), 0, 1).Draw(t, "search"),
			"options":     rapid.SliceOfN(rapid.Just("ndots:2"), 0, 1).Draw(t, "options"),
		}
	}
	if seldom("with addresses") {
		fixed := []map[string]string{
			{"address": "10.9.0.1/16"}, {"address": "10.9.0.2/16", "gateway": "10.9.255.254"}, {"address": "fd00:9::1/64"},
			{"address": fmt.Sprintf("%s/%d", at(net, 3), net.Bits())}, // not kept for this pod: as whereabouts
		}
		conf["addresses"] = rapid.SliceOfN(rapid.SampledFrom(fixed), 1, 2).Draw(t, "addresses")
	}
}

// drawRange draws a range of the net, its window and what it excludes.
func drawRange(t *rapid.T, net netip.Prefix) map[string]any {
	place := func(what string) netip.Addr { return at(net, rapid.IntRange(0, 18).Draw(t, what)) }
	bits := net.Bits()
	conf := map[string]any{"range": fmt.Sprintf("%s/%d", at(net, rapid.IntRange(0, 7).Draw(t, "host bits")), bits)}
	if rapid.IntRange(0, 3).Draw(t, "dashed") == 0 {
		from := rapid.IntRange(0, 5).Draw(t, "from")
		conf["range"] = fmt.Sprintf("%s-%s/%d", at(net, from), at(net, rapid.IntRange(from, 7).Draw(t, "to")), bits)
	}
	if rapid.IntRange(0, 3).Draw(t, "start") == 0 {
		conf["range_start"] = place("range_start").String()
	}
	if rapid.IntRange(0, 3).Draw(t, "end") == 0 {
		conf["range_end"] = place("range_end").String()
	}
	var exclude []string
	for range rapid.IntRange(0, 2).Draw(t, "excludes") {
		text := place("excluded").String()
		if rapid.Bool().Draw(t, "as a net") {
			text += fmt.Sprintf("/%d", net.Addr().BitLen()-rapid.IntRange(0, 2).Draw(t, "host length"))
		}
		exclude = append(exclude, text)
	}
	if exclude != nil {
		conf["exclude"] = exclude
	}
	return conf
}

// at is the n-th address of a net, or beyond.
func at(net netip.Prefix, n int) netip.Addr {
	a := net.Addr()
	for range n {
		a = a.Next()
	}
	return a
}

// deed is one step: what happens to which pod, or at which place of its net.
type deed struct {
	What                   string
	Pod, Key               int
	Ifname                 string
	NewSandbox, OldSandbox bool
	Args                   string // CNI_ARGS of an ADD
}

func drawDeed(t *rapid.T) deed {
	return deed{
		What: rapid.SampledFrom([]string{
			"ADD", "ADD", "ADD", "ADD", "DEL", "DEL", "foreign entry", "foreign reservation", "foreign release", "earlier record",
		}).Draw(t, "what"),
		Pod: rapid.IntRange(0, 4).Draw(t, "pod"), Key: rapid.IntRange(1, 6).Draw(t, "key"),
		Ifname:     rapid.SampledFrom([]string{"net1", "net1", "net2"}).Draw(t, "ifname"),
		NewSandbox: rapid.Bool().Draw(t, "new sandbox"), OldSandbox: rapid.IntRange(0, 3).Draw(t, "old sandbox") == 0,
		Args: rapid.SampledFrom([]string{"", "", "", "", "IP=10.9.0.7/16", "IP=10.9.0.7/16,fd00:9::7/64", "IP=10.9.0.7/16;GATEWAY=10.9.0.254", "IP=10.9.0.7", "IP=nope"}).Draw(t, "args"),
	}
}

// walk is a sequence under way.
type walk struct {
	nets         []network
	theirs, ours *side
	sandbox      [5]int   // each pod's present one
	strange      []string // entries that are no program's: pool and key
	state        string   // objects of both sides
}

func (w *walk) both() []*side { return []*side{w.theirs, w.ours} }

func (w *walk) do(t *rapid.T, d deed) {
	net := w.nets[d.Pod%len(w.nets)]
	who := attachment{pod: fmt.Sprintf("default/pod%d", d.Pod), ifName: d.Ifname}
	pool := poolName(net)
	switch d.What {
	case "ADD":
		if d.NewSandbox {
			w.sandbox[d.Pod]++
		}
		who.container = fmt.Sprintf("cid%d-%d", d.Pod, w.sandbox[d.Pod])
		w.same(t, net, who, strings.Fields(d.Args)...)
	case "DEL":
		who.container = fmt.Sprintf("cid%d-%d", d.Pod, w.sandbox[d.Pod])
		if d.OldSandbox {
			who.container = fmt.Sprintf("cid%d-%d", d.Pod, w.sandbox[d.Pod]-1)
		}
		theirs, ours := w.theirs.del(t, net.section, who), w.ours.del(t, net.section, who)
		if theirs == nil { // of a configuration that it can't read it refuses the DEL
			require.NoError(t, ours)
		}
	case "foreign entry":
		w.record(t, net, pool, entry{key: fmt.Sprint(d.Key), id: "x", pod: fmt.Sprintf("other/pod%d", d.Key), ifName: "eth0"})
	case "earlier record":
		who := entry{key: fmt.Sprint(d.Key), id: "earlier", pod: who.pod, ifName: who.ifName}
		if net.exclude || net.several || strings.Contains(w.state, " "+who.pod+" "+who.ifName) || w.reserved(net, d.Key) {
			return
		}
		if w.record(t, net, pool, who) && net.overlap {
			w.reserve(t, net, d.Key, who.pod, who.ifName)
		}
	case "foreign reservation":
		if !w.reserved(net, d.Key) {
			w.reserve(t, net, d.Key, "other/pod", "eth0")
		}
	case "foreign release":
		w.release(t)
	}
}

// same adds on both sides and compares the answers.
func (w *walk) same(t *rapid.T, net network, who attachment, args ...string) {
	theirs, ours := w.theirs.add(t, net.section, who, args...), w.ours.add(t, net.section, who, args...)
	if theirs.err == nil {
		require.NoError(t, ours.err)
		require.Equal(t, theirs.addresses, ours.addresses)
		require.Equal(t, theirs.more, ours.more)
		return
	}
	require.Error(t, ours.err, "whereabouts: %s", said(theirs.err))
	if text := said(theirs.err); strings.Contains(text, "Could not allocate") {
		require.Contains(t, said(ours.err), text)
	}
}

// record makes an entry on both sides, if its key is free.
func (w *walk) record(t *rapid.T, net network, pool string, e entry) bool {
	made := "entry " + pool + " of " + net.net.String() + " "
	if strings.Contains(w.state, made+e.key+" ") {
		return false
	}
	for _, s := range w.both() {
		s.ensurePool(t, pool, net.net.String())
		value, err := json.Marshal(map[string]string{"id": e.id, "podref": e.pod, "ifname": e.ifName})
		require.NoError(t, err)
		s.patch(t, pool, fmt.Sprintf(`[{"op": "add", "path": "/spec/allocations/%s", "value": %s}]`, e.key, value))
	}
	if e.id == "x" {
		w.strange = append(w.strange, pool+" "+e.key)
	}
	return true
}

func (w *walk) reserved(net network, key int) bool {
	return strings.Contains(w.state, "reservation "+reservation(net, key)+" ")
}

func (w *walk) reserve(t *rapid.T, net network, key int, pod, ifName string) {
	for _, s := range w.both() {
		s.reserve(t, reservation(net, key), pod, ifName)
	}
}

// release removes the oldest foreign entry on both sides.
func (w *walk) release(t *rapid.T) {
	if len(w.strange) == 0 {
		return
	}
	pool, key, _ := strings.Cut(w.strange[0], " ")
	w.strange = w.strange[1:]
	for _, s := range w.both() {
		s.patch(t, pool, `[{"op": "remove", "path": "/spec/allocations/`+key+`"}]`)
	}
}

// compare compares the twins' objects, and ours with the claims.
func (w *walk) compare(t *rapid.T) {
	w.state = w.ours.objects(t, w.ours.space)
	require.Equal(t, w.theirs.objects(t, w.theirs.space), w.state)
	var held, claimed []string
	for _, line := range strings.Split(w.state, "\n") {
		if f := strings.Fields(line); len(f) == 8 && strings.HasPrefix(f[5], "cid") {
			held = append(held, strings.Join(f[5:], " "))
		}
	}
	for _, c := range w.ours.claims(t) {
		claimed = append(claimed, c.Spec.ContainerID+" "+c.Spec.PodRef+" "+c.Spec.IfName)
	}
	sort.Strings(held)
	sort.Strings(claimed)
	require.True(t, slices.Equal(held, claimed), "entries %q, claims %q", held, claimed)
}

func poolName(n network) string {
	name := strings.NewReplacer(":", "-", "/", "-").Replace(n.net.String())
	if n.name != "" {
		name = n.name + "-" + name
	}
	return name
}

func reservation(n network, key int) string {
	name := strings.ReplaceAll(at(n.net, key).String(), ":", "-")
	if n.name != "" {
		name = n.name + "-" + name
	}
	return name
}
