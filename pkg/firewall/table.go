package firewall

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"regexp"
	"slices"
	"strings"
)

// patience is how long a call waits for the lock of the legacy tables, in seconds.
const patience = 5

// table is [Table] of one family and one backend, in the network namespace of
// the calling thread.
type table struct {
	family  Family
	backend Backend
	known   *found // what the first look finds, without reading; nil: not known
}

// found is what a table has of ours.
type found struct {
	jumps  map[string][]string // base chain: all its rules that lead to a chain of ours, as iptables-save prints them
	first  map[string]bool     // base chain: whether its first rule is the jump as we make it
	chains map[string][]string // chain of ours: its rules' marks, "" for a rule that isn't ours
}

var (
	markOf  = regexp.MustCompile(`--comment "?(lhstorage:[0-9a-f]{10})`)
	leadsTo = regexp.MustCompile(` -[jg] (` + Prefix + `\S*)`)
)

// asWanted is what a table has of ours that was filled with chains.
func asWanted(chains []Chain) *found {
	f := &found{jumps: map[string][]string{}, first: map[string]bool{}, chains: map[string][]string{}}
	for _, b := range bases {
		f.jumps[b.base], f.first[b.base] = []string{jump(b.base)}, true
	}
	for _, c := range chains {
		f.chains[c.Name] = marksOf(c)
	}
	return f
}

// look reads the table, unless what it has is known. It is known once: what comes of a change must be seen.
func (t *table) look(ctx context.Context) (found, error) {
	if known := t.known; known != nil {
		t.known = nil
		return *known, nil
	}
	return t.read(ctx)
}

// read looks at base chains and chains of ours: one process, which a change of one peer is worth.
func (t *table) read(ctx context.Context) (found, error) {
	program := t.backend.program(t.family, "-save")
	cmd := exec.CommandContext(ctx, program, "-t", Table) //nolint:gosec // one of a few fixed names
	var said bytes.Buffer
	cmd.Stderr = &said
	saved, err := cmd.Output()
	if err != nil {
		return found{}, fmt.Errorf("read the %s firewall: %s: %w: %s%s", t.family, program, err, strings.TrimSpace(said.String()), hint(said.String()))
	}
	return foundIn(string(saved)), nil
}

// foundIn reads what iptables-save prints: a line for each chain, then one for each rule.
func foundIn(saved string) found {
	f := found{jumps: map[string][]string{}, first: map[string]bool{}, chains: map[string][]string{}}
	rules := map[string]int{} // seen so far, by chain
	for line := range strings.Lines(saved) {
		line = strings.TrimSpace(line)
		if chain, ok := strings.CutPrefix(line, ":"); ok {
			if name, _, _ := strings.Cut(chain, " "); strings.HasPrefix(name, Prefix) {
				f.chains[name] = []string{}
			}
			continue
		}
		rule, ok := strings.CutPrefix(line, "-A ")
		if !ok {
			continue
		}
		name, _, _ := strings.Cut(rule, " ")
		rules[name]++
		switch {
		case strings.HasPrefix(name, Prefix):
			f.chains[name] = append(f.chains[name], markIn(line))
		case base(name) != "" && leadsTo.MatchString(line):
			f.jumps[name] = append(f.jumps[name], line)
			f.first[name] = f.first[name] || rules[name] == 1 && line == jump(name)
		}
	}
	return f
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

func markIn(rule string) string {
	if m := markOf.FindStringSubmatch(rule); m != nil {
		return m[1]
	}
	return ""
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
