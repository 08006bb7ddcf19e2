package ipam

import (
	"strconv"
	"strings"

	"github.com/lhstorage/lhstorage/pkg/cnierr"
)

// Pod is what CNI_ARGS say about the pod.
type Pod struct {
	Ref string // namespace/name; empty outside Kubernetes
	UID string
	MAC string // asked for; empty when it isn't

	ip, gateway string // comma lists
}

// args reads CNI_ARGS: KEY=VALUE;KEY=VALUE. Unknown keys are for other plugins. The keys of a pod
// count only together: half a name would make two pods one.
func (p *parser) args() {
	values := map[string]string{}
	for pair := range strings.SplitSeq(p.in.Args, ";") {
		if pair == "" {
			continue
		}
		key, value, ok := strings.Cut(pair, "=")
		if !ok {
			p.add(cnierr.InvalidEnvironment, "CNI_ARGS", strconv.Quote(pair), "must be KEY=VALUE pairs with ';' between them")
			continue
		}
		values[key] = value
	}
	pod := &p.cfg.Pod
	namespace, name := values["K8S_POD_NAMESPACE"], values["K8S_POD_NAME"]
	if (namespace == "") != (name == "") {
		p.warn("CNI_ARGS has one of K8S_POD_NAMESPACE %q and K8S_POD_NAME %q without the other: the address belongs to the container instead of a pod", namespace, name)
	}
	if namespace != "" && name != "" {
		pod.Ref = namespace + "/" + name
	}
	pod.UID, pod.MAC = values["K8S_POD_UID"], values["MAC"]
	pod.ip, pod.gateway = values["IP"], values["GATEWAY"]
}
