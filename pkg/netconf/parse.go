package netconf

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/lhstorage/lhstorage/pkg/cnierr"
)

// Verb is the CNI command that a NetConf came with, spelt as in CNI_COMMAND. What must
// be there depends on it: a NetConf behind another main plugin names no parent, and
// only ADD and CHECK show that it is behind one, by their prevResult.
type Verb string

// The verbs that Parse knows; DEL uses [Lenient].
const (
	Add    Verb = "ADD"
	Check  Verb = "CHECK"
	Status Verb = "STATUS"
	GC     Verb = "GC"
)

// Bounds of conflictDetection.window: a neighbour answers within a few milliseconds,
// and ADD must not take seconds.
const (
	MinWindow = time.Millisecond
	MaxWindow = 5 * time.Second
)

// Parse makes a validated plan of the NetConf on stdin and of CNI_ARGS. An error is
// an [*Error] that holds every fault.
//
// Chained is set for an ADD whose prevResult has an interface in a sandbox. CHECK
// carries the plugin's own result as prevResult, so there the attachment record
// must say it. A parent may be left out when chained, on CHECK with a prevResult, and
// on STATUS and GC without an IPAM (which may be those of a chained plugin);
// Parent.Name is empty then.
func Parse(verb Verb, stdin []byte, cniArgs string) (*Plan, error) {
	plan, r := compile(verb, stdin, cniArgs)
	if len(r.faults) > 0 {
		return nil, &Error{Network: plan.Name, Faults: r.faults}
	}
	return plan, nil
}

// Lenient reads what can be read of the NetConf of a DEL. It never fails: a field
// that is missing or wrong has its default or its zero value, an IPAM section that
// can't be worked on is delegated as it was written, and Delegate is nil when stdin isn't a
// JSON object. DEL has its attachment record for the rest.
func Lenient(stdin []byte, cniArgs string) *Plan {
	plan, _ := compile(del, stdin, cniArgs)
	return plan
}

const del Verb = "DEL"

// builder turns what was written into a plan; each method looks after one part.
type builder struct {
	*report
	verb   Verb
	stdin  json.RawMessage
	conf   conf
	asked  []request // addresses that the runtime asks for
	plan   *Plan
	modern bool // results have interfaces: 0.3.0 and later
}

// compile makes as much of a plan as the input allows, and a report of what is wrong.
func compile(verb Verb, stdin []byte, cniArgs string) (*Plan, *report) {
	b := &builder{report: &report{}, verb: verb, stdin: bytes.Clone(bytes.TrimSpace(stdin)), plan: &Plan{
		CNIVersion: DefaultVersion,
		Type:       DefaultType,
		Parent:     Parent{Type: ParentDevice},
		Mode:       DefaultMode,
		ISCSIPath:  ISCSIAuto,
	}}
	decoded := b.decode()
	b.cniArgs(cniArgs)
	if decoded {
		b.identity()
		b.previous()
		b.parent()
		b.child()
		b.runtime()
		b.conflictDetection()
		b.addresses()
		b.mtus()
		b.validAttachments()
	}
	b.plan.Warnings = b.warnings
	return b.plan, b.report
}

// decode reads the keys; false when stdin isn't a JSON object.
func (b *builder) decode() bool {
	var whole json.RawMessage
	switch err := json.Unmarshal(b.stdin, &whole); {
	case len(b.stdin) == 0:
		b.add(cnierr.Decode, "stdin", "", "is empty: the runtime must give the network configuration there")
	case err != nil:
		b.add(cnierr.Decode, "stdin", "", "isn't JSON: %v%s", err, position(b.stdin, err))
	case b.stdin[0] != '{':
		b.add(cnierr.Decode, "stdin", written(b.stdin), "must be a JSON object")
	default:
		b.plan.IPAM.Delegate = b.stdin
		b.section("", b.stdin, b.conf.fields(), runtimeKey)
		return true
	}
	return false
}

// position says where in data a syntax error is.
func position(data []byte, err error) string {
	var syntax *json.SyntaxError
	if !errors.As(err, &syntax) || syntax.Offset < 1 || int(syntax.Offset) > len(data) {
		return ""
	}
	before := data[:syntax.Offset-1]
	line := bytes.Count(before, []byte("\n")) + 1
	column := len(before) - bytes.LastIndexByte(before, '\n')
	return fmt.Sprintf(" (line %d, column %d)", line, column)
}

var networkName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`)

// identity reads version, name and type, and what the result takes over as it is.
func (b *builder) identity() {
	c, p := &b.conf, b.plan
	p.CNIVersion = c.cniVersion.or(DefaultVersion)
	known := version.All.SupportedVersions()
	if !slices.Contains(known, p.CNIVersion) {
		b.add(cnierr.IncompatibleVersion, "cniVersion", written(c.cniVersion.raw), "unknown version; known are %s", strings.Join(known, ", "))
	}
	b.modern = p.CNIVersion != "0.1.0" && p.CNIVersion != "0.2.0"
	p.Type = c.typ.or(DefaultType)
	switch {
	case c.name.absent():
		b.fault("name", nil, "is missing: give the network a name")
	case c.name.given() && !networkName.MatchString(c.name.val):
		b.fault("name", c.name.raw, "must start with a letter or digit and hold only letters, digits, '_', '.' and '-'")
	default:
		p.Name = c.name.val
	}
	if c.dns != nil {
		if err := json.Unmarshal(c.dns, &p.DNS); err != nil {
			b.fault("dns", c.dns, "can't be read: %v", err)
			p.DNS = types.DNS{}
		}
	}
}

// child reads what concerns the pod's interface alone.
func (b *builder) child() {
	c, p := &b.conf, b.plan
	p.Mode = c.mode.or(DefaultMode)
	p.MTU = c.mtu.val
	p.BcQueueLen = uint32(c.bcQueueLen.val) // the field's bounds are those of uint32
	p.LinkInContainer = c.linkInContainer.val
	p.ISCSIPath = ISCSIPath(c.iscsiPath.or(string(ISCSIAuto)))
	if p.LinkInContainer && p.Parent.Type != ParentDevice {
		b.fault("linkInContainer", c.linkInContainer.raw, "a %s parent is made in the host's network namespace; only a device parent can be in the pod's", p.Parent.Type)
	}
	if !p.Chained {
		return
	}
	for _, k := range []struct {
		key string
		raw json.RawMessage
	}{
		{"mode", c.mode.raw}, {"mtu", c.mtu.raw}, {"bcqueuelen", c.bcQueueLen.raw}, {"mac", c.mac.raw},
	} {
		if k.raw != nil {
			b.warn("%s %s has no effect: behind another main plugin the pod's interface is that plugin's", k.key, written(k.raw))
		}
	}
}

func (b *builder) conflictDetection() {
	c := &b.conf.conflict
	b.plan.Conflict.Enabled = c.enabled.or(true)
	window, err := time.ParseDuration(c.window.or(DefaultWindow))
	if err != nil || window < MinWindow || window > MaxWindow {
		b.fault("conflictDetection.window", c.window.raw, "must be a duration from %s to %s, such as %q", MinWindow, MaxWindow, DefaultWindow)
		window, _ = time.ParseDuration(DefaultWindow)
	}
	b.plan.Conflict.Window = window
}

// mtus looks at all MTUs together.
func (b *builder) mtus() {
	child, parent := &b.conf.mtu, &b.conf.parent.mtu
	if b.plan.MTU > b.plan.Parent.MTU && b.plan.Parent.MTU > 0 {
		b.fault("mtu", child.raw, "is more than parent.mtu %d: a frame of that size can't leave by the parent", b.plan.Parent.MTU)
	}
	if !b.usesIPv6() {
		return
	}
	const least = 1280 // RFC 8200, section 5
	for _, m := range []struct {
		key string
		mtu *opt[int]
	}{{"parent.mtu", parent}, {"mtu", child}} {
		if m.mtu.val > 0 && m.mtu.val < least {
			b.fault(m.key, m.mtu.raw, "the network has IPv6 addresses, which need at least %d bytes", least)
		}
	}
}

// usesIPv6 says whether an address of the storage network is of IPv6, as far as
// that can be known before the IPAM has answered.
func (b *builder) usesIPv6() bool {
	is6 := func(p netip.Prefix) bool { return p.Addr().Is6() }
	hosts := b.plan.HostShim
	return slices.ContainsFunc(b.plan.IPAM.Ranges, is6) || hosts != nil && slices.ContainsFunc(hosts.Ranges, is6) ||
		slices.ContainsFunc(b.asked, func(a request) bool { return a.addr.Is6() })
}

// validAttachments reads GC's list. Null is an empty list: nothing is attached
// any more. Absent is no list: nothing may be concluded.
func (b *builder) validAttachments() {
	first, second := b.attachments(keyAttachments, b.conf.attachments), b.attachments(keyAttachmentsAlias, b.conf.attachmentsAlias)
	switch {
	case first == nil:
		first = second
	case second != nil && !slices.Equal(*first, *second):
		b.fault(keyAttachmentsAlias, b.conf.attachmentsAlias, "differs from %s, of which it is the other name", keyAttachments)
	}
	b.plan.ValidAttachments = first
}

func (b *builder) attachments(key string, raw json.RawMessage) *[]Attachment {
	if raw == nil {
		return nil
	}
	list := []Attachment{}
	if err := json.Unmarshal(raw, &list); err != nil {
		b.fault(key, raw, "must be a list of {\"containerID\": …, \"ifname\": …}")
		return nil
	}
	for i, a := range list {
		if a.ContainerID == "" || a.IfName == "" {
			b.fault(at(key, i), raw, "needs both containerID and ifname: an attachment that can't be told from others might be released while it is in use")
		}
	}
	if list == nil {
		list = []Attachment{}
	}
	return &list
}
