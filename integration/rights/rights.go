// Package rights compares what service accounts may do, by the rules in rendered manifests, with what they did, by the API server's audit
// log: a right that nobody uses is one too many, and a request that was refused one too few.
package rights

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/yaml"
)

// Right is one verb on one resource that a rule gives to a user.
type Right struct {
	User      string
	Namespace string // empty: everywhere
	Group     string
	Resource  string // with its subresource, as in serviceaccounts/token
	Name      string // of the object; empty: any
	Verb      string
}

func (r Right) String() string {
	object := r.Resource
	if r.Group != "" {
		object += "." + r.Group
	}
	if r.Name != "" {
		object += " " + r.Name
	}
	if r.Namespace != "" {
		object += " in " + r.Namespace
	}
	return fmt.Sprintf("%s may %s %s", short(r.User), r.Verb, object)
}

// short is a service account's name without what they all begin with.
func short(user string) string { return strings.TrimPrefix(user, "system:serviceaccount:") }

// covers says whether the right is one to a request.
func (r Right) covers(q Request) bool {
	return r.User == q.User && r.Verb == q.Verb && r.Group == q.Group && r.Resource == q.Resource &&
		(r.Namespace == "" || r.Namespace == q.Namespace) && (r.Name == "" || r.Name == q.Name)
}

// object is what is read of a role or a binding.
type object struct {
	metav1.TypeMeta `json:",inline"`

	Metadata struct{ Name, Namespace string }
	Rules    []rbacv1.PolicyRule
	RoleRef  rbacv1.RoleRef
	Subjects []rbacv1.Subject
}

// Of are the rights that bindings in YAML documents give to service accounts, by roles in them.
func Of(documents []byte) ([]Right, error) {
	type role struct{ kind, namespace, name string }
	roles := map[role][]rbacv1.PolicyRule{}
	var bindings []object
	decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(documents), 4096)
	for {
		var o object
		if err := decoder.Decode(&o); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, err
		}
		switch o.Kind {
		case "ClusterRole", "Role":
			roles[role{o.Kind, o.Metadata.Namespace, o.Metadata.Name}] = o.Rules
		case "ClusterRoleBinding", "RoleBinding":
			bindings = append(bindings, o)
		}
	}
	var all []Right
	for _, b := range bindings {
		from := role{b.RoleRef.Kind, "", b.RoleRef.Name}
		if from.kind == "Role" {
			from.namespace = b.Metadata.Namespace
		}
		rules, found := roles[from]
		if !found {
			return nil, fmt.Errorf("%s %s binds %s %s, which isn't there", b.Kind, b.Metadata.Name, from.kind, from.name)
		}
		for _, s := range b.Subjects {
			if s.Kind != rbacv1.ServiceAccountKind {
				return nil, fmt.Errorf("%s %s gives rights to %s %s", b.Kind, b.Metadata.Name, s.Kind, s.Name)
			}
			all = append(all, expand("system:serviceaccount:"+s.Namespace+":"+s.Name, b.Metadata.Namespace, rules)...)
		}
	}
	return all, nil
}

// expand takes rules apart.
func expand(user, namespace string, rules []rbacv1.PolicyRule) (all []Right) {
	for _, rule := range rules {
		names := rule.ResourceNames
		if len(names) == 0 {
			names = []string{""}
		}
		for _, group := range rule.APIGroups {
			for _, resource := range rule.Resources {
				for _, name := range names {
					for _, verb := range rule.Verbs {
						all = append(all, Right{user, namespace, group, resource, name, verb})
					}
				}
			}
		}
	}
	return all
}

// Request is one that the API server answered.
type Request struct {
	User                  string
	Verb, Group, Resource string // as in a Right
	Namespace, Name       string // none for what is cluster-scoped, and for a list
	Code                  int    // of HTTP
	URI                   string
	Reason                string    // of RBAC, for what was refused
	At                    time.Time // when it came in
}

func (q Request) String() string {
	return strings.TrimSpace(fmt.Sprintf("%s: %s %s: %d %s", short(q.User), q.Verb, q.URI, q.Code, q.Reason))
}

func (q Request) refused() bool {
	return q.Code == http.StatusForbidden || q.Code == http.StatusUnauthorized
}

// Requests are those of an audit log that were made by the users, and for objects: discovery and the like is everybody's. One that is still being written
// (its last line isn't complete) is left out.
func Requests(log string, users ...string) ([]Request, error) {
	file, err := os.Open(log)
	if err != nil {
		return nil, err
	}
	defer file.Close() //nolint:errcheck // read only
	var all []Request
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		q, err := parse(lines.Bytes())
		if err != nil {
			continue
		}
		if q.Resource != "" && slices.Contains(users, q.User) {
			all = append(all, q)
		}
	}
	return all, lines.Err()
}

// parse reads a line of the log: https://kubernetes.io/docs/reference/config-api/apiserver-audit.v1/
func parse(line []byte) (Request, error) {
	var event struct {
		Verb       string
		RequestURI string
		User       struct{ Username string }
		ObjectRef  struct{ Resource, Namespace, Name, APIGroup, Subresource string }

		RequestReceivedTimestamp time.Time

		ResponseStatus struct{ Code int }
		Annotations    map[string]string
	}
	err := json.Unmarshal(line, &event)
	q := Request{
		User: event.User.Username, Verb: event.Verb, Group: event.ObjectRef.APIGroup, Resource: event.ObjectRef.Resource,
		Namespace: event.ObjectRef.Namespace, Name: event.ObjectRef.Name, Code: event.ResponseStatus.Code, URI: event.RequestURI, At: event.RequestReceivedTimestamp,
	}
	if q.refused() {
		q.Reason = event.Annotations["authorization.k8s.io/reason"]
	}
	if event.ObjectRef.Subresource != "" {
		q.Resource += "/" + event.ObjectRef.Subresource
	}
	return q, err
}

// Unused are the rights that none of the requests took that were let through.
func Unused(rights []Right, requests []Request) []Right {
	return slices.DeleteFunc(slices.Clone(rights), func(r Right) bool {
		return slices.ContainsFunc(requests, func(q Request) bool { return r.covers(q) && !q.refused() })
	})
}

// Refused are the requests that the API server did not let through.
func Refused(requests []Request) []Request {
	return slices.DeleteFunc(slices.Clone(requests), func(q Request) bool { return !q.refused() })
}

// Beyond are the requests that were let through by other rights than these.
func Beyond(rights []Right, requests []Request) []Request {
	return slices.DeleteFunc(slices.Clone(requests), func(q Request) bool {
		return q.refused() || Cover(rights, q)
	})
}

// Cover says that a request is for what the rights let do.
func Cover(rights []Right, q Request) bool {
	return slices.ContainsFunc(rights, func(r Right) bool { return r.covers(q) })
}

// Users are those who have the rights.
func Users(rights []Right) []string {
	var all []string
	for _, r := range rights {
		if !slices.Contains(all, r.User) {
			all = append(all, r.User)
		}
	}
	return all
}
