package plugin

import (
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const nqn = "nqn.2023-01.io.longhorn.spdk:volume"

// nvmeTCP is Longhorn's v2 engine, but that the kernel serves the volume and not SPDK:
// on the storage address of the pod that sets it up.
type nvmeTCP struct{ disk string }

const (
	nvmeSubsystem = configFS + "/nvmet/subsystems/" + nqn
	nvmePort      = configFS + "/nvmet/ports/1"
)

func (e nvmeTCP) serve(t *testing.T, p *pod) {
	t.Helper()
	p.sh(t, mountConfigFS+`modprobe nvmet_tcp
		mkdir %[1]s
		echo 1 >%[1]s/attr_allow_any_host
		mkdir %[1]s/namespaces/1
		printf %%s %[2]s >%[1]s/namespaces/1/device_path
		echo 1 >%[1]s/namespaces/1/buffered_io
		echo 4d8d8c0e-7b0f-4c3f-9a53-3a2c8d0a6f11 >%[1]s/namespaces/1/device_uuid
		echo 1 >%[1]s/namespaces/1/enable
		mkdir %[3]s
		echo ipv4 >%[3]s/addr_adrfam
		echo tcp >%[3]s/addr_trtype
		echo %[4]s >%[3]s/addr_traddr
		echo 4420 >%[3]s/addr_trsvcid
		ln -s %[1]s %[3]s/subsystems/volume`, nvmeSubsystem, e.disk, nvmePort, p.addr())
}

func (nvmeTCP) end(t *testing.T) {
	t.Helper()
	script := fmt.Sprintf(`rm %[1]s/subsystems/volume; rmdir %[1]s
		echo 0 >%[2]s/namespaces/1/enable; rmdir %[2]s/namespaces/1 %[2]s`, nvmePort, nvmeSubsystem)
	out, err := exec.Command("sh", "-ec", script).CombinedOutput()
	require.NoError(t, err, "%s", out)
}

// nvme runs the initiator's tool as Longhorn does.
func nvme(t *testing.T, args string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	argv := append([]string{"--mount=/proc/1/ns/mnt", "--net=/proc/1/ns/net", "nvme"}, strings.Fields(args)...)
	out, err := exec.CommandContext(ctx, "nsenter", argv...).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func (nvmeTCP) find(t *testing.T, at netip.Addr) (string, error) {
	t.Helper()
	return nvme(t, "discover --transport=tcp --trsvcid=4420 --traddr="+at.String())
}

func (nvmeTCP) attach(t *testing.T, at netip.Addr) string {
	t.Helper()
	out, err := nvme(t, "connect --transport=tcp --trsvcid=4420 --reconnect-delay=1 --keep-alive-tmo=2 --nqn="+nqn+" --traddr="+at.String())
	require.NoError(t, err, out)
	var device string
	require.Eventually(t, func() bool {
		found, _ := filepath.Glob("/sys/block/nvme?n1") // not nvme0c0n1, which is one path to it
		if len(found) != 1 {
			return false
		}
		device = "/dev/" + filepath.Base(found[0])
		return usable(device)
	}, time.Minute, 50*time.Millisecond, "a block device appears")
	return device
}

func (nvmeTCP) detach(t *testing.T, _ netip.Addr) {
	t.Helper()
	out, err := nvme(t, "disconnect --nqn="+nqn)
	require.NoError(t, err, out)
}

// Longhorn's v2 data path, but for SPDK.
func TestKernelNVMe(t *testing.T) {
	n1, n2 := thisMachine(t)
	n1.sh(t, "modprobe nvme_tcp")
	e := nvmeTCP{newDisk(t)}
	requireStockFails(t, n1, e)
	local, remote := n1.pod(t, "local"), n2.pod(t, "remote")
	n1.add(t, local, n1.vxlan())
	n2.add(t, remote, n2.vxlan())
	requireVolumes(t, n1, e, local, remote)
	t.Run("faults under I/O", func(t *testing.T) { faultsUnderIO(t, n1, e, local) })
}
