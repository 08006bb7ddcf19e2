package longhorn

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/lhstorage/lhstorage/pkg/netconf"
)

// storageInterface is what Longhorn calls the interface.
const storageInterface = "lhnet1"

// Ref names a NetworkAttachmentDefinition; the zero value is the network of all pods.
type Ref struct {
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name,omitempty"`
}

// ParseRef reads the value of Longhorn's setting: `namespace/name`, or nothing. Longhorn itself takes anything with one slash.
func ParseRef(text string) (Ref, error) {
	if text == "" {
		return Ref{}, nil
	}
	namespace, name, ok := strings.Cut(text, "/")
	if !ok || namespace == "" || name == "" || strings.ContainsAny(text, " \t\n") || strings.Contains(name, "/") {
		return Ref{}, fmt.Errorf("network %q: want namespace/name of a NetworkAttachmentDefinition", text)
	}
	return Ref{namespace, name}, nil
}

// String is the setting's value.
func (r Ref) String() string {
	if r.None() {
		return ""
	}
	return r.Namespace + "/" + r.Name
}

// None says that it is the network of all pods.
func (r Ref) None() bool { return r == Ref{} }

// words names the network for people.
func (r Ref) words() string {
	if r.None() {
		return "the pod network"
	}
	return r.String()
}

// Annotation is what Longhorn writes on its pods to ask for the network, to the letter: it compares it so (v1.7 to v1.10).
func (r Ref) Annotation() string {
	if r.None() {
		return ""
	}
	return `[{"namespace": "` + r.Namespace + `", "name": "` + r.Name + `", "interface": "` + storageInterface + `"}]`
}

// asks says whether an annotation asks for the network and no other; how it is written doesn't matter, for that may change.
func (r Ref) asks(annotation string) bool {
	if annotation == r.Annotation() || r.None() {
		return annotation == r.Annotation()
	}
	var list []struct {
		Namespace string `json:"namespace"`
		Name      string `json:"name"`
	}
	return json.Unmarshal([]byte(annotation), &list) == nil && len(list) == 1 && Ref{list[0].Namespace, list[0].Name} == r
}

// storageAddress is the address that Longhorn takes from a pod's network-status: that of the entry with the network's name, the
// first as strings are sorted.
func (r Ref) storageAddress(status string) (netip.Addr, error) {
	var entries []struct {
		Name string   `json:"name"`
		IPs  []string `json:"ips"`
	}
	if status == "" {
		return netip.Addr{}, errors.New("there is no network-status, which Multus writes")
	}
	if err := json.Unmarshal([]byte(status), &entries); err != nil {
		return netip.Addr{}, fmt.Errorf("network-status can't be read: %w", err)
	}
	for _, e := range entries {
		switch {
		case e.Name != r.String():
		case len(e.IPs) == 0:
			return netip.Addr{}, fmt.Errorf("network-status lists no address on %s (an empty list makes longhorn-manager crash)", r)
		default:
			addr, err := netip.ParseAddr(slices.Min(e.IPs))
			if err != nil {
				return netip.Addr{}, fmt.Errorf("network-status has %q as the address on %s, which isn't one", slices.Min(e.IPs), r)
			}
			return addr, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("network-status has no entry for %s: the pod has no %s", r, storageInterface)
}

// shape is what is read of a network's configuration, whatever its plugin.
type shape struct {
	Name     string // the network's
	Type     string // of the main plugin
	IPAM     string
	Parent   string         // the device that lhstorage makes or uses; empty for other plugins
	Ranges   []netip.Prefix // of addresses of pods; empty: not known
	Hosts    []netip.Prefix // kept for nodes
	Excluded []netip.Prefix
	Faults   []string // what is wrong with it
}

// read reads a configuration. All that is wrong is in Faults.
func read(name, config string) shape {
	var whole map[string]json.RawMessage
	if err := json.Unmarshal([]byte(config), &whole); err != nil {
		return shape{Faults: []string{fmt.Sprintf("the configuration isn't a JSON object: %v", err)}}
	}
	plugins := []map[string]json.RawMessage{whole}
	if list, ok := whole["plugins"]; ok {
		plugins = nil
		if err := json.Unmarshal(list, &plugins); err != nil || len(plugins) == 0 {
			return shape{Faults: []string{"plugins isn't a list of objects"}}
		}
	}
	main, chained := plugins[0], false
	for i, p := range plugins { // ours says more, wherever it stands
		if unquote(p["type"]) == netconf.DefaultType {
			main, chained = p, i > 0
		}
	}
	if main == nil || plugins[0] == nil {
		return shape{Faults: []string{"the configuration isn't a JSON object: it is null, or its first plugin is"}}
	}
	for _, key := range []string{"name", "cniVersion"} { // of the list, as the runtime hands them down
		if value, ok := whole[key]; ok {
			main[key] = value
		}
	}
	if unquote(main["name"]) == "" { // as Multus does
		main["name"] = json.RawMessage(strconv.Quote(name)) // a Kubernetes name
	}
	conf, err := json.Marshal(main)
	if err != nil {
		return shape{Faults: []string{err.Error()}}
	}
	s := describe(conf, unquote(main["type"]), chained)
	s.Name = unquote(main["name"])
	if chained { // the addresses are the first plugin's
		first, err := json.Marshal(plugins[0])
		if err != nil {
			return shape{Faults: []string{err.Error()}}
		}
		s.addresses(netconf.Lenient(first, ""))
		s.Type = unquote(plugins[0]["type"])
	}
	return s
}

func describe(conf []byte, plugin string, chained bool) shape {
	plan := netconf.Lenient(conf, "")
	s := shape{Type: plugin}
	if plugin == netconf.DefaultType {
		s.Parent = plan.Parent.Name
		if _, err := netconf.Parse(netconf.Add, conf, ""); err != nil && !chained {
			s.Faults = faultsOf(err)
		}
	}
	s.addresses(plan)
	if plan.HostShim != nil {
		s.Hosts = plan.HostShim.Ranges
	}
	return s
}

func (s *shape) addresses(plan *netconf.Plan) {
	s.IPAM, s.Ranges, s.Excluded = plan.IPAM.Type, plan.IPAM.Ranges, plan.IPAM.Excluded
}

func faultsOf(err error) []string {
	var all *netconf.Error
	if !errors.As(err, &all) {
		return []string{err.Error()}
	}
	var texts []string
	for _, f := range all.Faults {
		texts = append(texts, f.String())
	}
	return texts
}

func unquote(raw json.RawMessage) string {
	var text string
	if json.Unmarshal(raw, &text) != nil {
		return ""
	}
	return text
}

// holds says whether an address is one that the network gives to pods; where its ranges can't be read, any is.
func (s shape) holds(addr netip.Addr) bool {
	within := func(p netip.Prefix) bool { return p.Contains(addr) }
	return len(s.Ranges) == 0 || slices.ContainsFunc(s.Ranges, within) && !slices.ContainsFunc(s.Hosts, within)
}

// texts of ranges, for messages.
func (s shape) rangesText() string {
	var texts []string
	for _, r := range s.Ranges {
		texts = append(texts, r.String())
	}
	return strings.Join(texts, ", ")
}

// canonical is a configuration without what means nothing: white space and the order of keys.
func canonical(config string) string {
	var value any
	if json.Unmarshal([]byte(config), &value) != nil {
		return config
	}
	data, err := json.Marshal(value)
	if err != nil {
		return config
	}
	return string(data)
}
