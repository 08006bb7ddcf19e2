package ipam

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// object is a JSON object whose keys are taken one by one: so each wrong value is a fault of
// its own, and what is left at the end is unknown. Keys match without regard to case, as
// they do for Whereabouts.
type object struct {
	p    *parser
	path string
	keys map[string]json.RawMessage // by lower-case key
}

func (p *parser) object(path string, raw json.RawMessage) (*object, bool) {
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(raw, &keys); err != nil || keys == nil {
		return nil, false
	}
	o := &object{p: p, path: path, keys: map[string]json.RawMessage{}}
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		lower := strings.ToLower(key)
		if _, twice := o.keys[lower]; twice {
			p.fault(o.key(key), keys[key], "the key is given twice")
			continue
		}
		o.keys[lower] = keys[key]
	}
	return o, true
}

func (o *object) key(key string) string {
	if o.path == "" {
		return key
	}
	return o.path + "." + key
}

// take removes a key and returns its value; null counts as absent, as it does for
// encoding/json, but for the attachments of GC: there null is an empty list.
func (o *object) take(key string) (json.RawMessage, bool) {
	lower := strings.ToLower(key)
	raw, ok := o.keys[lower]
	delete(o.keys, lower)
	if ok && string(raw) == "null" && !strings.HasPrefix(key, "cni.dev/") {
		return nil, false
	}
	return raw, ok
}

// read takes a key and reads its value into dst; a value of another type is a fault. It
// returns the value as written, nil when the key is absent.
func (o *object) read(key string, dst any) json.RawMessage {
	raw, given := o.take(key)
	if !given {
		return nil
	}
	if err := json.Unmarshal(raw, dst); err != nil {
		o.p.fault(o.key(key), raw, "must be %s", wanted(dst))
	}
	return raw
}

func wanted(dst any) string {
	switch dst.(type) {
	case *string:
		return "a string"
	case *bool:
		return "true or false"
	default:
		return "an object such as {\"nameservers\": [\"10.0.0.10\"]}"
	}
}

// addr takes an address; invalid when the key is absent, empty or faulty.
func (o *object) addr(key string) netip.Addr {
	var text string
	raw := o.read(key, &text)
	if text == "" {
		return netip.Addr{}
	}
	addr, err := parseAddr(text)
	if err != nil {
		o.p.fault(o.key(key), raw, "must be an IPv4 or IPv6 address")
	}
	return addr
}

// list takes a list of anything.
func (o *object) list(key string) []json.RawMessage {
	raw, given := o.take(key)
	if !given {
		return nil
	}
	var list []json.RawMessage
	if err := json.Unmarshal(raw, &list); err != nil {
		o.p.fault(o.key(key), raw, "must be a list")
	}
	return list
}

// texts takes a list of strings. With single, one string may stand for a list of one.
func (o *object) texts(key string, single bool) []string {
	raw, given := o.take(key)
	if !given {
		return nil
	}
	var one string
	if single && json.Unmarshal(raw, &one) == nil {
		if one == "" {
			return nil
		}
		return []string{one}
	}
	var list []string
	if err := json.Unmarshal(raw, &list); err != nil {
		want := "a list of strings"
		if single {
			want = "a string or a list of strings"
		}
		o.p.fault(o.key(key), raw, "must be %s", want)
	}
	return list
}

func (o *object) ignore(keys ...string) {
	for _, key := range keys {
		_, _ = o.take(key)
	}
}

// fill takes over the values of the flat file for keys that o leaves out or empty, but for
// enable_overlapping_ranges, whose empty value has a meaning. Sections are filled key by
// key.
func (o *object) fill(flat *object) {
	for key, value := range flat.keys {
		own := o.keys[key]
		switch {
		case key == "enable_overlapping_ranges":
		case empty(own):
			o.keys[key] = value
		case key == "kubernetes" || key == "dns":
			o.keys[key] = filled(own, value)
		}
	}
}

// filled is the object own with the keys of more that it leaves out or empty.
func filled(own, more json.RawMessage) json.RawMessage {
	var a, b map[string]json.RawMessage
	if json.Unmarshal(own, &a) != nil || json.Unmarshal(more, &b) != nil {
		return own
	}
	for key, value := range b {
		if empty(a[key]) {
			a[key] = value
		}
	}
	merged, err := json.Marshal(a)
	if err != nil {
		return own
	}
	return merged
}

func empty(raw json.RawMessage) bool {
	switch string(raw) {
	case "", "null", `""`, "[]", "{}", "0", "false":
		return true
	default:
		return false
	}
}

// warnUnknown notes the keys that nobody took. They are no faults because Whereabouts
// passes over them, and its configurations must work here.
func (o *object) warnUnknown() {
	for _, key := range slices.Sorted(maps.Keys(o.keys)) {
		o.p.warn("%s %s: unknown key, it has no effect", o.key(key), written(o.keys[key]))
	}
}

// written is a JSON value on one line, short enough to be read; empty for no value.
func written(raw json.RawMessage) string {
	const limit = 120
	if raw == nil {
		return ""
	}
	var line bytes.Buffer
	if json.Compact(&line, raw) != nil {
		line.Reset()
		fmt.Fprintf(&line, "%.120q", raw)
	}
	text := strings.ToValidUTF8(line.String(), "\uFFFD")
	if len(text) > limit {
		return strings.ToValidUTF8(text[:limit], "") + "…"
	}
	return text
}
