package controlplane

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"
)

const (
	tokenLifetime  = 12 * time.Hour // longer than any test
	requestTimeout = 30 * time.Second
)

// makeClients makes the administrator's clients and kubeconfig.
func (c *Cluster) makeClients() error {
	admin, err := c.pki.client("admin", "system:masters")
	if err != nil {
		return err
	}
	c.Config = &rest.Config{
		Host:            c.Server(),
		TLSClientConfig: rest.TLSClientConfig{CAData: c.pki.pem, CertData: admin.certificate, KeyData: admin.key},
		Dial:            c.Dial,
		Proxy:           noProxy,
		QPS:             -1, // no limit
		Timeout:         requestTimeout,
	}
	if c.Kube, err = kubernetes.NewForConfig(c.Config); err != nil {
		return err
	}
	if c.Dynamic, err = dynamic.NewForConfig(c.Config); err != nil {
		return err
	}
	c.mapper = newMapper(c.Kube.Discovery())
	content, err := c.kubeconfig(&api.AuthInfo{ClientCertificateData: admin.certificate, ClientKeyData: admin.key}, "")
	if err != nil {
		return err
	}
	return os.WriteFile(c.AdminKubeconfig(), content, 0o600)
}

// noProxy keeps requests from a proxy that this process's environment names.
func noProxy(*http.Request) (*url.URL, error) { return nil, nil } //nolint:nilnil // that is how it is said

// AdminKubeconfig is the path of the administrator's kubeconfig. Its server can be
// reached from the nodes and from the control plane's namespace.
func (c *Cluster) AdminKubeconfig() string { return filepath.Join(c.Dir, "admin.kubeconfig") }

// NodeKubeconfig is a kubeconfig with a kubelet's certificate, which the Node
// authorizer knows. It is valid for a day.
func (c *Cluster) NodeKubeconfig(node string) ([]byte, error) {
	return c.UserKubeconfig("", "system:node:"+node, "system:nodes")
}

// UserKubeconfig is a kubeconfig with a certificate for a user in groups, valid
// for a day. server (empty: the API server) may be another URL that leads there.
func (c *Cluster) UserKubeconfig(server, user string, groups ...string) ([]byte, error) {
	id, err := c.pki.client(user, groups...)
	if err != nil {
		return nil, err
	}
	return c.kubeconfigAt(server, &api.AuthInfo{ClientCertificateData: id.certificate, ClientKeyData: id.key}, "")
}

// File is the path of one of the authority's files: ca.crt, or tokens.key, which
// signs service accounts' tokens.
func (c *Cluster) File(name string) string { return c.pki.file(name) }

// Program is the path of a program of Kubernetes: kubelet, kubectl, …
func (c *Cluster) Program(name string) string { return filepath.Join(c.programs.kubernetes, name) }

// ServiceAccountKubeconfig is a kubeconfig with a token for a service account,
// valid for 12 hours, and the account's namespace as the current one. server
// (empty: the API server) may be a proxy's URL.
func (c *Cluster) ServiceAccountKubeconfig(ctx context.Context, namespace, name, server string) ([]byte, error) {
	token, err := c.Token(ctx, namespace, name, nil)
	if err != nil {
		return nil, err
	}
	return c.kubeconfigAt(server, &api.AuthInfo{Token: token}, namespace)
}

// Token asks the API server for a token of a service account. Bound to an object,
// it is refused once that object is gone.
func (c *Cluster) Token(ctx context.Context, namespace, name string, bound *authenticationv1.BoundObjectReference) (string, error) {
	seconds := int64(tokenLifetime.Seconds())
	request, err := c.Kube.CoreV1().ServiceAccounts(namespace).CreateToken(ctx, name, &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &seconds, BoundObjectRef: bound},
	}, metav1.CreateOptions{})
	if err != nil {
		return "", fmt.Errorf("ask for a token of service account %s/%s: %w", namespace, name, err)
	}
	return request.Status.Token, nil
}

func (c *Cluster) kubeconfig(user *api.AuthInfo, namespace string) ([]byte, error) {
	return c.kubeconfigAt("", user, namespace)
}

func (c *Cluster) kubeconfigAt(server string, user *api.AuthInfo, namespace string) ([]byte, error) {
	if server == "" {
		server = c.Server()
	}
	const name = "controlplane"
	config := api.NewConfig()
	config.Clusters[name] = &api.Cluster{Server: server, CertificateAuthorityData: c.pki.pem}
	config.AuthInfos[name] = user
	config.Contexts[name] = &api.Context{Cluster: name, AuthInfo: name, Namespace: namespace}
	config.CurrentContext = name
	return clientcmd.Write(*config)
}

// Kubectl runs kubectl as the administrator and returns what it printed: for
// people who look into a cluster that a test stopped at.
func (c *Cluster) Kubectl(ctx context.Context, args ...string) (string, error) {
	var out []byte
	err := within(c.netns(), func() (err error) {
		cmd := exec.CommandContext(ctx, filepath.Join(c.programs.kubernetes, "kubectl"), args...)
		cmd.Env = environ("KUBECONFIG="+c.AdminKubeconfig(), "HOME="+c.Dir)
		out, err = cmd.CombinedOutput()
		return err
	})
	if err != nil {
		return "", fmt.Errorf("kubectl %q: %w: %s", args, err, out)
	}
	return string(out), nil
}
