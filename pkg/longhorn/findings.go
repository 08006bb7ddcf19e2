package longhorn

import (
	"fmt"
	"slices"
	"strings"
)

// Code names a kind of finding. Its value is what people write after --ignore: it doesn't change.
type Code string

// What preflight can find.
const (
	NoLonghorn       Code = "no-longhorn"
	JournalOpen      Code = "journal-open"
	NothingToDo      Code = "nothing-to-do"
	NoMultus         Code = "no-multus"
	MultusNode       Code = "multus-node"
	NoNetwork        Code = "no-network"
	NetworkFault     Code = "network-fault"
	NetworkInUse     Code = "network-in-use"
	RangeTooSmall    Code = "range-too-small"
	NoAgent          Code = "no-agent"
	NodeNotReady     Code = "node-not-ready"
	NoCSIPlugin      Code = "no-csi-plugin"
	VolumeBusy       Code = "volume-busy"
	VolumeFaulted    Code = "volume-faulted"
	Rebuilding       Code = "rebuilding"
	Restoring        Code = "restoring"
	Expanding        Code = "expanding"
	BackupRunning    Code = "backup-running"
	ImageTransfer    Code = "image-transfer"
	HandAttached     Code = "hand-attached"
	CannotStop       Code = "cannot-stop"
	ClaimsDeleted    Code = "claims-deleted"
	EmptyAddresses   Code = "empty-addresses"
	LegFails         Code = "leg-fails"
	NoRWXSetting     Code = "no-rwx-setting"
	SettingManaged   Code = "setting-managed"
	NoHarvester      Code = "no-harvester"
	HarvesterBusy    Code = "harvester-busy"
	IsHarvester      Code = "is-harvester"
	VMRunning        Code = "vm-running"
	VMImageTransfer  Code = "vm-image-transfer"
	NoWhereaboutsCRD Code = "no-whereabouts-crd"
)

// Codes are all codes.
func Codes() []Code {
	return []Code{
		NoLonghorn, JournalOpen, NothingToDo, NoMultus, MultusNode, NoNetwork, NetworkFault, NetworkInUse, RangeTooSmall, NoAgent,
		NodeNotReady, NoCSIPlugin, VolumeBusy, VolumeFaulted, Rebuilding, Restoring, Expanding, BackupRunning, ImageTransfer, HandAttached,
		CannotStop, ClaimsDeleted, EmptyAddresses, LegFails, NoRWXSetting, SettingManaged, NoHarvester, HarvesterBusy, IsHarvester, VMRunning, VMImageTransfer, NoWhereaboutsCRD,
	}
}

// always are the findings that can't be ignored: what follows can't work, or would break volumes or lose data.
var always = []Code{NoLonghorn, JournalOpen, NoNetwork, NetworkFault, NoMultus, NoHarvester, ClaimsDeleted, NoRWXSetting}

// Finding is something that preflight found.
type Finding struct {
	Code    Code   `json:"code"`
	Warning bool   `json:"warning,omitempty"` // it stands in nobody's way
	Text    string `json:"text"`              // what, where, and what to do
}

func (f Finding) String() string { return fmt.Sprintf("[%s] %s", f.Code, f.Text) }

// RefusedError says what stands in the way; nothing was changed.
type RefusedError struct{ Findings []Finding }

func (e *RefusedError) Error() string {
	text := fmt.Sprintf("nothing was changed, for %d thing(s) stand in the way:", len(e.Findings))
	ignorable := false
	for _, f := range e.Findings {
		text += "\n  - " + f.String()
		ignorable = ignorable || !slices.Contains(always, f.Code)
	}
	if ignorable {
		text += "\nmend them and run this again; what you know to be harmless can be passed over with --ignore CODE"
	}
	return text
}

// Refused is a *RefusedError of what stands in the way; nil: nothing does.
func Refused(findings []Finding, ignored []Code) error {
	if stopping := blocking(findings, ignored); len(stopping) > 0 {
		return &RefusedError{stopping}
	}
	return nil
}

// blocking are the findings that aren't warnings and aren't ignored.
func blocking(findings []Finding, ignored []Code) []Finding {
	return slices.DeleteFunc(slices.Clone(findings), func(f Finding) bool {
		return f.Warning || slices.Contains(ignored, f.Code) && !slices.Contains(always, f.Code)
	})
}

// report collects findings.
type report struct{ findings []Finding }

func (r *report) stop(code Code, format string, args ...any) {
	r.findings = append(r.findings, Finding{Code: code, Text: fmt.Sprintf(format, args...)})
}

func (r *report) warn(code Code, format string, args ...any) {
	r.findings = append(r.findings, Finding{Code: code, Warning: true, Text: fmt.Sprintf(format, args...)})
}

// some lists names, but not hundreds.
func some(names []string) string {
	const most = 8
	slices.Sort(names)
	names = slices.Compact(names)
	if len(names) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
	}
	return strings.Join(names, ", ")
}
