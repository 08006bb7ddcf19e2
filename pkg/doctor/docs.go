package doctor

import (
	"fmt"
	"strings"
)

const introduction = `# lhstoragectl doctor

<!-- Made of the checks' table by make generate; a test fails when it isn't fresh. -->

` + "```sh" + `
lhstoragectl doctor                          # what the API server knows of all networks, nodes and pods
lhstoragectl doctor --local                  # on a node, as root: its devices, addresses, forwarding entries, settings and pods, too
lhstoragectl doctor --local --offline        # the same with the API server away, by what the node was last told
lhstoragectl doctor explain LHS116           # what a code means
lhstoragectl doctor explain --text 'Could not allocate IP in range …'   # what a text in an event or a log means; without --text from stdin
lhstoragectl doctor bundle -o bundle.tar.gz  # all of it for somebody else, without secrets
` + "```" + `

Nothing is changed. The exit code is 1 when a finding is an error, 0 when there are warnings at most, 3 when the cluster could not be asked. Codes keep their meaning for ever; a new release may add some.
What may not be read is a finding of its own (LHS012, LHS101), never silence. Node checks see one node: run them on each, or let the agents do it (` + "`kubectl get hostshims`" + ` has their verdict).

The bundle holds the objects that the checks read, without pods' environment, arguments and volumes; Secrets are never asked for, and whatever looks like a token, a password, a key or a certificate is struck out. Logs aren't in it.

## Checks

`

// Markdown is docs/doctor.md.
func Markdown() string {
	var b strings.Builder
	b.WriteString(introduction)
	for _, g := range []struct {
		title string
		list  []Check
	}{
		{"Networks", networkChecks}, {"Addresses", addressChecks}, {"Nodes", nodeChecks}, {"Legs", legChecks}, {"Pods", podChecks}, {"Longhorn and Harvester", longhornChecks},
		{"On a node: installation", installChecks}, {"On a node: parent", parentChecks}, {"On a node: host shim", shimChecks}, {"On a node: attachments", attachmentChecks},
	} {
		fmt.Fprintf(&b, "### %s\n\n| code | | what is wrong | why it matters | what mends it |\n|---|---|---|---|---|\n", g.title)
		for _, c := range g.list {
			fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", c.Code, c.Severity, cell(c.Title), cell(c.Why), cell(c.Fix))
		}
		b.WriteString("\n")
	}
	b.WriteString("## Texts that `doctor explain` knows\n\n| who says it | the cause | code |\n|---|---|---|\n")
	for _, s := range symptoms {
		fmt.Fprintf(&b, "| %s | %s | %s |\n", s.by, cell(s.cause), s.code)
	}
	return b.String()
}

func cell(text string) string { return strings.ReplaceAll(text, "|", `\|`) }
