package longhornmanager

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lhstorage/lhstorage/integration/cluster"
	"github.com/lhstorage/lhstorage/integration/controlplane"
)

// TestLonghornManager walks docs/longhorn.md on the real longhorn-manager.
func TestLonghornManager(t *testing.T) {
	b := newBed(t)
	for _, step := range []struct {
		name string
		run  func(*testing.T, bed)
	}{
		{"a wrong network, and back", wrong},
		{"a volume is attached", attached},
		{"enable, from nothing to verified", enable},
		{"a volume is on it", onNetwork},
		{"the setting is changed by hand", byHand},
		{"disable", disable},
	} {
		if !t.Run(step.name, func(t *testing.T) { step.run(t, b) }) {
			return // each step begins with what the one before has left
		}
	}
}

// annotation is Longhorn's, to the letter.
const annotation = `[{"namespace": "longhorn-system", "name": "longhorn-storage", "interface": "lhnet1"}]`

// enable follows the setting to the address that Longhorn uses.
func enable(t *testing.T, b bed) {
	require.Empty(t, b.value(t))
	b.run(t, 0, "enable", "--config", b.nad)
	assert.Equal(t, network, b.value(t))
	require.NoError(t, b.managersRun(t.Context()))
	var running []cluster.Running
	pods := b.dataPods(t)
	require.Len(t, pods, len(b.Nodes))
	for i := range pods {
		assert.Equal(t, []string{annotation}, []string{pods[i].Annotations[controlplane.NetworksAnnotation]}, "Longhorn writes it to the letter")
		var entries []controlplane.NetworkStatus
		require.NoError(t, json.Unmarshal([]byte(pods[i].Annotations[controlplane.NetworkStatusAnnotation]), &entries))
		require.Len(t, entries, 2)
		assert.Equal(t, network, entries[1].Name)
		assert.Equal(t, cluster.StorageInterface, entries[1].Interface)
		require.Len(t, entries[1].IPs, 1)
		p, err := b.WaitRunning(t.Context(), Namespace, pods[i].Name)
		require.NoError(t, err)
		assert.Equal(t, entries[1].IPs[0], p.Storage.String(), "what is said is what is")
		assert.True(t, isForPods(p.Storage), "%s", p.Storage)
		running = append(running, p)
	}
	legs, err := b.Matrix(t.Context(), running)
	require.NoError(t, err)
	require.Len(t, legs, 6)
	for _, leg := range legs {
		assert.Zero(t, leg.Loss, "%s, %s to %s", leg.Leg, leg.From, leg.To)
	}
	b.run(t, 0, "verify", "--wait", "3m")
}

func isForPods(a netip.Addr) bool { return forPods.Contains(a) && !forHosts.Contains(a) }

func disable(t *testing.T, b bed) {
	b.run(t, 0, "disable")
	assert.Empty(t, b.value(t))
	require.NoError(t, b.managersRun(t.Context()))
	for _, p := range b.dataPods(t) {
		assert.Empty(t, p.Annotations[controlplane.NetworksAnnotation])
	}
	_, err := b.Kubectl(t.Context(), "--namespace", Namespace, "get", "network-attachment-definition", "longhorn-storage")
	assert.ErrorContains(t, err, "NotFound", "it was made by enable")
}

const volume = "vol-1"

// attach makes the volume if it isn't there, and attaches it to the first node without a device.
func (b bed) attach(t *testing.T) {
	t.Helper()
	if _, err := b.objects("volumes").Get(t.Context(), volume, metav1.GetOptions{}); err != nil {
		require.True(t, apierrors.IsNotFound(err), "%v", err)
		_, err = b.call(t.Context(), "volumes", map[string]any{"name": volume, "size": "33554432", "numberOfReplicas": 2, "dataEngine": "v1", "accessMode": "rwo"})
		require.NoError(t, err)
		b.until(t, "the volume is there", b.volumeIs("detached", "unknown"))
	}
	_, err := b.call(t.Context(), "volumes/"+volume+"?action=attach", map[string]any{
		"hostId": b.Nodes[0].Name, "disableFrontend": true, "attacherType": "longhorn-api",
	})
	require.NoError(t, err)
	b.until(t, "the volume is attached", b.volumeIs("attached", "healthy"))
}

func (b bed) detach(t *testing.T) {
	t.Helper()
	_, err := b.call(t.Context(), "volumes/"+volume+"?action=detach", map[string]any{"hostId": b.Nodes[0].Name})
	require.NoError(t, err)
	b.until(t, "the volume is detached", b.volumeIs("detached", "unknown"))
}

// volumeIs fails until the volume is in a state; "": in any.
func (b bed) volumeIs(state, robustness string) func(context.Context) error {
	return func(ctx context.Context) error {
		v, err := b.objects("volumes").Get(ctx, volume, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if is := textOf(v, "status", "state"); state != "" && is != state || textOf(v, "status", "robustness") != robustness {
			return fmt.Errorf("it is %q, %q", is, textOf(v, "status", "robustness"))
		}
		return nil
	}
}

// storageIPs are those of the volume's engine and replicas.
func (b bed) storageIPs(t *testing.T) (all []string) {
	t.Helper()
	for _, plural := range []string{"engines", "replicas"} {
		list, err := b.objects(plural).List(t.Context(), metav1.ListOptions{})
		require.NoError(t, err)
		for i := range list.Items {
			if textOf(&list.Items[i], "status", "currentState") == "running" {
				all = append(all, textOf(&list.Items[i], "status", "storageIP"))
			}
		}
	}
	return all
}

// onNetwork has a volume on the network: Longhorn's addresses and its connections are of it, and lhstoragectl won't pull the network from under it.
func onNetwork(t *testing.T, b bed) {
	b.attach(t)
	addresses := b.storageIPs(t)
	assert.Len(t, addresses, 3)
	for _, text := range addresses {
		a, err := netip.ParseAddr(text)
		require.NoError(t, err)
		assert.True(t, isForPods(a), "%s", text)
	}
	b.wantReplicaTraffic(t)
	said := b.run(t, 1, "disable")
	assert.Contains(t, said, "[hand-attached] volume "+volume+" was attached to "+b.Nodes[0].Name+" by hand")
	assert.Equal(t, network, b.value(t))
	b.detach(t)
}

// wantReplicaTraffic checks that the engine, on the first node, talks to its replica on the other by the network, and to none by another.
func (b bed) wantReplicaTraffic(t *testing.T) {
	t.Helper()
	var engine, replica cluster.Running
	for _, pod := range b.dataPods(t) {
		p, err := b.WaitRunning(t.Context(), Namespace, pod.Name)
		require.NoError(t, err)
		if p.Node == b.Nodes[0] {
			engine = p
		} else {
			replica = p
		}
	}
	before := received(t, replica)
	b.until(t, "the replica hears of its engine by "+cluster.StorageInterface, func(context.Context) error {
		if received(t, replica) == before {
			return errors.New("it has heard nothing")
		}
		return nil
	})
	over := 0
	for _, c := range connections(t, engine) {
		switch {
		case c[1].Addr() == replica.Storage && c[1].Port() >= firstReplicaPort:
			assert.Equal(t, engine.Storage, c[0].Addr(), "%v", c)
			over++
		case c[1].Addr().String() == replica.Status.PodIP:
			assert.Less(t, c[1].Port(), uint16(firstReplicaPort), "%v: data on the pod network", c)
		}
	}
	assert.Positive(t, over, "no connection from %s to %s", engine.Storage, replica.Storage)
	t.Logf("%d connections from %s to %s, %d bytes received there by %s", over, engine.Storage, replica.Storage, received(t, replica), cluster.StorageInterface)
}

// firstReplicaPort is the first of those that replicas listen on.
const firstReplicaPort = 10000

// received is how many bytes came into a pod by the network.
func received(t *testing.T, p cluster.Running) (n uint64) {
	t.Helper()
	require.NoError(t, p.In(func() error {
		link, err := netlinksafe.LinkByName(cluster.StorageInterface)
		if err == nil {
			n = link.Attrs().Statistics.RxBytes
		}
		return err
	}))
	return n
}

// connections are the established ones over IPv4 that were begun in a pod, or whose listener is for IPv4 alone: from and to.
func connections(t *testing.T, p cluster.Running) (all [][2]netip.AddrPort) {
	t.Helper()
	var table []byte
	require.NoError(t, p.In(func() (err error) {
		table, err = os.ReadFile("/proc/thread-self/net/tcp")
		return err
	}))
	for line := range strings.Lines(string(table)) {
		fields := strings.Fields(line)
		if len(fields) < 4 || fields[3] != "01" { // ESTABLISHED
			continue
		}
		all = append(all, [2]netip.AddrPort{socketAddress(t, fields[1]), socketAddress(t, fields[2])})
	}
	return all
}

// socketAddress reads the kernel's way to write one: the address in the machine's order of bytes.
func socketAddress(t *testing.T, text string) netip.AddrPort {
	t.Helper()
	var a uint32
	var port uint16
	_, err := fmt.Sscanf(text, "%08X:%04X", &a, &port)
	require.NoError(t, err)
	var bytes [4]byte
	binary.NativeEndian.PutUint32(bytes[:], a)
	return netip.AddrPortFrom(netip.AddrFrom4(bytes), port)
}

// wrongNetwork has no device on any node.
const wrongNetwork = `{"cniVersion": "1.0.0", "name": "wrong", "type": "macvlan", "master": "none0", "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.100.7.0/24"}]]}}`

// wrong gives Longhorn a network whose interfaces can't be made, and takes it back.
func wrong(t *testing.T, b bed) {
	file := filepath.Join(t.TempDir(), "wrong.json")
	require.NoError(t, os.WriteFile(file, []byte(wrongNetwork), 0o600))
	said := b.run(t, 3, "enable", "--config", file, "--network", Namespace+"/wrong", "--wait-pods", "2m")
	assert.Contains(t, said, "FailedCreatePodSandBox")
	assert.Contains(t, said, `network "wrong": Link not found`)
	assert.Equal(t, Namespace+"/wrong", b.value(t))
	b.run(t, 0, "rollback")
	assert.Empty(t, b.value(t))
	require.NoError(t, b.managersRun(t.Context()))
}

// attached has a volume attached: nothing is begun.
func attached(t *testing.T, b bed) {
	b.attach(t)
	said := b.run(t, 1, "enable", "--config", b.nad)
	assert.Contains(t, said, "[hand-attached] volume "+volume+" was attached to "+b.Nodes[0].Name+" by hand")
	assert.Empty(t, b.value(t))
	require.NoError(t, b.volumeIs("attached", "healthy")(t.Context()))
	b.detach(t)
}

// byHand changes the setting with the volume attached, which Longhorn lets anybody do: the volume is lost. That is what lhstoragectl's refusals are for.
func byHand(t *testing.T, b bed) {
	b.attach(t)
	b.setValue(t, "")
	b.until(t, "the volume is lost", b.volumeIs("", "faulted"))
	b.setValue(t, network)
	require.NoError(t, b.objects("volumes").Delete(t.Context(), volume, metav1.DeleteOptions{}))
	b.until(t, "the volume is deleted", func(ctx context.Context) error {
		_, err := b.objects("volumes").Get(ctx, volume, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			return nil
		case err == nil:
			return errors.New("it is there")
		}
		return err
	})
	b.until(t, "Longhorn has an instance manager on each node", b.managersRun)
}
