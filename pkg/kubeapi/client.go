// Package kubeapi is a small client of the Kubernetes API, for programs that are started once per
// pod: client-go's transport (kubeconfig, TLS, tokens), plain JSON, and nothing that is slow to start.
//
// A call is repeated where that is harmless and may help: all writes that lhstorage makes are
// conditional (a create, a patch with tests, a delete with preconditions), so one that was
// carried out although its answer got lost fails when it is repeated, and the caller looks what is there. There is no rate
// limit: a process makes a dozen calls.
package kubeapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/lhstorage/lhstorage/pkg/cnierr"
)

const (
	firstPause  = 20 * time.Millisecond  // before a call is repeated; doubled each time
	longPause   = 500 * time.Millisecond // at most
	maxResponse = 64 << 20               // bytes; etcd takes no object of more than 1.5 MB, a list of 10 000 is below this
)

// DefaultPatience is how long a server that can't be reached is tried again.
const DefaultPatience = 3 * time.Second

// Client calls one API server. It may be used by several goroutines at once.
type Client struct {
	Namespace string        // of the kubeconfig's current context; empty when it says none
	Patience  time.Duration // how long calls that fail in a way that may pass are repeated, bounded by their context

	http *http.Client
	base *url.URL
	from string       // where the credentials came from, for messages
	date atomic.Int64 // the server's clock when it last answered, Unix seconds
	slow atomic.Int64 // the longest that an answer took, nanoseconds
}

// Load reads a kubeconfig's current context, for a process that lives as long as a call: it connects at once, beside
// what the process does before its first call, for TLS alone takes as long as a call. Errors have code 7 and name the file; that the
// server can't be reached is none, the first call says so.
func Load(kubeconfig, userAgent string) (*Client, error) {
	file, err := clientcmd.LoadFromFile(kubeconfig)
	if err != nil {
		return nil, cnierr.New(cnierr.InvalidConfig, "read the kubeconfig %s: %w", kubeconfig, err)
	}
	loader := clientcmd.NewDefaultClientConfig(*file, nil)
	cfg, err := loader.ClientConfig()
	if err != nil {
		return nil, cnierr.New(cnierr.InvalidConfig, "kubeconfig %s: %w", kubeconfig, err)
	}
	cfg.UserAgent = userAgent
	client, err := newClient(cfg, connecting)
	if err != nil {
		return nil, cnierr.New(cnierr.InvalidConfig, "kubeconfig %s: %w", kubeconfig, err)
	}
	client.from = kubeconfig
	if current := file.Contexts[file.CurrentContext]; current != nil {
		client.Namespace = current.Namespace
	}
	return client, nil
}

// NamespaceOf is the namespace of a kubeconfig's current context; empty when it says none, or can't be read.
func NamespaceOf(kubeconfig string) string {
	file, err := clientcmd.LoadFromFile(kubeconfig)
	if err != nil || file.Contexts[file.CurrentContext] == nil {
		return ""
	}
	return file.Contexts[file.CurrentContext].Namespace
}

// New makes a client of a configuration. No call is made.
func New(cfg *rest.Config) (*Client, error) {
	return newClient(cfg, func(cfg *rest.Config, _ *url.URL) (*http.Client, error) { return rest.HTTPClientFor(cfg) })
}

func newClient(cfg *rest.Config, clientOf func(*rest.Config, *url.URL) (*http.Client, error)) (*Client, error) {
	cfg = rest.CopyConfig(cfg)
	cfg.DisableCompression = true // the server is near, and its time is what is short
	base, _, err := rest.DefaultServerURL(cfg.Host, "", schema.GroupVersion{}, cfg.CAFile != "" || len(cfg.CAData) > 0 || cfg.Insecure)
	if err != nil {
		return nil, fmt.Errorf("server %q: %w", cfg.Host, err)
	}
	client, err := clientOf(cfg, base)
	if err != nil {
		return nil, err
	}
	return &Client{Patience: DefaultPatience, http: client, base: base, from: "the client configuration"}, nil
}

// Server is the API server's address.
func (c *Client) Server() string { return c.base.Host }

// Now is the API server's clock as it last answered (to the second), or this machine's where it
// hasn't yet. Ages of what other nodes wrote are measured with it.
func (c *Client) Now() time.Time {
	if sec := c.date.Load(); sec != 0 {
		return time.Unix(sec, 0)
	}
	return time.Now()
}

// Slowest is the longest that an answer took so far. A server that is slow is a busy one.
func (c *Client) Slowest() time.Duration { return time.Duration(c.slow.Load()) }

// Resource is a kind of object, in a namespace where it has one.
type Resource struct {
	Group, Version, Plural string
	Namespace              string
}

func (r Resource) path(name string) string {
	parts := []string{"/apis", r.Group, r.Version}
	if r.Group == "" {
		parts = []string{"/api", r.Version}
	}
	if r.Namespace != "" {
		parts = append(parts, "namespaces", r.Namespace)
	}
	parts = append(parts, r.Plural)
	if name != "" {
		parts = append(parts, name)
	}
	return strings.Join(parts, "/")
}

// Op is an operation of a JSON patch (RFC 6902).
type Op struct {
	Op    string
	Path  string
	Value any
}

// MarshalJSON writes a null value, which a test needs, but none for a removal.
func (o Op) MarshalJSON() ([]byte, error) {
	out := map[string]any{"op": o.Op, "path": o.Path}
	if o.Op != "remove" {
		out["value"] = o.Value
	}
	return json.Marshal(out)
}

// Test fails the patch unless path holds value; nil: unless nothing is there.
func Test(path string, value any) Op { return Op{"test", path, value} }

// Add sets what is at path.
func Add(path string, value any) Op { return Op{"add", path, value} }

// Remove removes what is at path; nothing there is an error of the patch.
func Remove(path string) Op { return Op{"remove", path, nil} }

// Escape makes a key fit for an Op's path.
func Escape(key string) string {
	return strings.NewReplacer("~", "~0", "/", "~1").Replace(key)
}

// Option of a read.
type Option func(url.Values)

// Cached reads what the server has in memory, however old: cheap, and never waits.
func Cached() Option { return func(q url.Values) { q.Set("resourceVersion", "0") } }

// NotOlderThan reads what the server has in memory, once it is as new as version; a list only.
func NotOlderThan(version string) Option {
	return func(q url.Values) {
		q.Set("resourceVersion", version)
		q.Set("resourceVersionMatch", "NotOlderThan")
	}
}

// Since reads what the server has in memory of an object, once it is as new as version.
func Since(version string) Option {
	return func(q url.Values) { q.Set("resourceVersion", version) }
}

// Labelled lists what has these labels: key, value, key, value.
func Labelled(pairs ...string) Option {
	var terms []string
	for i := 0; i+1 < len(pairs); i += 2 {
		terms = append(terms, pairs[i]+"="+pairs[i+1])
	}
	return Selected(strings.Join(terms, ","))
}

// Selected lists what a label selector selects.
func Selected(selector string) Option {
	return func(q url.Values) { q.Set("labelSelector", selector) }
}

// Get reads an object.
func (c *Client) Get(ctx context.Context, r Resource, name string, into any, opts ...Option) error {
	return c.call(ctx, http.MethodGet, r.path(name), "", query(opts), nil, into)
}

// List reads a list.
func (c *Client) List(ctx context.Context, r Resource, into any, opts ...Option) error {
	return c.call(ctx, http.MethodGet, r.path(""), "", query(opts), nil, into)
}

// pageSize is how many objects of a long list are in memory at once.
const pageSize = 500

// Each reads a list that may be long, in pages, and calls do for each object, decoded as far as T goes. All pages
// show the same moment; one that takes so long that the server has forgotten it is an Expired error.
func Each[T any](ctx context.Context, c *Client, r Resource, do func(T), opts ...Option) error {
	q := query(opts)
	q.Set("limit", strconv.Itoa(pageSize))
	for {
		var page struct {
			Metadata metav1.ListMeta `json:"metadata"`
			Items    []T             `json:"items"`
		}
		if err := c.call(ctx, http.MethodGet, r.path(""), "", q, nil, &page); err != nil {
			return err
		}
		for _, item := range page.Items {
			do(item)
		}
		if page.Metadata.Continue == "" {
			return nil
		}
		q.Set("continue", page.Metadata.Continue)
	}
}

// Event is a change that a watch tells of.
type Event struct {
	Type   string // ADDED, MODIFIED, DELETED, BOOKMARK or ERROR
	Object json.RawMessage
}

// Watch tells of the changes after a version until the server ends it, ctx ends, or tell returns an
// error, which it returns. A version that is too old is a Gone or Expired error.
func (c *Client) Watch(ctx context.Context, r Resource, version string, tell func(Event) error, opts ...Option) error {
	q := query(opts)
	q.Set("watch", "true")
	q.Set("allowWatchBookmarks", "true")
	q.Set("resourceVersion", version)
	u := *c.base
	u.Path, u.RawQuery = strings.TrimSuffix(u.Path, "/")+r.path(""), q.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return fmt.Errorf("watch %s: %w", r.Plural, err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return &UnreachableError{Call: "watch " + r.path(""), Server: c.Server(), Err: err}
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		data, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
		return statusError("watch", r.path(""), resp.StatusCode, data)
	}
	for dec := json.NewDecoder(resp.Body); ; {
		var e Event
		if err := dec.Decode(&e); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return &UnreachableError{Call: "watch " + r.path(""), Server: c.Server(), Err: err}
		}
		if e.Type == "ERROR" {
			return statusError("watch", r.path(""), http.StatusGone, e.Object)
		}
		if err := tell(e); err != nil {
			return err
		}
	}
}

// Create makes an object; into may be nil.
func (c *Client) Create(ctx context.Context, r Resource, object, into any) error {
	return c.call(ctx, http.MethodPost, r.path(""), "application/json", nil, object, into)
}

// Update replaces an object.
func (c *Client) Update(ctx context.Context, r Resource, name string, object, into any) error {
	return c.call(ctx, http.MethodPut, r.path(name), "application/json", nil, object, into)
}

// Meta asks for an object's metadata alone: the answer about a big object is small then.
func Meta(into any) any { return metaOnly{into} }

type metaOnly struct{ into any }

// Patch changes an object by a JSON patch; a failed test is an Invalid error. into may be nil, or
// a [Meta].
func (c *Client) Patch(ctx context.Context, r Resource, name string, ops []Op, into any) error {
	return c.call(ctx, http.MethodPatch, r.path(name), "application/json-patch+json", nil, ops, into)
}

// Delete removes an object if it has this UID and, where it isn't empty, this version; else a Conflict.
func (c *Client) Delete(ctx context.Context, r Resource, name, uid, version string) error {
	pre := map[string]string{}
	if uid != "" {
		pre["uid"] = uid
	}
	if version != "" {
		pre["resourceVersion"] = version
	}
	options := map[string]any{"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": pre}
	return c.call(ctx, http.MethodDelete, r.path(name), "application/json", nil, options, nil)
}

func query(opts []Option) url.Values {
	q := url.Values{}
	for _, o := range opts {
		o(q)
	}
	return q
}

type impatient struct{}

// Impatient makes calls that fail at once where others would be repeated: for what can wait.
func Impatient(ctx context.Context) context.Context { return context.WithValue(ctx, impatient{}, true) }

func (c *Client) patience(ctx context.Context) time.Duration {
	if ctx.Value(impatient{}) != nil {
		return 0
	}
	return c.Patience
}

// call makes a call, and repeats it while that may help and there is time.
func (c *Client) call(ctx context.Context, method, path, kind string, q url.Values, object, into any) error {
	var body []byte
	if object != nil {
		var err error
		if body, err = json.Marshal(object); err != nil {
			return fmt.Errorf("%s %s: %w", method, path, err)
		}
	}
	give, pause := time.Now().Add(c.patience(ctx)), firstPause
	for {
		wait, err := c.once(ctx, method, path, kind, q, body, into)
		if err == nil || !passing(err) || ctx.Err() != nil || time.Now().After(give) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(max(wait, pause/2+rand.N(pause))):
		}
		pause = min(2*pause, longPause)
	}
}

// once makes a call. wait is how long the server asked to be left alone.
func (c *Client) once(ctx context.Context, method, path, kind string, q url.Values, body []byte, into any) (wait time.Duration, err error) {
	u := *c.base
	u.Path, u.RawQuery = strings.TrimSuffix(u.Path, "/")+path, q.Encode()
	req, err := http.NewRequestWithContext(ctx, method, u.String(), bytes.NewReader(body))
	if err != nil {
		return 0, fmt.Errorf("%s %s: %w", method, path, err)
	}
	req.Header.Set("Accept", "application/json")
	if kind != "" {
		req.Header.Set("Content-Type", kind)
	}
	if meta, ok := into.(metaOnly); ok {
		into = meta.into
		req.Header.Set("Accept", "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json")
	}
	began := time.Now()
	defer func() { c.slow.Store(max(c.slow.Load(), int64(time.Since(began)))) }()
	resp, err := c.http.Do(req)
	if err != nil {
		return 0, &UnreachableError{Call: method + " " + path, Server: c.Server(), Err: err}
	}
	defer func() { _ = resp.Body.Close() }()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxResponse))
	if err != nil {
		return 0, &UnreachableError{Call: method + " " + path, Server: c.Server(), Err: err}
	}
	if at, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
		c.date.Store(at.Unix())
	}
	if resp.StatusCode >= http.StatusBadRequest {
		return retryAfter(resp), statusError(method, path, resp.StatusCode, data)
	}
	if into == nil {
		return 0, nil
	}
	if err := json.Unmarshal(data, into); err != nil {
		return 0, fmt.Errorf("%s %s: the answer isn't the JSON that was expected: %w", method, path, err)
	}
	return 0, nil
}

// retryAfter is how long the server asks to be left alone; a second at most, for a pod is waiting.
func retryAfter(resp *http.Response) time.Duration {
	seconds, err := strconv.Atoi(resp.Header.Get("Retry-After"))
	if err != nil || seconds < 0 {
		return 0
	}
	return min(time.Duration(seconds)*time.Second, time.Second)
}

// statusError is what the server said, as client-go has it, so that its predicates work.
func statusError(method, path string, code int, body []byte) error {
	var status metav1.Status
	if json.Unmarshal(body, &status) != nil || status.Status != metav1.StatusFailure {
		status = metav1.Status{
			Status: metav1.StatusFailure, Code: int32(code), Reason: reasonOf(code),
			Message: fmt.Sprintf("%s %s: the server answered %d %s: %.200s", method, path, code, http.StatusText(code), strings.TrimSpace(string(body))),
		}
	}
	return &apierrors.StatusError{ErrStatus: status}
}

// reasonOf is for answers that don't come from the API server itself but from a proxy in front of it.
func reasonOf(code int) metav1.StatusReason {
	reasons := map[int]metav1.StatusReason{
		http.StatusUnauthorized: metav1.StatusReasonUnauthorized, http.StatusForbidden: metav1.StatusReasonForbidden,
		http.StatusNotFound: metav1.StatusReasonNotFound, http.StatusConflict: metav1.StatusReasonConflict,
		http.StatusUnprocessableEntity: metav1.StatusReasonInvalid, http.StatusTooManyRequests: metav1.StatusReasonTooManyRequests,
		http.StatusInternalServerError: metav1.StatusReasonInternalError, http.StatusServiceUnavailable: metav1.StatusReasonServiceUnavailable,
		http.StatusGatewayTimeout: metav1.StatusReasonTimeout,
	}
	return reasons[code]
}

// UnreachableError says that a call got no answer: whether it was carried out isn't known.
type UnreachableError struct {
	Call, Server string
	Err          error
}

func (e *UnreachableError) Error() string {
	var plain *url.Error // it repeats method and address
	err := e.Err
	if errors.As(err, &plain) {
		err = plain.Err
	}
	return fmt.Sprintf("%s: the API server %s gave no answer: %v", e.Call, e.Server, err)
}

// Unwrap gives the error of the network.
func (e *UnreachableError) Unwrap() error { return e.Err }

// IsUnreachable says whether a call got no answer.
func IsUnreachable(err error) bool {
	var e *UnreachableError
	return errors.As(err, &e)
}

// passing says whether the same call may succeed when it is made again soon.
func passing(err error) bool {
	var status *apierrors.StatusError
	if errors.As(err, &status) {
		code := status.ErrStatus.Code
		return code == http.StatusTooManyRequests || code >= http.StatusInternalServerError
	}
	return IsUnreachable(err)
}

// Explain gives an error of a call the code for "try again" and says what to do about it. An
// error that has a code keeps it.
func (c *Client) Explain(err error) error {
	if err == nil || cnierr.CodeOf(err) != cnierr.Unclassified {
		return err
	}
	hint := "the runtime may try again; if it stays, look at the API server"
	switch {
	case IsUnreachable(err):
		hint = "is the API server up, and does " + c.from + " name it rightly? The runtime may try again"
	case apierrors.IsUnauthorized(err):
		hint = "the credentials in " + c.from + " aren't valid (any more): is the agent, which renews them, running on this node?"
	case apierrors.IsForbidden(err):
		hint = "the account in " + c.from + " lacks this right: apply the RBAC rules that come with lhstorage"
	case apierrors.IsTooManyRequests(err):
		hint = "the API server is overloaded; the runtime may try again"
	}
	return cnierr.New(cnierr.TryAgain, "%w; %s", err, hint)
}
