package kubeipam

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/hostclaim"
	"github.com/lhstorage/lhstorage/pkg/ipam/kube"
	"github.com/lhstorage/lhstorage/pkg/kubeapi"
)

// schemas holds the API server to each rule of the claims' and the places' schemas: what breaks just that rule is refused in its words.
func schemas(t *testing.T, b *bed) {
	b.wipeShims(t)
	claim := v1alpha1.AddressClaim{
		TypeMeta:   metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion.String(), Kind: "AddressClaim"},
		ObjectMeta: metav1.ObjectMeta{Name: "10.0.0.1"},
		Spec:       v1alpha1.AddressClaimSpec{Address: "10.0.0.1", Pool: "10.0.0.0-24", ContainerID: "c1", IfName: "net1"},
	}
	shim := v1alpha1.HostShim{
		TypeMeta:   metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion.String(), Kind: v1alpha1.HostShimKind},
		ObjectMeta: metav1.ObjectMeta{Name: "p-1"},
		Spec: v1alpha1.HostShimSpec{Node: "n", Parent: "p", Index: 1, VTEP: "10.1.0.1", Address: "10.2.0.1",
			Networks: []v1alpha1.ShimNetwork{{Name: "net", Addresses: []v1alpha1.ShimAddress{"10.2.0.1"}}}},
	}
	for name, c := range map[string]struct {
		spoil func(*v1alpha1.AddressClaim, *v1alpha1.HostShim)
		says  string
	}{
		"an address that isn't one":           {func(c *v1alpha1.AddressClaim, _ *v1alpha1.HostShim) { c.Spec.Address = "10.0.0.256" }, "must be an IPv4 or IPv6 address"},
		"an address with a prefix length":     {func(c *v1alpha1.AddressClaim, _ *v1alpha1.HostShim) { c.Spec.Address = "10.0.0.1/24" }, "must be an IPv4 or IPv6 address"},
		"no pool":                             {func(c *v1alpha1.AddressClaim, _ *v1alpha1.HostShim) { c.Spec.Pool = "" }, "spec.pool"},
		"a VTEP that isn't an address":        {func(_ *v1alpha1.AddressClaim, h *v1alpha1.HostShim) { h.Spec.VTEP = "node1" }, "must be an IPv4 or IPv6 address"},
		"a shim address that isn't one":       {func(_ *v1alpha1.AddressClaim, h *v1alpha1.HostShim) { h.Spec.Networks[0].Addresses[0] = "x1" }, "must be an IPv4 or IPv6 address"},
		"an address that people aren't shown": {func(_ *v1alpha1.AddressClaim, h *v1alpha1.HostShim) { h.Spec.Address = "10.2.0.2" }, "address lacks an address of networks"},
		"no node":                             {func(_ *v1alpha1.AddressClaim, h *v1alpha1.HostShim) { h.Spec.Node = "" }, "spec.node"},
		"index 0":                             {func(_ *v1alpha1.AddressClaim, h *v1alpha1.HostShim) { h.Spec.Index = 0 }, "spec.index"},
		"a parent of no possible name":        {func(_ *v1alpha1.AddressClaim, h *v1alpha1.HostShim) { h.Spec.Parent = "sixteen-letters-" }, "spec.parent"},
	} {
		c1, h1 := claim, *shim.DeepCopy()
		c.spoil(&c1, &h1)
		err := b.api.Create(t.Context(), kube.Claims, c1, nil)
		if c1.Spec == claim.Spec {
			require.NoError(t, err, name)
			require.NoError(t, b.api.Delete(t.Context(), kube.Claims, c1.Name, "", ""))
			err = b.api.Create(t.Context(), hostclaim.Shims, h1, nil)
		}
		assert.True(t, apierrors.IsInvalid(err), "%s: %v", name, err)
		assert.ErrorContains(t, err, c.says, name)
	}

	require.NoError(t, b.api.Create(t.Context(), kube.Claims, claim, nil))
	require.NoError(t, b.api.Create(t.Context(), hostclaim.Shims, shim, nil))
	defer b.wipeShims(t)
	for _, c := range []struct {
		resource     kubeapi.Resource
		object, path string
		value        any
		says         string // empty: it is allowed
	}{
		{kube.Claims, "10.0.0.1", "/spec/address", "10.0.0.2", "address and pool don't change"},
		{kube.Claims, "10.0.0.1", "/spec/pool", "10.0.0.0-25", "address and pool don't change"},
		{kube.Claims, "10.0.0.1", "/spec/containerID", "c2", ""},
		{kube.Claims, "10.0.0.1", "/spec/released", true, ""},
		{kube.Claims, "10.0.0.1", "/spec/released", false, "a claim that was given up doesn't come back"},
		{hostclaim.Shims, "p-1", "/spec/index", 2, "parent and index don't change"},
		{hostclaim.Shims, "p-1", "/spec/parent", "q", "parent and index don't change"},
		{hostclaim.Shims, "p-1", "/spec/node", "renamed", ""},
	} {
		err := b.api.Patch(t.Context(), c.resource, c.object, []kubeapi.Op{kubeapi.Add(c.path, c.value)}, nil)
		if c.says == "" {
			require.NoError(t, err, "%s %v", c.path, c.value)
			continue
		}
		assert.True(t, apierrors.IsInvalid(err), "%s %v: %v", c.path, c.value, err)
		assert.ErrorContains(t, err, c.says)
	}
	err := b.api.Patch(t.Context(), kube.Claims, "10.0.0.1", []kubeapi.Op{kubeapi.Remove("/spec/released")}, nil)
	assert.ErrorContains(t, err, "a claim that was given up doesn't come back")
}
