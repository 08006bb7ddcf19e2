package agent

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/lhstorage/lhstorage/pkg/atomicfile"
	"github.com/lhstorage/lhstorage/pkg/cnierr"
	"github.com/lhstorage/lhstorage/pkg/netconf"
	"github.com/lhstorage/lhstorage/pkg/node"
)

// pluginType is the type of the networks that the agent looks after.
const pluginType = "lhstorage"

// Definition is a NetworkAttachmentDefinition.
type Definition struct {
	Namespace string    `json:"namespace"`
	Name      string    `json:"name"`
	UID       string    `json:"uid,omitempty"`
	Created   time.Time `json:"created"`
	Config    string    `json:"config"`
}

// Ref names it as pods' annotations do.
func (d Definition) Ref() string { return d.Namespace + "/" + d.Name }

// Network is a network that this node is kept ready for.
type Network struct {
	Definition
	Plan *netconf.Plan
}

// Fault says why a definition isn't gone by.
type Fault struct {
	Definition
	Reason string // of its Event
	Err    error
}

// Compiled is what all definitions come to.
type Compiled struct {
	Networks []Network       // each network once, the oldest definition first
	Faults   []Fault         // definitions of our type that aren't gone by
	Ours     map[string]bool // references of all definitions of our type
}

// Compile reads the definitions. A bad one doesn't keep the others from being gone by. Of two that contradict each other the
// older counts: pods may use it already.
func Compile(definitions []Definition) Compiled {
	out := Compiled{Ours: map[string]bool{}}
	sorted := slices.SortedFunc(slices.Values(definitions), func(a, b Definition) int {
		return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.Ref(), b.Ref()))
	})
	for _, d := range sorted {
		conf, ours, err := pluginConf(d)
		if !ours {
			continue
		}
		out.Ours[d.Ref()] = true
		var plan *netconf.Plan
		if err == nil && conf != nil {
			plan, err = parse(conf)
		}
		switch {
		case err != nil:
			out.Faults = append(out.Faults, Fault{d, ReasonInvalidNetwork, err})
		case plan == nil || plan.LinkInContainer:
			// Only its pods tell what it hangs on, or it hangs on nothing of the node's.
		default:
			out.add(Network{d, plan})
		}
	}
	return out
}

// add takes a network in, unless an older one contradicts it.
func (c *Compiled) add(n Network) {
	for _, old := range c.Networks {
		if old.Plan.Parent.Name != n.Plan.Parent.Name {
			continue
		}
		if diffs := node.Differences(old.Plan.Parent, n.Plan.Parent); len(diffs) > 0 {
			c.Faults = append(c.Faults, Fault{n.Definition, ReasonContradiction, fmt.Errorf("parent %s is described otherwise by %s, which is older: %s; say the same in both, or name another parent",
				n.Plan.Parent.Name, old.Ref(), strings.Join(diffs, "; "))})
			return
		}
		if old.Plan.Name != n.Plan.Name {
			continue
		}
		if !reflect.DeepEqual(old.Plan.HostShim, n.Plan.HostShim) {
			c.Faults = append(c.Faults, Fault{n.Definition, ReasonContradiction, fmt.Errorf("network %q on parent %s has another host shim in %s, which is older; give one of the networks another name",
				n.Plan.Name, n.Plan.Parent.Name, old.Ref())})
		}
		return // the same network for another namespace
	}
	c.Networks = append(c.Networks, n)
}

// parse makes a plan of our plugin's configuration.
func parse(conf []byte) (*netconf.Plan, error) {
	plan, err := netconf.Parse(netconf.Add, conf, "")
	if err != nil || plan.HostShim == nil {
		return plan, err
	}
	if hosts, found := plan.HostShim.Unplaced(); found {
		return nil, cnierr.New(cnierr.InvalidConfig, "hostShim.range %s: which network it is part of can't be read from IPAM plugin %q: use lhstorage-ipam, whereabouts, host-local or static", hosts, plan.IPAM.Type)
	}
	return plan, nil
}

// pluginConf is the configuration that our plugin is called with for a definition: ours says that it is called at all.
// It is nil where only a pod's interface tells the parent (behind a main plugin that names no master).
func pluginConf(d Definition) (conf []byte, ours bool, err error) {
	var whole map[string]json.RawMessage
	if err := json.Unmarshal([]byte(d.Config), &whole); err != nil {
		return nil, strings.Contains(d.Config, `"`+pluginType+`"`), fmt.Errorf("spec.config isn't JSON: %w", err)
	}
	plugins := []map[string]json.RawMessage{whole}
	if list, ok := whole["plugins"]; ok {
		plugins = nil
		if err := json.Unmarshal(list, &plugins); err != nil {
			return nil, strings.Contains(d.Config, `"`+pluginType+`"`), fmt.Errorf("plugins isn't a list of objects: %w", err)
		}
	}
	i := slices.IndexFunc(plugins, func(p map[string]json.RawMessage) bool { return text(p["type"]) == pluginType })
	if i < 0 {
		return nil, false, nil
	}
	own := plugins[i]
	for _, key := range []string{"name", "cniVersion"} { // of the list, as the runtime hands them down
		if value, ok := whole[key]; ok {
			own[key] = value
		}
	}
	if text(own["name"]) == "" { // as Multus does
		own["name"] = quote(d.Name)
	}
	if i > 0 && !behind(plugins[0], own) {
		return nil, true, nil
	}
	conf, err = json.Marshal(own)
	return conf, true, err
}

// behind completes our configuration behind a main plugin, which knows parent and range; false when it doesn't.
func behind(main, own map[string]json.RawMessage) bool {
	master := text(main["master"])
	if named := text(own["master"]); named != "" {
		master = named
	}
	if text(main["type"]) != "macvlan" || master == "" || main["ipam"] == nil || own["parent"] != nil {
		return false
	}
	own["master"], own["ipam"] = quote(master), main["ipam"]
	return true
}

func text(raw json.RawMessage) string {
	var s string
	_ = json.Unmarshal(raw, &s) // what isn't a text is none
	return s
}

func quote(s string) json.RawMessage {
	raw, _ := json.Marshal(s) //nolint:errchkjson // a text can always be written
	return raw
}

// definitionsPath is where the definitions are kept for an agent that starts with the API server away.
func definitionsPath(stateDir string) string { return filepath.Join(stateDir, "networks.json") }

// loadDefinitions reads what the last agent knew; none, or what can't be read, is nothing.
func loadDefinitions(stateDir string) []Definition {
	data, err := os.ReadFile(definitionsPath(stateDir))
	if err != nil {
		return nil
	}
	var list []Definition
	if json.Unmarshal(data, &list) != nil {
		return nil
	}
	return list
}

// saveDefinitions keeps the definitions, if they are others than those on disk.
func saveDefinitions(stateDir string, list []Definition) error {
	data, err := json.MarshalIndent(list, "", "  ")
	if err != nil {
		return fmt.Errorf("keep the network definitions: %w", err)
	}
	data = append(data, '\n')
	path := definitionsPath(stateDir)
	old, err := os.ReadFile(path) //nolint:gosec // below the node's state directory
	if err == nil && bytes.Equal(old, data) {
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("keep the network definitions: %w", err)
	}
	if err := os.MkdirAll(stateDir, 0o700); err != nil {
		return fmt.Errorf("keep the network definitions: %w", err)
	}
	if err := atomicfile.Write(path, data, 0o600); err != nil {
		return fmt.Errorf("keep the network definitions: %w", err)
	}
	return nil
}
