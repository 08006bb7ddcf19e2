package doctor

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// texts are what people find, and the check or the words that tell why.
var texts = []struct{ text, code, cause string }{
	// Longhorn
	{`time="…" level=warning msg="failed to apply storage-network setting to Longhorn components when there are attached volumes. It will be eventually applied"`, "LHS061", "every volume is detached"},
	{`Failed rebuilding of replica 10.100.1.17:10015: … dial tcp 10.100.1.17:10015: connect: no route to host`, "LHS041", "no ARP answer"},
	{`panic: runtime error: index out of range [0] with length 0 … types.GetStorageIPFromPod(...)`, "LHS051", "empty list"},
	{`engine controller: found unknown replica tcp://10.42.1.5:10000, removing it`, "LHS061", "while the volume was attached"},
	// Harvester's condition
	{`create NAD`, "LHS002", "makes the definition"},
	{`Stopping Pods`, "", "Prometheus"},
	{`waiting for all volumes detached: pvc-8b1c`, "LHS061", "named after the colon"},
	{`Update Longhorn setting`, "LHS072", "is written"},
	{`Restarting Pods`, "", "started again"},
	{`IP allocation failure for Longhorn Pods`, "LHS020", "fewer addresses"},
	// Harvester's webhook
	{`failed to unmarshal the setting value {, unexpected end of JSON input`, "", "isn't the JSON"},
	{`the valid value range for VLAN IDs is 0 to 4094`, "", "out of range"},
	{`network with vlan id 1 not allowed on mgmt cluster`, "", "management network"},
	{`range should be subnet CIDR 192.168.0.0/24`, "", "host bits"},
	{`IPv6 ranges are not supported for network settings`, "", "IPv4"},
	{`min supported prefix length for network is 16, include Range PrefixLen received 8`, "", "too large"},
	{`exclude range 10.0.0.0/30 do not overlap include range 192.168.0.0/24`, "", "isn't inside"},
	{`exclude Range 192.168.0.0/16 includes include Range 192.168.0.0/24, no allocatable ip addresses`, "LHS007", "whole range"},
	{`exclude ranges have overlapping subnets 192.168.0.0/30 192.168.0.2/32`, "", "neighbours only"},
	{`allocatable IP address range is < 12, allocate sufficient range`, "LHS020", "fewer addresses"},
	{`storage network cannot use the same vlan 100 as VM Network vlan as exclusive vlan is enabled`, "", "exclusiveVlan"},
	// IPAM
	{`Failed to create pod sandbox: rpc error: code = Unknown desc = … error at storage engine: Could not allocate IP in range: ip: 10.0.0.5 / - 10.0.0.12 / range: 10.0.0.0/24 / excludeRanges: []`, "LHS020", "no address is left"},
	{`net mask is too short, subnet 10.0.0.0/31 has no usable IP addresses, it is too small`, "LHS003", "/31"},
	{`could not parse exclude range, err: "invalid CIDR address: nope"`, "LHS003", "exclude"},
	{`invalid range start for CIDR 192.168.2.16/28: 192.168.1.5`, "LHS003", "first address"},
	{`error at storage engine: context deadline exceeded`, "", "store refused"},
	// nodes, runtime, Multus
	{`plugin type="multus" name="multus-cni-network" failed (add): failed to find plugin "lhstorage" in path [/opt/cni/bin]`, "LHS100", "k3s"},
	{`failed to find plugin "macvlan" in path [/opt/cni/bin]`, "LHS100", "Talos"},
	{`cannot find a network-attachment-definition (storage) in namespace (longhorn-system): network-attachment-definitions.k8s.cni.cncf.io "storage" not found`, "LHS060", "isn't there"},
	{`daemonset-controller Error creating: pods "lhstorage-x" is forbidden: violates PodSecurity "baseline:latest": host namespaces`, "LHS031", "privileged"},
	{`open /opt/cni/bin/macvlan: text file busy`, "LHS100", "in place"},
	{`mkdir /opt/cni: read-only file system`, "LHS100", "can't be written"},
	{`Last State: Terminated, Reason: OOMKilled`, "LHS038", "memory"},
	{`Unauthorized`, "LHS100", "expired"},
	// ours
	{`networks "a" and "b" describe parent vx differently: vni is 1 there and 2 here`, "LHS004", "differently"},
	{`parent vx can't be changed while devices hang on it: its VNI is 7, not 100`, "LHS111", "pods hang on it"},
	{`device flannel.1 has VNI 100 on UDP port 4789 already`, "LHS122", "second one"},
	{`the parent eth7 isn't on this node: ` + "`ip link`" + ` lists the devices`, "LHS110", "doesn't have"},
	{`device lhnet1-host can't serve as the host shim of vx: its mode is vepa, not bridge`, "LHS131", "something else"},
	{`the host shim's address 10.100.1.2 is on eth0 of this node already`, "LHS134", "another device"},
	{`address 10.100.1.16 is held by another device: MAC 02:00:00:00:00:01, seen on lhnet1`, "LHS027", "MAC"},
	{`the storage network of this node doesn't stay as it is set; in 10 rounds: …`, "LHS127", "changes"},
	{`iscsiPath "storage-ip" can't be had in this pod: eth1 wins`, "LHS145", "iscsiPath"},
	// the kernel and initiators: facts/peers.md and the source design
	{`RTNETLINK answers: Operation not supported. Cannot replace non-unicast fdb entries.`, "LHS114", "00:00:00:00:00:00"},
	{`failed to create macvlan: device or resource busy`, "LHS111", "passthru"},
	{`create vxlan vxlan-storage: operation not supported`, "LHS102", "lacks"},
	{`ping: local error: message too long, mtu=8950`, "LHS117", "larger"},
	{`IPv4: martian source 10.100.1.2 from 10.100.1.17, on dev vxlan-storage`, "LHS136", "rp_filter"},
	{`iscsiadm: cannot make connection to 10.100.1.17: No route to host`, "LHS040", "host shim"},
	{`iscsiadm: initiator reported error (8 - connection timed out)`, "LHS040", "host shim"},
	{`mount.nfs: Connection timed out`, "LHS067", "share manager"},
	{`failed to connect nvme controller: nvme connect failed: connection timed out`, "LHS040", "NVMe"},
}

func TestExplain(t *testing.T) {
	for _, c := range texts {
		causes := Explain(c.text)
		require.NotEmpty(t, causes, c.text)
		assert.Equal(t, c.code, causes[0].Code, c.text)
		assert.Contains(t, causes[0].Cause, c.cause, c.text)
		assert.NotEmpty(t, causes[0].Fix, c.text)
		assert.NotEmpty(t, causes[0].By)
		assert.Contains(t, c.text, causes[0].Said)
	}
	assert.Empty(t, Explain("Started container"))
	assert.Empty(t, Explain(""))
}

// What is known points to checks that there are, and each has something to do.
func TestSymptoms(t *testing.T) {
	for _, s := range symptoms {
		if s.code != "" {
			_, ok := Find(s.code)
			assert.True(t, ok, s.code)
		}
		assert.True(t, s.fix != "" || s.code != "", "%s: nothing to do", s.text)
		assert.NotEmpty(t, s.cause)
	}
}

// mistakes are those of facts/peers.md, and the check that finds each.
var mistakes = map[string]string{
	"deletes and makes the VXLAN device again on any mismatch": "LHS111",
	"children died with their parent":                          "LHS140",
	"a new device without its forwarding entries":              "LHS114",
	"stale peers stay":                                         "LHS115",
	"nolearning floods every unicast frame":                    "LHS116",
	"bridge fdb replace on the zero MAC":                       "LHS114",
	"MACAddressPolicy changes the MAC":                         "LHS124",
	"checksum offload":                                         "LHS125",
	"UDP port clash":                                           "LHS122",
	"a bridge as a macvlan parent":                             "LHS123",
	"a lowered MTU lowers the children for good":               "LHS143",
	"/proc/modules misses built-in vxlan":                      "LHS102",
	"rp_filter set back":                                       "LHS136",
	"networkd and NetworkManager take over":                    "LHS127",
	"the parent answers ARP for the shim":                      "LHS119",
	"a VXLAN made with dev dies with it":                       "LHS121",
	"made without an MTU it has 1500":                          "LHS117",
	"host-local and static ignore exclude":                     "LHS026",
	"a probe never sees an address on the parent":              "LHS134",
	"a physical NIC needs no shim":                             "LHS005",
	"attachments that a reboot lost":                           "LHS050",
	"addresses that leak":                                      "LHS023",
}

func TestMistakesOfPeers(t *testing.T) {
	for mistake, code := range mistakes {
		_, ok := Find(code)
		assert.True(t, ok, "%s: %s", mistake, code)
	}
}

func FuzzExplain(f *testing.F) {
	for _, c := range texts {
		f.Add(c.text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		for _, c := range Explain(text) {
			assert.Contains(t, text, c.Said)
		}
	})
}
