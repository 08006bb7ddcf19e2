// Package kubeconfig gives a node's plugins their access to the cluster: a token of a service account that is bound to the Node, in a
// kubeconfig that only root can read. The installer writes it first, the agent renews it.
//
//	file, err := kubeconfig.ServerOf(restConfig)         // address and CA, as this process has them
//	renewal := kubeconfig.Renewal{API: api, Account: kubeconfig.NodeAccount, Node: nodeName, File: file}
//	token, err := renewal.Write(ctx, "/etc/lhstorage/kubeconfig")
//	… again at token.Due()
//
// The token is bound to the Node and not to the pod that asks for it, or it would be refused as soon as that pod
// is replaced; with the Node it ends, too. What it's bound to comes with each request (the extra
// authentication.kubernetes.io/node-name), and a ValidatingAdmissionPolicy goes by it. Kubernetes binds tokens to
// Nodes from 1.31 on (feature gate ServiceAccountTokenNodeBinding, on since then).
package kubeconfig

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"

	"github.com/lhstorage/lhstorage/pkg/atomicfile"
	"github.com/lhstorage/lhstorage/pkg/kubeapi"
)

// Mode of the file: it holds a credential.
const Mode = 0o600

// DefaultLifetime is what is asked for. The agent renews a token at a quarter of it; the rest is how long the agent, or the
// API server, may be away before ADDs fail.
const DefaultLifetime = 24 * time.Hour

// name of cluster, user and context in the file.
const name = "lhstorage"

// Account is a service account.
type Account struct{ Namespace, Name string }

// NodeAccount is the account of the plugins on the nodes.
var NodeAccount = Account{Namespace: metav1.NamespaceSystem, Name: "lhstorage-node"}

func (a Account) String() string { return a.Namespace + "/" + a.Name }

// User is the account's name as the API server knows it.
func (a Account) User() string { return "system:serviceaccount:" + a.Namespace + ":" + a.Name }

// Token is a service account's token.
type Token struct {
	Value           string
	Issued, Expires time.Time // by the API server's clock
}

// Due is when a token is to be renewed: a quarter of its life after it was issued, so that three tries
// of as long as that may fail.
func (t Token) Due() time.Time { return t.Issued.Add(t.Expires.Sub(t.Issued) / 4) }

// ParseToken reads when a token was issued and when it expires. That the API server would take it isn't checked.
func ParseToken(value string) (Token, error) {
	parts := strings.Split(value, ".")
	if len(parts) != 3 {
		return Token{}, errors.New("the token isn't a JSON web token")
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return Token{}, fmt.Errorf("the token isn't a JSON web token: %w", err)
	}
	var claims struct {
		IssuedAt int64 `json:"iat"`
		Expires  int64 `json:"exp"`
	}
	if err := json.Unmarshal(payload, &claims); err != nil {
		return Token{}, fmt.Errorf("the token isn't a JSON web token: %w", err)
	}
	if claims.Expires <= claims.IssuedAt {
		return Token{}, errors.New("the token doesn't say when it expires: it isn't one that was asked for by TokenRequest")
	}
	return Token{Value: value, Issued: time.Unix(claims.IssuedAt, 0), Expires: time.Unix(claims.Expires, 0)}, nil
}

// Request asks the API server for a token of an account, bound to a Node. The lifetime is a wish: the server decides, and
// token.Expires says.
func Request(ctx context.Context, client *kubeapi.Client, account Account, node string, lifetime time.Duration) (Token, error) {
	seconds := int64(lifetime.Seconds())
	request := authenticationv1.TokenRequest{
		TypeMeta: metav1.TypeMeta{APIVersion: "authentication.k8s.io/v1", Kind: "TokenRequest"},
		Spec: authenticationv1.TokenRequestSpec{
			ExpirationSeconds: &seconds,
			BoundObjectRef:    &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Node", Name: node},
		},
	}
	tokens := kubeapi.Resource{Version: "v1", Namespace: account.Namespace, Plural: "serviceaccounts/" + account.Name + "/token"}
	var answer authenticationv1.TokenRequest
	if err := client.Create(ctx, tokens, request, &answer); err != nil {
		return Token{}, fmt.Errorf("ask for a token of service account %s, bound to node %s: %w", account, node, explain(client, err, account, node))
	}
	token, err := ParseToken(answer.Status.Token)
	if err != nil {
		return Token{}, fmt.Errorf("ask for a token of service account %s: the API server %s answered something else: %w", account, client.Server(), err)
	}
	return token, nil
}

// explain says what to do where the general answer isn't the right one.
func explain(client *kubeapi.Client, err error, account Account, node string) error {
	switch {
	case apierrors.IsNotFound(err) && strings.Contains(err.Error(), "serviceaccounts"):
		return fmt.Errorf("%w; apply lhstorage's RBAC objects, which make the account %s", err, account)
	case apierrors.IsNotFound(err):
		return fmt.Errorf("%w; the node's name must be that of its Node object (here %q)", err, node)
	case apierrors.IsBadRequest(err) || apierrors.IsInvalid(err):
		return fmt.Errorf("%w; tokens are bound to Nodes by Kubernetes 1.31 and later", err)
	}
	return client.Explain(err)
}

// File is what a kubeconfig of ours holds.
type File struct {
	Server    string // URL
	CA        []byte // certificates, PEM; none: those of the system
	Token     string
	Namespace string // the current one: that of Whereabouts' objects; empty: kube-system
}

// ServerOf is a file without a token for the server that a client configuration leads to.
func ServerOf(cfg *rest.Config) (File, error) {
	ca := cfg.CAData
	if len(ca) == 0 && cfg.CAFile != "" {
		var err error
		if ca, err = os.ReadFile(cfg.CAFile); err != nil {
			return File{}, fmt.Errorf("read the certificates of the API server's authority: %w", err)
		}
	}
	server := cfg.Host
	if !strings.Contains(server, "://") {
		server = "https://" + server
	}
	return File{Server: server, CA: ca}, nil
}

// Read reads a kubeconfig that Write wrote, or one like it: its current context, with a token in the file itself.
func Read(path string) (File, error) {
	config, err := clientcmd.LoadFromFile(path)
	if err != nil {
		return File{}, fmt.Errorf("read the kubeconfig %s: %w", path, err)
	}
	current := config.Contexts[config.CurrentContext]
	if current == nil || config.Clusters[current.Cluster] == nil || config.AuthInfos[current.AuthInfo] == nil {
		return File{}, fmt.Errorf("kubeconfig %s: there is no current context with a cluster and a user", path)
	}
	cluster, user := config.Clusters[current.Cluster], config.AuthInfos[current.AuthInfo]
	return File{Server: cluster.Server, CA: cluster.CertificateAuthorityData, Token: user.Token, Namespace: current.Namespace}, nil
}

// Write writes the kubeconfig. A plugin that is reading it sees the old one or the new one.
func (f File) Write(path string) error {
	namespace := f.Namespace
	if namespace == "" {
		namespace = metav1.NamespaceSystem
	}
	config := api.NewConfig()
	config.Clusters[name] = &api.Cluster{Server: f.Server, CertificateAuthorityData: f.CA}
	config.AuthInfos[name] = &api.AuthInfo{Token: f.Token}
	config.Contexts[name] = &api.Context{Cluster: name, AuthInfo: name, Namespace: namespace}
	config.CurrentContext = name
	content, err := clientcmd.Write(*config)
	if err != nil {
		return fmt.Errorf("write the kubeconfig %s: %w", path, err)
	}
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, content) && private(path) { //nolint:gosec // the operator's own path
		return nil
	}
	if err := atomicfile.Write(path, content, Mode); err != nil {
		return fmt.Errorf("write the kubeconfig %s: %w", path, err)
	}
	return nil
}

func private(path string) bool {
	info, err := os.Lstat(path)
	return err == nil && info.Mode() == Mode
}

// Renewal writes a kubeconfig with a new token, as often as it is asked to.
type Renewal struct {
	API      *kubeapi.Client // with the right to create tokens of Account
	Account  Account
	Node     string        // that the token is bound to
	Lifetime time.Duration // 0: DefaultLifetime
	File     File          // all but the token
}

// Write asks for a token and writes the kubeconfig to path, whose directory must be there.
func (r Renewal) Write(ctx context.Context, path string) (Token, error) {
	token, err := r.Request(ctx)
	if err != nil {
		return Token{}, err
	}
	return token, r.With(token).Write(path)
}

// Request asks for a token and writes nothing.
func (r Renewal) Request(ctx context.Context) (Token, error) {
	lifetime := r.Lifetime
	if lifetime == 0 {
		lifetime = DefaultLifetime
	}
	return Request(ctx, r.API, r.Account, r.Node, lifetime)
}

// With is the file with a token.
func (r Renewal) With(token Token) File {
	file := r.File
	file.Token = token.Value
	return file
}

// Identity is whom the API server takes somebody for.
type Identity struct {
	User string
	Node string // that the token is bound to; empty: to none
}

// nodeExtra is what the API server knows of a user with a token that is bound to a Node, or to a Pod on one.
const nodeExtra = "authentication.kubernetes.io/node-name"

// WhoAmI asks the API server, which lets everyone who has credentials ask.
func WhoAmI(ctx context.Context, client *kubeapi.Client) (Identity, error) {
	review := authenticationv1.SelfSubjectReview{TypeMeta: metav1.TypeMeta{APIVersion: "authentication.k8s.io/v1", Kind: "SelfSubjectReview"}}
	reviews := kubeapi.Resource{Group: "authentication.k8s.io", Version: "v1", Plural: "selfsubjectreviews"}
	if err := client.Create(ctx, reviews, review, &review); err != nil {
		return Identity{}, fmt.Errorf("ask the API server %s who this is: %w", client.Server(), client.Explain(err))
	}
	who := Identity{User: review.Status.UserInfo.Username}
	if names := review.Status.UserInfo.Extra[nodeExtra]; len(names) == 1 {
		who.Node = names[0]
	}
	return who, nil
}
