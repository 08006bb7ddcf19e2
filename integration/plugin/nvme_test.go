package plugin

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const nqn = "nqn.2023-01.io.longhorn.spdk:volume"

// serveNVMe has the kernel serve the volume over NVMe/TCP on the pod's storage
// address, as Longhorn's v2 engine has SPDK do it, until the function returned is
// called.
func serveNVMe(t *testing.T, p *pod, v *volume) (end func()) {
	t.Helper()
	subsystem, port := configFS+"/nvmet/subsystems/"+nqn, configFS+"/nvmet/ports/1"
	p.sh(t, mountConfigFS+`modprobe nvmet_tcp
		mkdir %[1]s
		echo 1 >%[1]s/attr_allow_any_host
		mkdir %[1]s/namespaces/1
		printf %%s %[2]s >%[1]s/namespaces/1/device_path
		echo 1 >%[1]s/namespaces/1/buffered_io
		echo 1 >%[1]s/namespaces/1/enable
		mkdir %[3]s
		echo ipv4 >%[3]s/addr_adrfam
		echo tcp >%[3]s/addr_trtype
		echo %[4]s >%[3]s/addr_traddr
		echo 4420 >%[3]s/addr_trsvcid
		ln -s %[1]s %[3]s/subsystems/volume`, subsystem, v.disk, port, p.addr())
	return func() {
		t.Helper()
		p.sh(t, `rm %[1]s/subsystems/volume; rmdir %[1]s
			echo 0 >%[2]s/namespaces/1/enable; rmdir %[2]s/namespaces/1 %[2]s`, port, subsystem)
	}
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

// Longhorn's v2 data path, but for SPDK.
func TestKernelNVMe(t *testing.T) {
	n1, n2 := thisMachine(t)
	n1.sh(t, "modprobe nvme_tcp")
	v := newVolume(t)
	connect := func(p *pod) (string, error) {
		return nvme(t, "connect --transport=tcp --trsvcid=4420 --nqn="+nqn+" --traddr="+p.addr().String())
	}
	stock, c := n1.stockPod(t)
	end := serveNVMe(t, stock, v)
	out, err := connect(stock)
	require.Error(t, err, "stock macvlan: %s", out)
	t.Logf("stock macvlan: %v: %s", err, out)
	end()
	n1.must(t, "DEL", stock, c)

	local, remote := n1.pod(t, "local"), n2.pod(t, "remote")
	n1.add(t, local, n1.vxlan())
	n2.add(t, remote, n2.vxlan())
	for name, p := range map[string]*pod{"target on this node": local, "target on another node": remote} {
		t.Run(name, func(t *testing.T) {
			end := serveNVMe(t, p, v)
			defer end()
			out, err := connect(p)
			require.NoError(t, err, out)
			defer func() {
				out, err := nvme(t, "disconnect --nqn="+nqn)
				assert.NoError(t, err, out)
			}()
			var device string
			require.Eventually(t, func() bool {
				// Not nvme0c0n1, which is one path to it. The size is zero until a path is up.
				sizes, _ := filepath.Glob("/sys/block/nvme?n1/size")
				if len(sizes) != 1 {
					return false
				}
				device = "/dev/" + filepath.Base(filepath.Dir(sizes[0]))
				size, err := os.ReadFile(sizes[0])
				return err == nil && strings.TrimSpace(string(size)) == strconv.Itoa(volumeBytes/512)
			}, time.Minute, 50*time.Millisecond, "a block device appears")
			requireFileSystem(t, n1, device)
		})
	}
}
