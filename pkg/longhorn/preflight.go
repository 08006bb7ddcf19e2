package longhorn

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"go4.org/netipx"
	corev1 "k8s.io/api/core/v1"

	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/harvester"
	"github.com/lhstorage/lhstorage/pkg/nad"
	"github.com/lhstorage/lhstorage/pkg/plan"
	"github.com/lhstorage/lhstorage/pkg/probereport"
)

// judge says all that stands in the way of a request, and what should be known. It is pure.
func judge(o *observed, req Request, now time.Time) []Finding {
	r := &report{}
	if o.journal != nil && !o.journal.Finished {
		r.stop(JournalOpen, "%s isn't finished: `lhstoragectl resume` goes on with it, `lhstoragectl rollback` goes back", o.journal.words())
	}
	if !o.longhorn || o.setting == nil {
		r.stop(NoLonghorn, "Longhorn's setting %s isn't there: is Longhorn installed in the namespace named with -n, and is longhorn-manager running?", settingNetwork)
		return r.findings
	}
	o.judgeVolumes(r)
	o.judgeUsers(r)
	o.judgeLonghorn(r, req)
	o.judgeHarvester(r, req)
	if !req.Network.None() {
		o.judgeNetwork(r, req, now)
	}
	return r.findings
}

func (o *observed) judgeVolumes(r *report) {
	tickets := map[string][]ticket{}
	for _, h := range holdersOf(o.volumes, o.attachments) {
		tickets[h.Volume] = h.Tickets
	}
	for _, v := range o.volumes {
		s := v.Status
		switch {
		case s.State != "attached" && s.State != stateDetached:
			r.stop(VolumeBusy, "volume %s is %q: wait until it is attached or detached", v.Name, s.State)
		case s.MigrationNode != "":
			r.stop(VolumeBusy, "volume %s is being migrated from %s to %s: wait until that is done", v.Name, s.Node, s.MigrationNode)
		case s.State == "attached" && s.CurrentImage != "" && v.Spec.Image != "" && s.CurrentImage != v.Spec.Image:
			r.stop(VolumeBusy, "volume %s: its engine is being upgraded from %s to %s: wait until that is done", v.Name, s.CurrentImage, v.Spec.Image)
		case s.State == "attached" && len(tickets[v.Name]) > 0 && !slices.ContainsFunc(tickets[v.Name], func(t ticket) bool { return t.Type != "longhorn-api" }):
			r.stop(HandAttached, "volume %s was attached to %s by hand: detach it in Longhorn's UI", v.Name, s.Node)
		}
		if s.Robustness == "faulted" {
			r.warn(VolumeFaulted, "volume %s is faulted already: it won't get better by this; salvage it first if you can", v.Name)
		}
		if s.RestoreRequired {
			r.stop(Restoring, "volume %s is being restored from a backup: wait until that is done", v.Name)
		}
		if s.Expansion {
			r.stop(Expanding, "volume %s is being expanded: wait until that is done", v.Name)
		}
	}
	for _, e := range o.engines {
		for address, raw := range e.Status.Rebuild {
			if says(raw, "isRebuilding") {
				r.stop(Rebuilding, "volume %s: the replica at %s is being rebuilt: wait until that is done, for detaching stops it", e.Spec.Volume, address)
			}
		}
		for address, raw := range e.Status.Restore {
			if says(raw, "isRestoring") {
				r.stop(Restoring, "volume %s: the replica at %s is being restored: wait until that is done", e.Spec.Volume, address)
			}
		}
		if e.Status.Expanding {
			r.stop(Expanding, "volume %s is being expanded: wait until that is done", e.Spec.Volume)
		}
	}
	for _, b := range o.backups {
		if b.Status.State == "Pending" || b.Status.State == "InProgress" {
			r.stop(BackupRunning, "backup %s of volume %s is %s: wait until it is done", b.Name, b.Status.Volume, b.Status.State)
		}
	}
	for _, i := range o.images {
		for disk, f := range i.Status.Files {
			if slices.Contains([]string{"pending", "starting", "ready-for-transfer", "in-progress"}, f.State) {
				r.stop(ImageTransfer, "backing image %s is %s on disk %s (%d %%): wait until it is ready, or delete it", i.Name, f.State, disk, f.Progress)
			}
		}
	}
}

// says reads a boolean field of a status that is otherwise of no interest.
func says(raw []byte, field string) bool {
	text := strings.ReplaceAll(string(raw), " ", "")
	return strings.Contains(text, `"`+field+`":true`)
}

func (o *observed) judgeUsers(r *report) {
	for _, text := range o.users.Refused {
		r.stop(CannotStop, "%s", text)
	}
	for _, name := range o.users.Deleting {
		r.stop(ClaimsDeleted, "%s has persistentVolumeClaimRetentionPolicy.whenScaled Delete: scaling it down would delete its claims, and with them the data; set it to Retain", name)
	}
}

func (o *observed) judgeLonghorn(r *report, req Request) {
	for _, n := range o.nodes {
		i := slices.IndexFunc(n.Status.Conditions, func(c condition) bool { return c.Type == "Ready" })
		if i >= 0 && n.Status.Conditions[i].Status != "True" {
			r.stop(NodeNotReady, "Longhorn's node %s isn't ready (%s): its pods can't be made anew; bring it back, or delete it from Longhorn", n.Name, n.Status.Conditions[i].Message)
		}
	}
	if !o.csiPlugin {
		r.stop(NoCSIPlugin, "DaemonSet %s isn't there: without it longhorn-manager never applies the setting; wait for longhorn-driver-deployer, or look at its log", csiPlugin)
	}
	for i := range o.dataPods {
		p := &o.dataPods[i]
		if strings.Contains(strings.ReplaceAll(p.Annotations[nad.StatusAnnotation], " ", ""), `"ips":[]`) {
			r.warn(EmptyAddresses, "pod %s has an empty list of addresses in %s: longhorn-manager crashes when it reads that for its storage network; delete the pod once its node's volumes are detached", p.Name, nad.StatusAnnotation)
		}
	}
	if req.RWX != nil && o.rwx == nil {
		r.stop(NoRWXSetting, "this Longhorn has no setting for shared volumes (%s or %s): it is there from 1.7 on", settingRWX, settingEndpoint)
	}
	if owner := o.settingOwner(); owner != "" {
		r.warn(SettingManaged, "the setting is also kept by %s: say the same there (value %q), or it will be changed back with volumes attached", owner, req.Network.String())
	}
}

// settingOwner says who else writes Longhorn's setting; empty: nobody that can be seen.
func (o *observed) settingOwner() string {
	marks := []struct{ key, who string }{
		{"argocd.argoproj.io/tracking-id", "Argo CD"},
		{"argocd.argoproj.io/instance", "Argo CD"},
		{"kustomize.toolkit.fluxcd.io/name", "Flux"},
		{"helm.toolkit.fluxcd.io/name", "Flux's Helm controller"},
		{"objectset.rio.cattle.io/id", "Rancher's Fleet"},
		{"meta.helm.sh/release-name", "Helm"},
	}
	for _, m := range marks {
		label, annotation := o.setting.Labels[m.key], o.setting.Annotations[m.key]
		if name := label + annotation; name != "" {
			return fmt.Sprintf("%s (%s: %s)", m.who, m.key, name)
		}
	}
	if o.defaults == nil {
		return ""
	}
	for _, text := range o.defaults.Data {
		if slices.ContainsFunc(strings.Split(text, "\n"), func(line string) bool {
			key, _, _ := strings.Cut(strings.TrimSpace(line), ":")
			return strings.Trim(key, `"`) == settingNetwork
		}) {
			return "ConfigMap longhorn-default-setting, which comes from Helm values (defaultSettings.storageNetwork)"
		}
	}
	return ""
}

func (o *observed) judgeHarvester(r *report, req Request) {
	switch {
	case req.Harvester && o.harvester == nil:
		r.stop(NoHarvester, "there is no Setting %s of harvesterhci.io: this isn't Harvester; leave --harvester out", harvester.StorageNetworkSetting)
		return
	case !req.Harvester && o.harvester != nil:
		r.stop(IsHarvester, "this is Harvester, whose controller would change Longhorn's setting back: use --harvester")
		return
	case o.harvester == nil:
		return
	}
	if c, ok := o.harvester.Configured(); ok && c.Reason == string(harvester.InProgress) {
		r.stop(HarvesterBusy, "Harvester is changing its storage network itself (%s): wait until the Setting's condition %s is True", c.Message, harvester.ConditionConfigured)
	}
	for _, m := range o.machines {
		if m.Status.Phase != "Succeeded" && m.Status.Phase != "Failed" {
			r.stop(VMRunning, "virtual machine %s/%s is %s: shut it down (it isn't started again afterwards)", m.Namespace, m.Name, m.Status.Phase)
		}
	}
	for _, i := range o.vmImages {
		at := slices.IndexFunc(i.Status.Conditions, func(c condition) bool { return c.Type == "Imported" })
		if at < 0 || i.Status.Conditions[at].Status == "Unknown" {
			r.stop(VMImageTransfer, "image %s/%s (%s) is being transferred (%d %%): wait until it is there, or delete it", i.Namespace, i.Name, i.Spec.DisplayName, i.Status.Progress)
		}
	}
}

func (o *observed) judgeNetwork(r *report, req Request, now time.Time) {
	if !o.multus {
		r.stop(NoMultus, "NetworkAttachmentDefinitions aren't known here: install Multus, which gives pods second networks")
		return
	}
	var missing []string
	for _, n := range o.nodes {
		if !o.multusNodes[n.Name] {
			missing = append(missing, n.Name)
		}
	}
	if len(missing) > 0 {
		r.stop(MultusNode, "no Ready Multus pod is seen on %s: pods there would start without %s; look at Multus' DaemonSet (its tolerations, its pods' log)", some(missing), storageInterface)
	}
	config := req.Config
	switch {
	case config == "" && o.target == nil:
		r.stop(NoNetwork, "network %s isn't there, and no configuration for it was given: name a file with --config", req.Network)
		return
	case config == "":
		config = o.target.Config
	case o.target != nil && !sameConfig(o.target.Config, config) && len(o.targetUsers) > 0:
		r.stop(NetworkInUse, "network %s has another configuration and is used by %s: Longhorn doesn't notice a network that is changed in place; give the new one another name", req.Network, some(o.targetUsers))
	}
	s := read(req.Network.Name, config)
	for _, text := range s.Faults {
		r.stop(NetworkFault, "network %s: %s", req.Network, text)
	}
	o.judgeRange(r, s, req.RWX != nil && *req.RWX)
	o.judgeAgents(r, s, now)
}

func (o *observed) judgeRange(r *report, s shape, rwx bool) {
	if !o.whereabouts && (s.IPAM == "whereabouts" || s.IPAM == "lhstorage-ipam") {
		r.stop(NoWhereaboutsCRD, "IPPools of whereabouts.cni.cncf.io aren't known here, and %s keeps addresses in them: apply the files of doc/crds of github.com/k8snetworkplumbingwg/whereabouts, of the version of the image that runs (Harvester upgraded from 1.0 lacks them, harvester issue 3168)", s.IPAM)
	}
	if len(s.Ranges) == 0 {
		return
	}
	need, text := o.needed(rwx)
	if have := s.room(); have < float64(need) {
		r.stop(RangeTooSmall, "range %s has %.0f addresses for pods, and Longhorn needs %d: %s; choose a larger one (`lhstoragectl plan`)", s.rangesText(), have, need, text)
	}
}

// needed is how many addresses Longhorn's pods need, as `lhstoragectl plan` counts them, with room for an upgrade.
func (o *observed) needed(rwx bool) (need int, text string) {
	demand := plan.Demand{Nodes: len(o.nodes), Images: len(o.images), V1: true, Upgrade: true, RWX: rwx}
	for _, n := range o.nodes {
		demand.Disks += len(n.Spec.Disks)
	}
	demand.V2 = slices.ContainsFunc(o.managers, func(m manager) bool { return m.Spec.Engine == "v2" })
	var parts []string
	for _, i := range demand.Items() {
		need += i.IPs
		parts = append(parts, fmt.Sprintf("%d for %s", i.IPs, i.What))
	}
	return need, strings.Join(parts, ", ")
}

// room is how many addresses pods can get.
func (s shape) room() float64 {
	var free netipx.IPSetBuilder
	for _, p := range s.Ranges {
		free.AddPrefix(p)
		free.Remove(p.Masked().Addr())
		free.Remove(netipx.PrefixLastIP(p))
	}
	for _, p := range slices.Concat(s.Hosts, s.Excluded) {
		free.RemovePrefix(p)
	}
	set, err := free.IPSet()
	if err != nil {
		return 0
	}
	total := 0.0
	for _, p := range set.Prefixes() {
		total += size(p)
	}
	return total
}

func size(p netip.Prefix) float64 { return math.Pow(2, float64(p.Addr().BitLen()-p.Bits())) }

func (o *observed) judgeAgents(r *report, s shape, now time.Time) {
	if s.Parent != "" && !o.shimsServed {
		r.stop(NoAgent, "HostShims of lhstorage.io aren't known here: install lhstorage first (docs/install.md), or no node gets parent and shim")
	}
	o.judgeLegs(r, s, now)
}

// judgeLegs looks at what agents measured lately on the network.
func (o *observed) judgeLegs(r *report, s shape, now time.Time) {
	for _, rep := range o.reports {
		if now.Sub(rep.Status.Time.Time) > probereport.Stale {
			continue
		}
		for _, leg := range rep.Status.Legs {
			if leg.Network == s.Name && leg.Lost > 0 {
				r.stop(LegFails, "on network %s, %s", s.Name, legText(rep.Spec.Node, leg))
			}
		}
	}
}

func legText(node string, leg v1alpha1.ProbeLeg) string {
	from, to := node, leg.Node
	if leg.From != "" {
		from = leg.From + " on " + node
	}
	if leg.Pod != "" {
		to = leg.Pod + " on " + leg.Node
	}
	text := fmt.Sprintf("%s loses %s of %s packets from %s to %s (%s)", leg.Kind, strconv.Itoa(leg.Lost), strconv.Itoa(leg.Sent), from, to, leg.Address)
	if leg.Error != "" {
		text += ": " + leg.Error
	}
	return text + ": `lhstoragectl verify` says more"
}

// sameConfig says whether two configurations mean the same.
func sameConfig(a, b string) bool {
	return a == b || canonical(a) == canonical(b)
}

// podReady says whether a pod is Ready.
func podReady(pod *corev1.Pod) bool {
	return slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}
