package netconf

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Sections of a NetConf are read key by key instead of into one struct by
// encoding/json: that stops at the first wrong type, takes the last of two equal
// keys without a word, and loses how a value was written.

// opt is a value that may be absent, with the text that it was written as.
type opt[T any] struct {
	val T
	raw json.RawMessage // nil when absent; null and empty strings count as absent, as they do for the stock plugins
	bad bool            // written, but a fault: val is the zero value
}

func (o opt[T]) given() bool  { return o.raw != nil && !o.bad }
func (o opt[T]) absent() bool { return o.raw == nil }

func (o *opt[T]) spoil(raw json.RawMessage) { *o = opt[T]{raw: raw, bad: true} }

// or is the value, or def where none was written.
func (o opt[T]) or(def T) T {
	if o.given() {
		return o.val
	}
	return def
}

// field is a key that a section knows: either a value with its reader or a section
// of its own.
type field struct {
	key  string
	read func(r *report, path string, raw json.RawMessage)
	sub  []field
	keep *json.RawMessage // where the text of a section goes
}

// section reads the JSON object raw, found at path, into fields. Keys match as they
// do in encoding/json, without regard to case if need be, because that is how the
// plugins read whose configuration must work here. Unknown keys are faults unless
// allow says otherwise; an open section has no unknown keys.
func (r *report) section(path string, raw json.RawMessage, fields []field, allow func(key string) bool) {
	list, ok := members(raw)
	if !ok {
		r.fault(path, raw, "must be an object")
		return
	}
	seen := map[string]bool{}
	for _, m := range list {
		f := lookup(fields, m.key)
		switch {
		case f == nil && allow(m.key):
			continue
		case f == nil:
			r.fault(join(path, m.key), m.value, "unknown key%s", suggestion(path, m.key, fields))
			continue
		case seen[f.key]:
			r.fault(join(path, f.key), m.value, "the key is given twice")
			continue
		}
		seen[f.key] = true
		switch {
		case isNull(m.value) && f.key != keyAttachments && f.key != keyAttachmentsAlias:
		case f.sub != nil:
			*f.keep = m.value
			r.section(join(path, f.key), m.value, f.sub, none)
		default:
			f.read(r, join(path, f.key), m.value)
		}
	}
}

func none(string) bool { return false }
func open(string) bool { return true }

func lookup(fields []field, key string) *field {
	for i := range fields {
		if fields[i].key == key {
			return &fields[i]
		}
	}
	for i := range fields {
		if strings.EqualFold(fields[i].key, key) {
			return &fields[i]
		}
	}
	return nil
}

// join makes the path of a key. A key that would garble a line of text is quoted.
func join(path, key string) string {
	if !plainKey(key) {
		key = shorten(strconv.Quote(key))
	}
	if path == "" {
		return key
	}
	return path + "." + key
}

func plainKey(key string) bool {
	odd := func(c rune) bool {
		return c != '_' && c != '-' && c != '/' && c != '.' &&
			(c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z')
	}
	return key != "" && len(key) <= 64 && !strings.ContainsFunc(key, odd)
}

func at(path string, i int) string { return fmt.Sprintf("%s[%d]", path, i) }

// text reads a string.
func text(key string, dst *opt[string]) field {
	return field{key: key, read: func(r *report, path string, raw json.RawMessage) {
		var s string
		if json.Unmarshal(raw, &s) != nil {
			r.fault(path, raw, "must be a string")
			dst.spoil(raw)
			return
		}
		if s != "" {
			*dst = opt[string]{val: s, raw: raw}
		}
	}}
}

// flag reads a boolean.
func flag(key string, dst *opt[bool]) field {
	return field{key: key, read: func(r *report, path string, raw json.RawMessage) {
		var b bool
		if json.Unmarshal(raw, &b) != nil {
			r.fault(path, raw, "must be true or false")
			dst.spoil(raw)
			return
		}
		*dst = opt[bool]{val: b, raw: raw}
	}}
}

// integer reads a whole number from lo to hi.
func integer(key string, dst *opt[int], lo, hi int) field {
	return number(key, dst, fmt.Sprintf("must be a whole number from %d to %d", lo, hi), func(n int64) bool {
		return n >= int64(lo) && n <= int64(hi)
	})
}

// mtuField reads an MTU. 68 is the least that IPv4 allows (RFC 791), 65535 the
// kernel's own limit.
func mtuField(key string, dst *opt[int]) field {
	return number(key, dst, "must be 0 (worked out) or a whole number from 68 to 65535, in bytes", func(n int64) bool {
		return n == 0 || n >= 68 && n <= 65535
	})
}

func number(key string, dst *opt[int], want string, fits func(int64) bool) field {
	return field{key: key, read: func(r *report, path string, raw json.RawMessage) {
		n, err := strconv.ParseInt(string(raw), 10, 64)
		if err != nil || !fits(n) {
			r.fault(path, raw, "%s", want)
			dst.spoil(raw)
			return
		}
		*dst = opt[int]{val: int(n), raw: raw}
	}}
}

// choice reads one of a few words.
func choice(key string, dst *opt[string], words ...string) field {
	plain := text(key, dst)
	return field{key: key, read: func(r *report, path string, raw json.RawMessage) {
		plain.read(r, path, raw)
		if !dst.given() || slices.Contains(words, dst.val) {
			return
		}
		hint := ""
		if near := nearest(dst.val, words); near != "" {
			hint = fmt.Sprintf("; did you mean %q?", near)
		}
		r.fault(path, raw, "must be one of %s%s", strings.Join(words, ", "), hint)
		dst.spoil(raw)
	}}
}

// texts reads a list of strings. With single, one string may stand for a list of
// one; empty ones count as absent.
func texts(key string, dst *opt[[]string], single bool) field {
	want := "must be a list of strings"
	if single {
		want = "must be a string or a list of strings"
	}
	return field{key: key, read: func(r *report, path string, raw json.RawMessage) {
		values, ok := stringList(raw, single)
		if !ok {
			r.fault(path, raw, "%s", want)
			dst.spoil(raw)
			return
		}
		if len(values) > 0 {
			*dst = opt[[]string]{val: values, raw: raw}
		}
	}}
}

func stringList(raw json.RawMessage, single bool) ([]string, bool) {
	var one string
	if single && json.Unmarshal(raw, &one) == nil {
		return nonEmpty([]string{one}), true
	}
	var list []*string // encoding/json would turn a null in a []string into an empty one
	if json.Unmarshal(raw, &list) != nil || slices.Contains(list, nil) {
		return nil, false
	}
	values := make([]string, len(list))
	for i, s := range list {
		values[i] = *s
	}
	if single {
		values = nonEmpty(values)
	}
	return values, true
}

func nonEmpty(list []string) []string {
	return slices.DeleteFunc(list, func(s string) bool { return s == "" })
}

// verbatim keeps a value as it is.
func verbatim(key string, dst *json.RawMessage) field {
	return field{key: key, read: func(_ *report, _ string, raw json.RawMessage) { *dst = raw }}
}

// object keeps an object as it is.
func object(key string, dst *json.RawMessage) field {
	return field{key: key, read: func(r *report, path string, raw json.RawMessage) {
		if raw[0] != '{' {
			r.fault(path, raw, "must be an object")
			return
		}
		*dst = raw
	}}
}

// ignored is a key that others read.
func ignored(key string) field {
	return field{key: key, read: func(*report, string, json.RawMessage) {}}
}

func isNull(raw json.RawMessage) bool { return string(raw) == "null" }

// member is one key of a JSON object with its value as written, which is
// data[start:end] of the object's text.
type member struct {
	key        string
	value      json.RawMessage
	start, end int
}

// members splits the text of a valid JSON value into its members, in their order.
// It says false when the value isn't an object.
func members(data json.RawMessage) ([]member, bool) {
	dec := json.NewDecoder(bytes.NewReader(data))
	if open, err := dec.Token(); err != nil || open != json.Delim('{') {
		return nil, false
	}
	var list []member
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			return nil, false
		}
		m := member{key: fmt.Sprint(key)}
		if err := dec.Decode(&m.value); err != nil {
			return nil, false
		}
		m.end = int(dec.InputOffset())
		m.start = m.end - len(m.value)
		list = append(list, m)
	}
	return list, true
}

// elements splits a JSON list; false when the value isn't one.
func elements(data json.RawMessage) ([]json.RawMessage, bool) {
	var list []json.RawMessage
	if json.Unmarshal(data, &list) != nil {
		return nil, false
	}
	return list, true
}

// setMember is the object data with key's value replaced, or added at its end. All
// other bytes stay as they are.
func setMember(data json.RawMessage, key string, value json.RawMessage) json.RawMessage {
	list, ok := members(data)
	if !ok {
		return data
	}
	for i := len(list) - 1; i >= 0; i-- {
		if m := list[i]; strings.EqualFold(m.key, key) {
			return concat(data[:m.start], value, data[m.end:])
		}
	}
	last := bytes.LastIndexByte(data, '}')
	comma := ""
	if len(list) > 0 {
		comma = ","
	}
	return concat(bytes.TrimRight(data[:last], " \t\r\n"), []byte(comma), quote(key), []byte(":"), value, data[last:])
}

// dropMembers is the object data without keys.
func dropMembers(data json.RawMessage, keys ...string) json.RawMessage {
	list, _ := members(data)
	var parts [][]byte
	for _, m := range list {
		drop := false
		for _, key := range keys {
			drop = drop || strings.EqualFold(m.key, key)
		}
		if !drop {
			parts = append(parts, concat(quote(m.key), []byte(":"), m.value))
		}
	}
	return concat([]byte("{"), bytes.Join(parts, []byte(",")), []byte("}"))
}

// array is the JSON list of elements.
func array(list []json.RawMessage) json.RawMessage {
	parts := make([][]byte, len(list))
	for i, e := range list {
		parts[i] = e
	}
	return concat([]byte("["), bytes.Join(parts, []byte(",")), []byte("]"))
}

func quote(s string) json.RawMessage {
	q, _ := json.Marshal(s) //nolint:errchkjson // a string can always be written
	return q
}

func concat(parts ...[]byte) json.RawMessage { return bytes.Join(parts, nil) }
