package netconf

import (
	"encoding/json"
	"math"
	"strings"
)

// Names of keys that more than one place needs.
const (
	keyAttachments      = "cni.dev/valid-attachments"
	keyAttachmentsAlias = "cni.dev/attachments"
	keyHostRangeAlias   = "host_shim_range"
)

// Defaults of the NetConf.
const (
	DefaultType          = "lhstorage"
	DefaultVersion       = "0.1.0" // what the CNI specification gives a configuration that says none
	DefaultPort          = 4789    // IANA's for VXLAN
	DefaultVTEPInterface = "dummy0"
	DefaultVTEPRoutes    = "none"
	DefaultShimName      = "lhnet1-host"
	DefaultMode          = "bridge"
	DefaultWindow        = "20ms"
)

// conf is a NetConf as written, before anything is made of it. Its fields methods
// are the list of all keys; docs/netconf.schema.json is held against them by a test.
type conf struct {
	cniVersion, name, typ         opt[string]
	master, mode, mac, iscsiPath  opt[string]
	mtu, bcQueueLen               opt[int]
	linkInContainer               opt[bool]
	parent                        parentConf
	hostShim                      shimConf
	conflict                      conflictConf
	ipam, dns, prevResult         json.RawMessage
	runtimeConfig, args           json.RawMessage
	attachments, attachmentsAlias json.RawMessage
}

func (c *conf) fields() []field {
	return []field{
		text("cniVersion", &c.cniVersion),
		text("name", &c.name),
		text("type", &c.typ),
		{key: "parent", sub: c.parent.fields(), keep: &c.parent.raw},
		text("master", &c.master),
		{key: "hostShim", sub: c.hostShim.fields(), keep: &c.hostShim.raw},
		choice("mode", &c.mode, "bridge", "private", "vepa", "passthru"),
		mtuField("mtu", &c.mtu),
		text("mac", &c.mac),
		integer("bcqueuelen", &c.bcQueueLen, 0, math.MaxUint32),
		flag("linkInContainer", &c.linkInContainer),
		choice("iscsiPath", &c.iscsiPath, string(ISCSIAuto), string(ISCSIStorageIP), string(ISCSIPodIP)),
		{key: "conflictDetection", sub: c.conflict.fields(), keep: &c.conflict.raw},
		object("ipam", &c.ipam),
		object("dns", &c.dns),
		object("prevResult", &c.prevResult),
		object("runtimeConfig", &c.runtimeConfig),
		object("args", &c.args),
		verbatim(keyAttachments, &c.attachments),
		verbatim(keyAttachmentsAlias, &c.attachmentsAlias),

		// Read by runtimes, by Multus, or by plugins that share the NAD; stock macvlan
		// passes over them as well.
		ignored("capabilities"),
		ignored("cniVersions"),
		ignored("disableCheck"),
		ignored("disableGC"),
		ignored("loadOnlyInlinedPlugins"),
		ignored("ipMasq"),
		ignored("deviceID"),
		ignored("pciBusID"),
	}
}

// runtimeKey says whether a top-level key belongs to the CNI project's own name space.
func runtimeKey(key string) bool { return strings.HasPrefix(key, "cni.dev/") }

type parentConf struct {
	raw                  json.RawMessage
	typ, name, device    opt[string]
	mtu, vni, port, vlan opt[int]
	vtep                 vtepConf
	peers                opt[[]string]
}

func (p *parentConf) fields() []field {
	return []field{
		choice("type", &p.typ, string(ParentVXLAN), string(ParentVLAN), string(ParentDevice)),
		text("name", &p.name),
		mtuField("mtu", &p.mtu),
		integer("vni", &p.vni, 1, 1<<24-1),
		integer("port", &p.port, 1, math.MaxUint16),
		{key: "vtep", sub: p.vtep.fields(), keep: &p.vtep.raw},
		texts("peers", &p.peers, false),
		text("device", &p.device),
		integer("vlan", &p.vlan, 1, 4094),
	}
}

type vtepConf struct {
	cidr, iface, routes opt[string]
	raw, via            json.RawMessage
}

func (v *vtepConf) fields() []field {
	return []field{
		text("cidr", &v.cidr),
		text("interface", &v.iface),
		choice("routes", &v.routes, "none", "static"),
		object("via", &v.via),
	}
}

type shimConf struct {
	raw       json.RawMessage
	name      opt[string]
	ranges    opt[[]string]
	addresses opt[[]string]
}

func (s *shimConf) fields() []field {
	return []field{
		text("name", &s.name),
		texts("range", &s.ranges, true),
		texts("address", &s.addresses, true),
	}
}

type conflictConf struct {
	raw     json.RawMessage
	enabled opt[bool]
	window  opt[string]
}

func (c *conflictConf) fields() []field {
	return []field{flag("enabled", &c.enabled), text("window", &c.window)}
}
