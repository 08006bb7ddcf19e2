package doctor

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"path"
	"regexp"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/lhstorage/lhstorage/pkg/snapshot"
)

// Bundle is what helps somebody elsewhere to see what is wrong.
type Bundle struct {
	Version  string // of this program
	Snapshot *snapshot.Snapshot
	Findings []Finding
	Text     string // the findings as people read them
}

// Write writes the bundle as a tar.gz. A snapshot holds no credential by design; whatever looks like one all the same (somebody may have
// written a token into a network's configuration or an event) is struck out of each file.
func (b Bundle) Write(w io.Writer) error {
	zip := gzip.NewWriter(w)
	archive := tar.NewWriter(zip)
	for _, f := range b.files() {
		if err := f.write(archive, b.Snapshot.Time); err != nil {
			return fmt.Errorf("write %s of the bundle: %w", f.name, err)
		}
	}
	if err := archive.Close(); err != nil {
		return fmt.Errorf("write the bundle: %w", err)
	}
	if err := zip.Close(); err != nil {
		return fmt.Errorf("write the bundle: %w", err)
	}
	return nil
}

// file of a bundle; content is written as YAML unless it is a text.
type file struct {
	name    string
	content any
}

func (b Bundle) files() []file {
	list := []file{
		{"version.txt", "lhstoragectl " + b.Version + "\n" + b.Snapshot.Time.UTC().Format(time.RFC3339) + "\n"},
		{"findings.txt", b.Text}, {"findings.yaml", b.Findings},
	}
	if c := b.Snapshot.Cluster; c != nil {
		list = append(list,
			file{"cluster/read.yaml", map[string]any{"absent": c.Absent, "denied": c.Denied}},
			file{"cluster/definitions.yaml", c.Definitions}, file{"cluster/hostshims.yaml", c.HostShims}, file{"cluster/addressclaims.yaml", c.Claims},
			file{"cluster/ippools.yaml", c.Pools}, file{"cluster/reservations.yaml", c.Reservations}, file{"cluster/probereports.yaml", c.ProbeReports},
			file{"cluster/nodes.yaml", c.Nodes}, file{"cluster/pods.yaml", c.Pods}, file{"cluster/daemonsets.yaml", c.DaemonSets},
			file{"cluster/networkpolicies.yaml", c.NetworkPolicies}, file{"cluster/events.yaml", c.Events},
			file{"cluster/longhorn.yaml", c.Longhorn}, file{"cluster/harvester.yaml", c.Harvester},
		)
	}
	if b.Snapshot.Local != nil {
		list = append(list, file{"node/" + path.Base("/"+b.Snapshot.Local.Node.NodeName) + ".yaml", b.Snapshot.Local})
	}
	return list
}

func (f file) write(archive *tar.Writer, at time.Time) error {
	data, ok := f.content.(string)
	if !ok {
		text, err := yaml.Marshal(f.content)
		if err != nil {
			return err
		}
		data = string(text)
	}
	data = Redact(data)
	if err := archive.WriteHeader(&tar.Header{Name: "lhstorage-bundle/" + f.name, Mode: 0o600, Size: int64(len(data)), ModTime: at, Format: tar.FormatPAX}); err != nil {
		return err
	}
	_, err := io.Copy(archive, bytes.NewBufferString(data))
	return err
}

const struck = "[redacted]"

// credentials are what looks like one, and what stays of it.
var credentials = []struct {
	like  *regexp.Regexp
	stays string
}{
	{regexp.MustCompile(`(?s)-----BEGIN [A-Z0-9 ]*-----.*?(-----END [A-Z0-9 ]*-----|\z)`), struck}, // PEM: keys, and certificates with them
	{regexp.MustCompile(`LS0tLS1CRUdJTi[A-Za-z0-9+/=\s]*`), struck + "\n"},                         // the same in base64, as kubeconfigs and Secrets have it
	{regexp.MustCompile(`eyJ[A-Za-z0-9_-]{6,}\.[A-Za-z0-9_-]+\.?[A-Za-z0-9_-]*`), struck},          // a JSON web token
	{regexp.MustCompile(`(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{6,}`), "$1 " + struck},          // of an Authorization header
	{regexp.MustCompile(`(://[^/\s:@"]+:)[^/\s@"]+@`), "$1" + struck + "@"},                        // a URL's password
	{regexp.MustCompile(`\b[a-z0-9]{6}\.[a-z0-9]{16}\b`), struck},                                  // a bootstrap token
	{regexp.MustCompile(`(?i)((token|passw(or)?d|passphrase|secret|credential|private[-_]?key|client[-_]key[-_]data|api[-_]?key)[\w-]*(\\?["'])?\s*[:=]\s*)(\\?"[^"\\]*\\?"|'[^']*'|[^\s,}\\]+)`), "${1}" + struck}, // whatever is called one
}

// Redact strikes out of a text what looks like a credential.
func Redact(text string) string {
	for _, c := range credentials {
		text = c.like.ReplaceAllString(text, c.stays)
	}
	return text
}
