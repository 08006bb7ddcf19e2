package netconf

import (
	"encoding/json"
	"net"
	"net/netip"
	"strings"
	"unicode"
)

// request is an address that the runtime asks for on behalf of the pod.
type request struct {
	key     string // where it was found
	value   string // as written
	env     bool   // it came by CNI_ARGS
	addr    netip.Addr
	network netip.Prefix // invalid when no prefix length was given
}

// fault reports that the address can't be used, with the code of the place it came from.
func (q request) fault(r *report, format string, args ...any) {
	if q.env {
		r.envFault(q.key, q.value, format, args...)
		return
	}
	r.fault(q.key, quote(q.value), format, args...)
}

// cniArgs reads CNI_ARGS: KEY=VALUE pairs, separated by semicolons. As for the CNI
// project's own plugins an unknown key is an error unless IgnoreUnknown is set, keys
// are spelt exactly, and a pair has one '='. Known are the keys of Kubernetes'
// runtimes and those of the stock macvlan and IPAM plugins.
func (b *builder) cniArgs(s string) {
	if s == "" {
		return
	}
	ignore := false
	var unknown []string
	for pair := range strings.SplitSeq(s, ";") {
		key, value, ok := strings.Cut(pair, "=")
		if !ok || key == "" || strings.Contains(value, "=") {
			b.envFault("CNI_ARGS", pair, "isn't a KEY=VALUE pair")
			continue
		}
		name := join("CNI_ARGS", key)
		switch key {
		case "IgnoreUnknown":
			switch strings.ToLower(value) {
			case "1", "true":
				ignore = true
			case "0", "false":
			default:
				b.envFault(name, value, "must be 1, true, 0 or false")
			}
		case "MAC":
			b.setMAC(value, func(problem string) { b.envFault(name, value, "%s", problem) })
		case "IP":
			b.request(name, true, strings.Split(value, ","))
		case "K8S_POD_NAMESPACE":
			b.plan.Pod.Namespace = b.podField(name, value)
		case "K8S_POD_NAME":
			b.plan.Pod.Name = b.podField(name, value)
		case "K8S_POD_UID":
			b.plan.Pod.UID = b.podField(name, value)
		case "GATEWAY", "K8S_POD_INFRA_CONTAINER_ID": // the static IPAM's; the container id is CNI_CONTAINERID
		default:
			unknown = append(unknown, pair)
		}
	}
	if ignore {
		return
	}
	for _, pair := range unknown {
		key, value, _ := strings.Cut(pair, "=")
		b.envFault(join("CNI_ARGS", key), value, "unknown key; add IgnoreUnknown=1 if it is meant for another plugin")
	}
}

// podField reads what ends up in names of files and objects.
func (b *builder) podField(key, value string) string {
	odd := func(c rune) bool {
		return c == '/' || unicode.IsSpace(c) || unicode.IsControl(c) || c == unicode.ReplacementChar
	}
	if len(value) > 253 || strings.ContainsFunc(value, odd) || value == "." || value == ".." {
		b.envFault(key, value, "can't be the name of a Kubernetes object")
		return ""
	}
	return value
}

// runtime reads the addresses that the runtime asks for. Of several the strongest
// wins: runtimeConfig, then args.cni, then CNI_ARGS, then the NetConf itself.
func (b *builder) runtime() {
	env := b.plan.MAC
	b.plan.MAC = nil
	b.macOf("mac", b.conf.mac)
	if env != nil {
		b.plan.MAC = env
	}
	var cni json.RawMessage
	b.section("args", orEmpty(b.conf.args), []field{object("cni", &cni)}, open)
	b.askedBy("args.cni", cni)
	b.askedBy("runtimeConfig", b.conf.runtimeConfig)
}

// askedBy reads mac and ips of an object that a runtime filled in.
func (b *builder) askedBy(path string, raw json.RawMessage) {
	var mac opt[string]
	var ips opt[[]string]
	b.section(path, orEmpty(raw), []field{text("mac", &mac), texts("ips", &ips, false)}, open)
	b.macOf(path+".mac", mac)
	b.request(path+".ips", false, ips.val)
}

func orEmpty(raw json.RawMessage) json.RawMessage {
	if raw == nil {
		return json.RawMessage("{}")
	}
	return raw
}

func (b *builder) macOf(key string, value opt[string]) {
	if value.given() {
		b.setMAC(value.val, func(problem string) { b.fault(key, value.raw, "%s", problem) })
	}
}

// setMAC takes over a MAC that a macvlan interface can have.
func (b *builder) setMAC(value string, fault func(problem string)) {
	mac, err := net.ParseMAC(value)
	switch {
	case value == "":
	case err != nil || len(mac) != 6:
		fault("must be a MAC address such as 02:00:00:00:00:01")
	case mac[0]&1 != 0:
		fault("is a group address (the lowest bit of its first byte is set): no interface can have it")
	case mac.String() == "00:00:00:00:00:00":
		fault("no interface can have this MAC address")
	default:
		b.plan.MAC = mac
	}
}

func (b *builder) request(key string, env bool, values []string) {
	for _, v := range values {
		q := request{key: key, value: strings.TrimSpace(v), env: env}
		if q.value == "" {
			continue
		}
		var err error
		if q.addr, q.network, err = parseAddrOrCIDR(q.value); err != nil {
			q.fault(b.report, "must be an address, with or without a prefix length")
			continue
		}
		b.asked = append(b.asked, q)
	}
}
