package controlplane

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	etcdURL     = "http://127.0.0.1:2379" // in the control plane's namespace, where no node gets to
	etcdPeerURL = "http://127.0.0.1:2380"

	readyWait = 2 * time.Minute // on a machine that is busy with other things; idle it takes a few seconds
)

// Services is the cluster's Service network. Nothing serves it.
var Services = netip.MustParsePrefix("10.96.0.0/16")

// firstService is the address of the Service kubernetes.default.
func firstService() net.IP { return Services.Addr().Next().AsSlice() }

// Server is the API server's URL on the nodes.
func (c *Cluster) Server() string {
	return fmt.Sprintf("https://%s", netip.AddrPortFrom(APIAddress, apiPort))
}

func (c *Cluster) startEtcd(ctx context.Context) error {
	argv := []string{
		filepath.Join(c.programs.kubernetes, "etcd"),
		"--data-dir=" + filepath.Join(c.Dir, "etcd"),
		"--listen-client-urls=" + etcdURL, "--advertise-client-urls=" + etcdURL,
		"--listen-peer-urls=" + etcdPeerURL, "--initial-advertise-peer-urls=" + etcdPeerURL,
		"--initial-cluster=default=" + etcdPeerURL,
		"--log-level=warn",
	}
	if c.opts.UnsafeNoFsync {
		argv = append(argv, "--unsafe-no-fsync")
	}
	etcd, err := c.launch("etcd", argv)
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.etcd = etcd
	c.mu.Unlock()
	client := &http.Client{Transport: &http.Transport{DialContext: c.Dial, DisableKeepAlives: true}}
	return Until(ctx, etcd, "etcd is healthy", func(ctx context.Context) error { return getOK(ctx, client, etcdURL+"/health") })
}

// StartAPIServer starts kube-apiserver, again if need be, on the data that are
// there, and waits until it is ready.
func (c *Cluster) StartAPIServer(ctx context.Context) error {
	api, err := c.launchAPIServer()
	if err != nil {
		return err
	}
	return Until(ctx, api, "kube-apiserver is ready", c.ready)
}

// StopAPIServer lets kube-apiserver end in order. etcd and the data stay.
func (c *Cluster) StopAPIServer() error { return c.takeAPIServer().Stop() }

// KillAPIServer ends kube-apiserver at once. etcd and the data stay.
func (c *Cluster) KillAPIServer() error { return c.takeAPIServer().Kill() }

// Processes are the programs of the control plane that run: etcd and, unless it
// is stopped, kube-apiserver.
func (c *Cluster) Processes() []*Process {
	c.mu.Lock()
	defer c.mu.Unlock()
	var running []*Process
	for _, p := range []*Process{c.etcd, c.api} {
		if p != nil {
			running = append(running, p)
		}
	}
	return running
}

func (c *Cluster) takeAPIServer() *Process {
	c.mu.Lock()
	defer c.mu.Unlock()
	api := c.api
	c.api = nil
	return api
}

func (c *Cluster) launchAPIServer() (*Process, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.api != nil && !c.api.ended() {
		return nil, fmt.Errorf("start kube-apiserver: it runs already (pid %d)", c.api.PID())
	}
	audit, err := c.auditFlags()
	if err != nil {
		return nil, err
	}
	api, err := c.launch("kube-apiserver", append([]string{
		filepath.Join(c.programs.kubernetes, "kube-apiserver"),
		"--etcd-servers=" + etcdURL,
		"--advertise-address=" + APIAddress.String(),
		fmt.Sprintf("--secure-port=%d", apiPort),
		"--tls-cert-file=" + c.pki.file("apiserver.crt"),
		"--tls-private-key-file=" + c.pki.file("apiserver.key"),
		"--client-ca-file=" + c.pki.file("ca.crt"),
		"--kubelet-client-certificate=" + c.pki.file("kubelet-client.crt"), // for logs and exec, where there are kubelets
		"--kubelet-client-key=" + c.pki.file("kubelet-client.key"),
		"--kubelet-preferred-address-types=InternalIP",
		"--authorization-mode=Node,RBAC",
		"--enable-admission-plugins=NodeRestriction",
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file=" + c.pki.file("tokens.key"),
		"--service-account-signing-key-file=" + c.pki.file("tokens.key"),
		"--service-cluster-ip-range=" + Services.String(),
		"--allow-privileged=true",
		"--shutdown-watch-termination-grace-period=1s", // else an orderly end waits a minute for watches
	}, audit...))
	c.api = api
	return api, err
}

// AuditLog is the path of the API server's audit log: an event of audit.k8s.io/v1 in each line, of each request by a service account, when it is
// answered (a watch: when it begins and when it ends). It is there with [Options.Audit] alone.
func (c *Cluster) AuditLog() string { return filepath.Join(c.Dir, "audit.json") }

const auditPolicy = `{"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"],
 "rules": [{"level": "Metadata", "userGroups": ["system:serviceaccounts"]}, {"level": "None"}]}`

func (c *Cluster) auditFlags() ([]string, error) {
	if !c.opts.Audit {
		return nil, nil
	}
	policy := filepath.Join(c.Dir, "audit-policy.json")
	return []string{"--audit-policy-file=" + policy, "--audit-log-path=" + c.AuditLog()}, os.WriteFile(policy, []byte(auditPolicy), 0o644)
}

// StartControl starts another program of Kubernetes beside the API server:
// kube-controller-manager, kube-scheduler. It ends with the cluster, if not before.
func (c *Cluster) StartControl(name string, args ...string) (*Process, error) {
	p, err := c.launch(name, append([]string{filepath.Join(c.programs.kubernetes, name)}, args...))
	if err != nil {
		return nil, err
	}
	c.keep(p)
	return p, nil
}

// keep lets a program end with the cluster.
func (c *Cluster) keep(p *Process) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.daemons = append(c.daemons, p)
}

// launch starts a program of the control plane.
func (c *Cluster) launch(name string, argv []string) (*Process, error) {
	return Launch(name, filepath.Join(c.Dir, name+".log"), func() error { return enterNetns(c.netns()) }, argv, environ())
}

// environ is the environment of the cluster's programs: nothing of this process's.
func environ(more ...string) []string {
	return append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, more...)
}

// ready fails until the API server says that it is, and its namespaces are there:
// it makes them in the background.
func (c *Cluster) ready(ctx context.Context) error {
	if err := c.Kube.Discovery().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error(); err != nil {
		return err
	}
	for _, name := range []string{metav1.NamespaceSystem, metav1.NamespaceDefault} {
		if _, err := c.Kube.CoreV1().Namespaces().Get(ctx, name, metav1.GetOptions{}); err != nil {
			return err
		}
	}
	return nil
}

func getOK(ctx context.Context, client *http.Client, url string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close() //nolint:errcheck // read only
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, response.Status)
	}
	return nil
}

// present makes an error of a creation nil if the object was there already.
func present(err error) error {
	if errors.IsAlreadyExists(err) {
		return nil
	}
	return err
}
