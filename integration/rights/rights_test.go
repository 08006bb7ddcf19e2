package rights

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const manifest = `
kind: ClusterRole
metadata: {name: reader}
rules:
  - {apiGroups: [""], resources: [nodes, pods], verbs: [get, list]}
---
kind: Role
metadata: {name: leader, namespace: home}
rules:
  - {apiGroups: [coordination.k8s.io], resources: [leases], resourceNames: [one], verbs: [update]}
---
kind: ClusterRoleBinding
metadata: {name: reader}
roleRef: {kind: ClusterRole, name: reader}
subjects: [{kind: ServiceAccount, name: a, namespace: home}]
---
kind: RoleBinding
metadata: {name: leader, namespace: home}
roleRef: {kind: Role, name: leader}
subjects: [{kind: ServiceAccount, name: a, namespace: home}, {kind: ServiceAccount, name: b, namespace: home}]
`

const (
	userA = "system:serviceaccount:home:a"
	userB = "system:serviceaccount:home:b"
)

func TestOf(t *testing.T) {
	all, err := Of([]byte(manifest))
	require.NoError(t, err)
	assert.ElementsMatch(t, []Right{
		{userA, "", "", "nodes", "", "get"}, {userA, "", "", "nodes", "", "list"}, {userA, "", "", "pods", "", "get"}, {userA, "", "", "pods", "", "list"},
		{userA, "home", "coordination.k8s.io", "leases", "one", "update"}, {userB, "home", "coordination.k8s.io", "leases", "one", "update"},
	}, all)
	assert.Equal(t, []string{userA, userB}, Users(all))
	assert.Equal(t, "home:a may update leases.coordination.k8s.io one in home", all[4].String())
	_, err = Of([]byte("kind: RoleBinding\nmetadata: {name: x}\nroleRef: {kind: ClusterRole, name: cluster-admin}\n"))
	require.ErrorContains(t, err, "cluster-admin", "what isn't known can't be judged")
	_, err = Of([]byte(manifest + "---\nkind: RoleBinding\nmetadata: {name: x}\nroleRef: {kind: ClusterRole, name: reader}\nsubjects: [{kind: Group, name: everybody}]\n"))
	require.ErrorContains(t, err, "everybody")
}

func TestCompare(t *testing.T) {
	all, err := Of([]byte(manifest))
	require.NoError(t, err)
	log := filepath.Join(t.TempDir(), "log")
	require.NoError(t, os.WriteFile(log, []byte(`
{"verb": "get", "requestURI": "/api/v1/nodes/x", "user": {"username": "`+userA+`"}, "objectRef": {"resource": "nodes", "name": "x"}, "responseStatus": {"code": 404}}
{"verb": "list", "requestURI": "/api/v1/pods", "user": {"username": "`+userA+`"}, "objectRef": {"resource": "pods"}, "responseStatus": {"code": 403}}
{"verb": "list", "requestURI": "/api/v1/pods", "user": {"username": "`+userB+`"}, "objectRef": {"resource": "pods"}, "responseStatus": {"code": 200}}
{"verb": "update", "requestURI": "/1", "user": {"username": "`+userA+`"}, "objectRef": {"resource": "leases", "apiGroup": "coordination.k8s.io", "namespace": "home", "name": "one"}, "responseStatus": {"code": 200}}
{"verb": "update", "requestURI": "/2", "user": {"username": "`+userB+`"}, "objectRef": {"resource": "leases", "apiGroup": "coordination.k8s.io", "namespace": "home", "name": "two"}, "responseStatus": {"code": 200}}
{"verb": "get", "requestURI": "/api/v1/pods/x/log", "user": {"username": "`+userA+`"}, "objectRef": {"resource": "pods", "subresource": "log", "name": "x"}, "responseStatus": {"code": 200}}
{"verb": "get", "requestURI": "/version", "user": {"username": "`+userA+`"}, "responseStatus": {"code": 200}}
{"verb": "get", "requestURI": "/api/v1/nodes", "user": {"username": "somebody"}, "objectRef": {"resource": "nodes"}, "responseStatus": {"code": 200}}
{"verb": "get", "requestU`), 0o600))
	requests, err := Requests(log, Users(all)...)
	require.NoError(t, err)
	require.Len(t, requests, 6)
	var words []string
	for _, r := range Unused(all, requests) {
		words = append(words, r.String())
	}
	assert.ElementsMatch(t, []string{"home:a may list nodes", "home:a may get pods", "home:a may list pods", "home:b may update leases.coordination.k8s.io one in home"}, words)
	require.Len(t, Refused(requests), 1)
	assert.Equal(t, "home:a: list /api/v1/pods: 403", Refused(requests)[0].String())
	var beyond []string
	for _, q := range Beyond(all, requests) {
		beyond = append(beyond, q.URI)
	}
	assert.Equal(t, []string{"/api/v1/pods", "/2", "/api/v1/pods/x/log"}, beyond)
}
