package controlplane

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/restmapper"
)

const (
	crdKind      = "CustomResourceDefinition"
	fieldManager = "controlplane"
)

// ApplyFiles applies files of YAML documents: see [Cluster.Apply].
func (c *Cluster) ApplyFiles(ctx context.Context, kinds []string, paths ...string) error {
	for _, path := range paths {
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if err := c.Apply(ctx, kinds, content); err != nil {
			return fmt.Errorf("apply %s: %w", path, err)
		}
	}
	return nil
}

// Apply applies YAML documents by server-side apply, those of the given kinds
// only, unless there are none. It returns when CustomResourceDefinitions among
// them are served.
func (c *Cluster) Apply(ctx context.Context, kinds []string, documents []byte) error {
	return eachObject(documents, func(object *unstructured.Unstructured) error {
		if len(kinds) > 0 && !slices.Contains(kinds, object.GetKind()) {
			return nil
		}
		return c.applyObject(ctx, object)
	})
}

// DryRun lets the API server say whether it would take YAML documents. All that it refuses is in the error.
func (c *Cluster) DryRun(ctx context.Context, documents []byte) error {
	var faults []error
	err := eachObject(documents, func(object *unstructured.Unstructured) error {
		resource, err := c.resource(object)
		if err == nil {
			_, err = resource.Apply(ctx, object.GetName(), object, metav1.ApplyOptions{FieldManager: fieldManager, Force: true, DryRun: []string{metav1.DryRunAll}})
		}
		if err != nil {
			faults = append(faults, fmt.Errorf("%s %s: %w", object.GetKind(), object.GetName(), err))
		}
		return nil
	})
	return errors.Join(append(faults, err)...)
}

// eachObject calls do for each of the objects in YAML documents, until it fails.
func eachObject(documents []byte, do func(*unstructured.Unstructured) error) error {
	decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(documents), 4096)
	for {
		var object unstructured.Unstructured
		err := decoder.Decode(&object.Object)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if len(object.Object) == 0 {
			continue
		}
		if err := do(&object); err != nil {
			return fmt.Errorf("%s %s: %w", object.GetKind(), object.GetName(), err)
		}
	}
}

func (c *Cluster) applyObject(ctx context.Context, object *unstructured.Unstructured) error {
	resource, err := c.resource(object)
	if err != nil {
		return err
	}
	if _, err := resource.Apply(ctx, object.GetName(), object, metav1.ApplyOptions{FieldManager: fieldManager, Force: true}); err != nil {
		return err
	}
	if object.GetKind() != crdKind {
		return nil
	}
	return Until(ctx, nil, "it is served", func(ctx context.Context) error {
		now, err := resource.Get(ctx, object.GetName(), metav1.GetOptions{})
		if err != nil {
			return err
		}
		return established(now)
	})
}

func (c *Cluster) resource(object *unstructured.Unstructured) (dynamic.ResourceInterface, error) {
	mapping, err := c.mapper.find(object)
	if err != nil {
		return nil, err
	}
	resource := c.Dynamic.Resource(mapping.Resource)
	if mapping.Scope.Name() == meta.RESTScopeNameNamespace {
		return resource.Namespace(object.GetNamespace()), nil
	}
	return resource, nil
}

// established fails until a CustomResourceDefinition's objects can be used.
func established(crd *unstructured.Unstructured) error {
	conditions, _, err := unstructured.NestedSlice(crd.Object, "status", "conditions")
	if err != nil {
		return err
	}
	for _, c := range conditions {
		if condition, ok := c.(map[string]any); ok && condition["type"] == "Established" && condition["status"] == "True" {
			return nil
		}
	}
	return fmt.Errorf("condition Established isn't True: %v", conditions)
}

// mapper knows which resource an object's kind is.
type mapper struct {
	mu   *sync.Mutex
	rest *restmapper.DeferredDiscoveryRESTMapper
}

func newMapper(d discovery.DiscoveryInterface) mapper {
	return mapper{mu: new(sync.Mutex), rest: restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(d))}
}

func (m mapper) find(object *unstructured.Unstructured) (*meta.RESTMapping, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	kind := object.GroupVersionKind()
	mapping, err := m.rest.RESTMapping(kind.GroupKind(), kind.Version)
	if meta.IsNoMatchError(err) { // of a CustomResourceDefinition that is newer than what is remembered
		m.rest.Reset()
		mapping, err = m.rest.RESTMapping(kind.GroupKind(), kind.Version)
	}
	return mapping, err
}
