package netconf

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/lhstorage/lhstorage/pkg/cnierr"
)

// Fault is one thing that is wrong with a NetConf or with CNI_ARGS.
type Fault struct {
	Key     string      // path of the key, such as parent.vtep.cidr or CNI_ARGS MAC
	Value   string      // the value as it was written, in JSON where it came from JSON; empty when the key is missing
	Problem string      // what is wrong and what to do
	Code    cnierr.Code // what this fault alone would be reported as
}

// String is one line without line breaks, whatever the input held.
func (f Fault) String() string {
	var b strings.Builder
	b.WriteString(f.Key)
	if f.Value != "" {
		b.WriteString(" " + f.Value)
	}
	b.WriteString(": " + f.Problem)
	return b.String()
}

// Error holds all faults of one NetConf, in the order in which they are written
// in the documentation of the keys: the same input gives the same text.
type Error struct {
	Network string // the network's name, as far as it can be read
	Faults  []Fault
}

// Error is a summary on the first line and one line per fault.
func (e *Error) Error() string {
	what, count := "the network configuration", "1 fault"
	if e.Network != "" {
		what = fmt.Sprintf("network %q", e.Network)
	}
	if n := len(e.Faults); n != 1 {
		count = fmt.Sprintf("%d faults", n)
	}
	lines := []string{fmt.Sprintf("%s can't be used: %s in its configuration", what, count)}
	if e.Code() == cnierr.InvalidEnvironment {
		lines[0] = fmt.Sprintf("%s can't be used: %s in the environment", what, count)
	}
	for _, f := range e.Faults {
		lines = append(lines, f.String())
	}
	return strings.Join(lines, "\n")
}

// Code is the CNI error code of all faults together: 6 when the input isn't a
// JSON object, 1 when the version isn't known (all else depends on it), 4 when only the
// environment is wrong, else 7.
func (e *Error) Code() cnierr.Code {
	for _, code := range []cnierr.Code{cnierr.Decode, cnierr.IncompatibleVersion, cnierr.InvalidConfig} {
		for _, f := range e.Faults {
			if f.Code == code {
				return code
			}
		}
	}
	return cnierr.InvalidEnvironment
}

// As lets [cnierr.CodeOf] find the code.
func (e *Error) As(target any) bool {
	t, ok := target.(**cnierr.Error)
	if ok {
		*t = &cnierr.Error{Code: e.Code(), Err: e}
	}
	return ok
}

// report collects what is found while a NetConf is read.
type report struct {
	faults   []Fault
	warnings []string
}

// fault notes that value, found at key, can't be used; a nil value is a missing one.
func (r *report) fault(key string, value json.RawMessage, format string, args ...any) {
	r.add(cnierr.InvalidConfig, key, written(value), format, args...)
}

// envFault notes a fault of the environment.
func (r *report) envFault(key, value, format string, args ...any) {
	r.add(cnierr.InvalidEnvironment, key, shorten(strconv.Quote(value)), format, args...)
}

func (r *report) add(code cnierr.Code, key, value, format string, args ...any) {
	r.faults = append(r.faults, Fault{Key: key, Value: value, Problem: fmt.Sprintf(format, args...), Code: code})
}

func (r *report) warn(format string, args ...any) {
	r.warnings = append(r.warnings, fmt.Sprintf(format, args...))
}

// written is a JSON value on one line, short enough to be read.
func written(raw json.RawMessage) string {
	var line bytes.Buffer
	if err := json.Compact(&line, raw); err != nil {
		return ""
	}
	return shorten(line.String())
}

func shorten(s string) string {
	const limit = 120
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) <= limit {
		return s
	}
	cut := limit
	for !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + "…"
}
