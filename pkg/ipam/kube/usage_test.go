package kube

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"k8s.io/client-go/rest"

	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/ipam"
	"github.com/lhstorage/lhstorage/pkg/kubeapi"
)

// serving is a store whose server has these objects, by the end of their path.
func serving(t *testing.T, objects map[string]string) *Store {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for end, body := range objects {
			if strings.HasSuffix(r.URL.Path, end) {
				_, _ = fmt.Fprint(w, body)
				return
			}
		}
		w.WriteHeader(http.StatusNotFound)
		_, _ = fmt.Fprint(w, `{"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404}`)
	}))
	t.Cleanup(server.Close)
	api, err := kubeapi.New(&rest.Config{Host: server.URL})
	require.NoError(t, err)
	return New(Options{API: api})
}

func rangeOf(t *testing.T, whole string) ipam.Pool {
	t.Helper()
	pool, _, err := ipam.NewPool("", false, netip.MustParsePrefix(whole), netip.Addr{}, netip.Addr{})
	require.NoError(t, err)
	return pool
}

// An address counts once, whether a claim or an entry holds it, or both; other pools' don't.
func TestUsages(t *testing.T) {
	claim := func(pool, address string) v1alpha1.AddressClaim {
		return v1alpha1.AddressClaim{Spec: v1alpha1.AddressClaimSpec{Pool: pool, Address: address}}
	}
	claims := []v1alpha1.AddressClaim{claim("10.0.0.0-24", "10.0.0.1"), claim("10.0.0.0-24", "10.0.0.2"), claim("10.0.1.0-24", "10.0.0.3"), claim("10.0.0.0-24", "nonsense")}
	pools := []ipam.Pool{rangeOf(t, "10.0.0.0/24"), rangeOf(t, "10.0.2.0/24")}
	const entries = `{"items": [{"metadata": {"name": "10.0.0.0-24"}, "spec": {"range": "10.0.0.0/24", "allocations": {"2": {}, "9": {}, "x": {}}}}, {"metadata": {"name": "10.0.1.0-24"}, "spec": {"allocations": {"7": {}}}}]}`
	got, err := serving(t, map[string]string{"/ippools": entries}).Usages(t.Context(), pools, claims)
	require.NoError(t, err)
	assert.Equal(t, map[string]ipam.Usage{"10.0.0.0-24": {Addresses: 254, Allocated: 3}, "10.0.2.0-24": {Addresses: 254}}, got)
	got, err = serving(t, nil).Usages(t.Context(), pools, claims)
	require.NoError(t, err, "without Whereabouts' kinds")
	assert.Equal(t, map[string]ipam.Usage{"10.0.0.0-24": {Addresses: 254, Allocated: 2}, "10.0.2.0-24": {Addresses: 254}}, got)
}

// Each node's slice is a pool; a range that no slice is part of stays whole.
func TestAllSliced(t *testing.T) {
	const slices = `{"metadata": {"name": "net"}, "status": {"allocations": [{"nodeName": "a", "sliceRange": "10.0.0.0/28"}, {"nodeName": "", "sliceRange": "10.0.0.16/28"}, {"nodeName": "b", "sliceRange": "10.0.0.32/28"}, {"nodeName": "c", "sliceRange": "x"}]}}`
	store := serving(t, map[string]string{"/nodeslicepools/net": slices, "/nodeslicepools/none": `{"metadata": {"name": "none"}, "status": {"allocations": [{"nodeName": "", "sliceRange": "10.0.0.0/28"}]}}`})
	names := func(pools []ipam.Pool, network string) (names []string) {
		all, err := store.AllSliced(t.Context(), pools, network)
		require.NoError(t, err)
		for _, p := range all {
			names = append(names, p.Name)
		}
		return names
	}
	sliced, six := rangeOf(t, "10.0.0.0/24"), rangeOf(t, "fd00::/64")
	assert.Equal(t, []string{"a-10.0.0.0-28", "b-10.0.0.32-28", "fd00---64"}, names([]ipam.Pool{sliced, six}, "net"))
	assert.Empty(t, names([]ipam.Pool{sliced}, "none"), "nobody has a slice")
	assert.Empty(t, names([]ipam.Pool{sliced}, "unknown"))
	sliced.NetworkName = "net"
	assert.Equal(t, []string{"net-a-10.0.0.0-28", "net-b-10.0.0.32-28"}, names([]ipam.Pool{sliced}, "another"))
}
