package netconf

import (
	"encoding/json"
	"fmt"
	"slices"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
)

// previous reads prevResult, of whatever version, and works out whether this is a
// link in a chain.
func (b *builder) previous() {
	raw := b.conf.prevResult
	if raw == nil || !slices.Contains(version.All.SupportedVersions(), b.plan.CNIVersion) {
		return
	}
	result, err := prevResult(b.plan.CNIVersion, raw)
	if err != nil {
		b.fault("prevResult", raw, "isn't a result of CNI %s: %v", b.plan.CNIVersion, err)
		return
	}
	b.plan.PrevResult = result
	if b.verb == Add && !b.modern {
		b.fault("prevResult", raw, "running behind another plugin needs cniVersion 0.3.0 or later: results of %s have no interfaces", b.plan.CNIVersion)
	}
	b.plan.Chained = b.verb == Add && slices.ContainsFunc(result.Interfaces, func(i *types100.Interface) bool { return i.Sandbox != "" })
}

// prevResult reads a result of the version that it says, or else of the
// configuration's: before 1.0.0 a result need not say one.
func prevResult(confVersion string, raw json.RawMessage) (*types100.Result, error) {
	if err := noNulls(raw); err != nil {
		return nil, err
	}
	says := struct {
		CNIVersion string `json:"cniVersion"`
	}{confVersion}
	if err := json.Unmarshal(raw, &says); err != nil {
		return nil, err
	}
	if says.CNIVersion == "" {
		says.CNIVersion = confVersion
	}
	result, err := version.NewResult(says.CNIVersion, setMember(raw, "cniVersion", quote(says.CNIVersion)))
	if err != nil {
		return nil, err
	}
	return types100.NewResultFromResult(result)
}

// noNulls refuses lists with null in them: the library's conversion, and whoever
// walks the result, would follow a nil pointer.
func noNulls(raw json.RawMessage) error {
	list, _ := members(raw)
	for _, m := range list {
		entries, _ := elements(m.value)
		if i := slices.IndexFunc(entries, isNull); i >= 0 {
			return fmt.Errorf("%s is null", at(m.key, i))
		}
		if err := noNulls(m.value); err != nil {
			return fmt.Errorf("%s: %w", m.key, err)
		}
	}
	return nil
}
