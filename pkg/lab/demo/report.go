package demo

import (
	"fmt"

	"github.com/lhstorage/lhstorage/pkg/lab"
)

const (
	// maxWaste is the part of the carried bytes that may appear on uninvolved links.
	maxWaste = 0.02
	// minFlood is what must appear there without learning, which sends a copy to
	// each uninvolved node; a meter that sees less would see no waste either.
	minFlood = 0.5
)

// Report is what a demo has measured.
type Report struct {
	OK           bool      `json:"ok"`               // lhstorage passed everything, and stock macvlan failed where it must
	Faults       []string  `json:"faults,omitempty"` // why OK is false
	Legs         []lab.Leg `json:"legs"`             // both plugins'
	WasteRatio   float64   `json:"waste_ratio"`      // bytes on uninvolved links ÷ bytes on the stream's link
	FloodRatio   float64   `json:"waste_ratio_nolearning"`
	ISCSI        ISCSI     `json:"iscsi"`       // with lhstorage
	StockISCSI   ISCSI     `json:"iscsi_stock"` // with stock macvlan
	MTU          int       `json:"mtu"`         // that every leg carried without fragments; 0: not proven
	Stream       lab.Usage `json:"stream"`
	FloodStream  lab.Usage `json:"stream_nolearning"`
	FullMTULegs  []lab.Leg `json:"mtu_legs"`             // the matrix in packets of the full MTU
	OneMoreError string    `json:"mtu_plus_one"`         // how a packet of one byte more was refused
	Seconds      float64   `json:"seconds"`              // that the demo took
	Unmeasured   string    `json:"unmeasured,omitempty"` // why the demo ended early
}

// LegsOf are the legs measured with one plugin.
func (r *Report) LegsOf(plugin string) []lab.Leg {
	var legs []lab.Leg
	for _, leg := range r.Legs {
		if leg.Plugin == plugin {
			legs = append(legs, leg)
		}
	}
	return legs
}

// judge sets OK and says what is wrong. A demo that ended early isn't judged.
func (r *Report) judge() {
	r.OK, r.Faults = false, nil
	if r.Unmeasured != "" {
		return
	}
	for _, leg := range r.LegsOf(lab.PluginLhstorage) {
		if !leg.OK() {
			r.fault("lhstorage: %s from %s to %s loses %.3g %%", leg.Leg, leg.From, leg.To, leg.Loss)
		}
	}
	for _, leg := range r.LegsOf(lab.PluginMacvlan) {
		if lost := !leg.OK(); lost != (leg.Leg == lab.LegHostLocal) {
			r.fault("stock macvlan: %s from %s to %s loses %.3g %%, which isn't what stock macvlan does: is the lab sound?", leg.Leg, leg.From, leg.To, leg.Loss)
		}
	}
	if !r.ISCSI.OK {
		r.fault("lhstorage: no iSCSI read from the host to its own pod: %s", r.ISCSI.Err)
	}
	if r.StockISCSI.OK {
		r.fault("stock macvlan: the iSCSI read from the host to its own pod worked, which it can't: is the lab sound?")
	}
	if r.WasteRatio >= maxWaste {
		r.fault("lhstorage: %.1f %% of the carried bytes are wasted on uninvolved links", 100*r.WasteRatio)
	}
	if r.FloodRatio < minFlood {
		r.fault("without learning %.1f %% of the carried bytes are counted on uninvolved links, where it should be all: does the meter work?", 100*r.FloodRatio)
	}
	if r.MTU == 0 {
		r.fault("lhstorage: packets of the full MTU don't pass everywhere, or larger ones do")
	}
	r.OK = len(r.Faults) == 0
}

func (r *Report) fault(format string, args ...any) {
	r.Faults = append(r.Faults, fmt.Sprintf(format, args...))
}
