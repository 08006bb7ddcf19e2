package nad

import (
	"bytes"
	"encoding/json"
	"maps"
	"slices"
	"strings"
)

// order is that of keys; others follow, by the alphabet.
var order = []string{
	"cniVersion", "cniVersions", "name", "type", "device", "vlan", "vni", "port", "parent", "master", "hostShim", "mode", "mtu", "iscsiPath",
	"cidr", "interface", "range", "range_start", "range_end", "subnet",
}

// late are keys that come after all others.
var late = []string{"vtep", "ipam", "plugins"}

// width is up to where an object or a list stands on one line.
const width = 110

// String is the configuration as indented JSON, short parts of it on one line each.
func (c Config) String() string {
	// The top level is never one line: it is what people compare.
	return text(plain(c), "", true)
}

// plain is value as encoding/json reads it, so that all kinds of it are few.
func plain(value any) any {
	data, err := json.Marshal(value)
	if err != nil {
		return nil
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.UseNumber() // a large number stays as it is written
	var out any
	if decoder.Decode(&out) != nil {
		return nil
	}
	return out
}

func text(value any, indent string, broken bool) string {
	var parts []string
	open, closing := "[", "]"
	switch v := value.(type) {
	case map[string]any:
		open, closing = "{", "}"
		for _, key := range sorted(v) {
			parts = append(parts, scalar(key)+": "+text(v[key], indent+"  ", false))
		}
	case []any:
		for _, entry := range v {
			parts = append(parts, text(entry, indent+"  ", false))
		}
	default:
		return scalar(value)
	}
	line := open + strings.Join(parts, ", ") + closing
	if len(parts) == 0 || !broken && len(indent)+len(line) <= width && !strings.Contains(line, "\n") {
		return line
	}
	inner := "\n" + indent + "  "
	return open + inner + strings.Join(parts, ","+inner) + "\n" + indent + closing
}

func scalar(value any) string {
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(value); err != nil {
		return "null" // what came from a decoder can be encoded
	}
	return strings.TrimSuffix(out.String(), "\n")
}

func sorted(object map[string]any) []string {
	rank := func(key string) int {
		if i := slices.Index(order, key); i >= 0 {
			return i
		}
		return len(order) + 1 + slices.Index(late, key)
	}
	keys := slices.Sorted(maps.Keys(object))
	slices.SortStableFunc(keys, func(a, b string) int { return rank(a) - rank(b) })
	return keys
}
