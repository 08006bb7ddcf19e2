package firewall

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"regexp"
	"slices"
	"strings"

	"github.com/coreos/go-iptables/iptables"
)

// patience is how long a call waits for the lock of the legacy tables, in seconds.
const patience = 5

// table is [Table] of one family and one backend, in the network namespace of
// the calling thread.
type table struct {
	family  Family
	backend Backend
	reader  *iptables.IPTables
}

func openTable(f Family, b Backend) (*table, error) {
	proto := map[Family]iptables.Protocol{IPv4: iptables.ProtocolIPv4, IPv6: iptables.ProtocolIPv6}[f]
	reader, err := iptables.New(iptables.IPFamily(proto), iptables.Path(b.program(f, "")), iptables.Timeout(patience))
	if err != nil {
		return nil, fmt.Errorf("use %s for the %s firewall: %w", b.program(f, ""), f, err)
	}
	return &table{family: f, backend: b, reader: reader}, nil
}

// found is what a table has of ours.
type found struct {
	jumps  map[string][]string // base chain: all its rules that lead to a chain of ours, as iptables -S prints them
	first  map[string]bool     // base chain: whether its first rule is the jump as we make it
	chains map[string][]string // chain of ours: its rules' marks, "" for a rule that isn't ours
}

var (
	markOf  = regexp.MustCompile(`--comment "?(lhstorage:[0-9a-f]{10})`)
	leadsTo = regexp.MustCompile(` -[jg] (` + Prefix + `\S*)`)
)

// read looks at base chains and chains of ours.
func (t *table) read() (found, error) {
	f := found{jumps: map[string][]string{}, first: map[string]bool{}, chains: map[string][]string{}}
	names, err := t.reader.ListChains(Table)
	if err != nil {
		return f, fmt.Errorf("list the %s chains of the %s table: %w", t.family, Table, err)
	}
	for _, name := range names {
		ours := strings.HasPrefix(name, Prefix)
		if !ours && base(name) == "" {
			continue
		}
		lines, err := t.reader.List(Table, name)
		if err != nil {
			return f, fmt.Errorf("list the %s chain %s of the %s table: %w", t.family, name, Table, err)
		}
		rules := rulesOf(name, lines)
		if ours {
			f.chains[name] = marks(rules)
			continue
		}
		f.jumps[name] = slices.DeleteFunc(slices.Clone(rules), func(r string) bool { return !leadsTo.MatchString(r) })
		f.first[name] = len(rules) > 0 && rules[0] == jump(name)
	}
	return f, nil
}

// base is the chain of ours that a base chain leads to.
func base(name string) string {
	for _, b := range bases {
		if b.base == name {
			return b.chain
		}
	}
	return ""
}

func jump(name string) string { return "-A " + name + " -j " + base(name) }

func rulesOf(name string, lines []string) []string {
	return slices.DeleteFunc(lines, func(line string) bool { return !strings.HasPrefix(line, "-A "+name+" ") })
}

func marks(rules []string) []string {
	list := []string{}
	for _, rule := range rules {
		mark := ""
		if m := markOf.FindStringSubmatch(rule); m != nil {
			mark = m[1]
		}
		list = append(list, mark)
	}
	return list
}

// diff is the input for iptables-restore that makes a table as wanted, and what
// it does in words; nothing when it is so. The chains that differ are filled anew.
func diff(have found, want []Chain) (input string, changes []string) {
	var b strings.Builder
	for _, c := range want { // each must exist before a rule leads to it
		if rules, ok := have.chains[c.Name]; !ok || !slices.Equal(rules, marksOf(c)) {
			fmt.Fprintf(&b, ":%s - [0:0]\n", c.Name)
		}
	}
	for _, c := range want {
		rules, ok := have.chains[c.Name]
		if ok && slices.Equal(rules, marksOf(c)) {
			continue
		}
		changes = append(changes, fmt.Sprintf("fill chain %s with %d rules instead of %s", c.Name, len(c.Rules), count(rules, ok)))
		for _, r := range c.Rules {
			fmt.Fprintln(&b, r.Text)
		}
	}
	for _, base := range bases {
		jumps := have.jumps[base.base]
		if have.first[base.base] && len(jumps) == 1 {
			continue
		}
		for _, stale := range jumps {
			fmt.Fprintln(&b, remove(stale))
		}
		fmt.Fprintf(&b, "-I %s 1 -j %s\n", base.base, base.chain)
		changes = append(changes, fmt.Sprintf("lead %s to %s first", base.base, base.chain))
	}
	stale := unwanted(have, want)
	for _, name := range stale { // what one of them leads to may be another
		fmt.Fprintf(&b, ":%s - [0:0]\n", name)
		changes = append(changes, "remove chain "+name)
	}
	for _, name := range stale {
		fmt.Fprintf(&b, "-X %s\n", name)
	}
	return transaction(b.String()), changes
}

func marksOf(c Chain) []string {
	list := []string{}
	for _, r := range c.Rules {
		list = append(list, r.Mark)
	}
	return list
}

func count(rules []string, exists bool) string {
	if !exists {
		return "none"
	}
	return fmt.Sprintf("%d that differ", len(rules))
}

func unwanted(have found, want []Chain) []string {
	var list []string
	for name := range have.chains {
		if !slices.ContainsFunc(want, func(c Chain) bool { return c.Name == name }) {
			list = append(list, name)
		}
	}
	slices.Sort(list)
	return list
}

// removal is the input that takes all of ours out.
func removal(have found) (input string, changes []string) {
	var b strings.Builder
	for _, base := range bases {
		for _, j := range have.jumps[base.base] {
			fmt.Fprintln(&b, remove(j))
			changes = append(changes, "no longer lead "+base.base+" to a chain of ours")
		}
	}
	stale := unwanted(have, nil)
	for _, name := range stale {
		fmt.Fprintf(&b, ":%s - [0:0]\n", name)
		changes = append(changes, "remove chain "+name)
	}
	for _, name := range stale {
		fmt.Fprintf(&b, "-X %s\n", name)
	}
	return transaction(b.String()), changes
}

// remove is the command that removes a rule by what it says: by its number it
// might be another's by now.
func remove(rule string) string { return "-D " + strings.TrimPrefix(rule, "-A ") }

func transaction(commands string) string {
	if commands == "" {
		return ""
	}
	return "*" + Table + "\n" + commands + "COMMIT\n"
}

// write carries an input out, whole or not at all, and leaves the rest of the
// table alone.
func (t *table) write(ctx context.Context, input string) error {
	program := t.backend.program(t.family, "-restore")
	cmd := exec.CommandContext(ctx, program, "--noflush", "--wait", fmt.Sprint(patience)) //nolint:gosec // one of a few fixed names
	cmd.Stdin = strings.NewReader(input)
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w: %s%s", program, err, strings.TrimSpace(said.String()), hint(said.String()))
	}
	return nil
}

// hint says what to do about what most often stands in the way.
func hint(said string) string {
	switch {
	case strings.Contains(said, "u32"):
		return " (the match u32 is needed because another tunnel of this host has the same UDP port: load the kernel module xt_u32, or set parent.port to a port of its own)"
	case strings.Contains(said, "Permission denied"), strings.Contains(said, "Operation not permitted"):
		return " (CAP_NET_ADMIN is needed, and for the legacy tables CAP_NET_RAW)"
	case strings.Contains(said, "does not exist"), strings.Contains(said, "RULE_APPEND failed"), strings.Contains(said, "No such file"):
		return " (a kernel module may be missing: xt_conntrack, xt_comment, and ip_tables and iptable_mangle for the legacy tables)"
	}
	return ""
}
