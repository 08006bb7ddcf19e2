package convert

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

// Document is one object of the input.
type Document struct {
	Kind, Namespace, Name string // empty where the object isn't Kubernetes'
	Raw                   string // as it was written, without the line break at its end
	JSON                  []byte
	number                int
}

// String says which one it is.
func (d Document) String() string {
	if d.Kind == "" {
		return fmt.Sprintf("document %d", d.number)
	}
	return fmt.Sprintf("%s %s", d.Kind, d.Name)
}

// Read reads YAML documents, of which JSON is a kind; a List counts as its items.
func Read(data []byte) ([]Document, error) {
	var documents []Document
	reader := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(data)))
	for number := 1; ; number++ {
		raw, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return documents, nil
		}
		if err != nil {
			return nil, fmt.Errorf("document %d can't be read: %w", number, err)
		}
		object, err := yaml.YAMLToJSON(raw)
		if err != nil {
			return nil, fmt.Errorf("document %d is neither YAML nor JSON: %w", number, err)
		}
		if string(object) == "null" {
			continue // comments only
		}
		more, err := split(Document{Raw: strings.TrimSuffix(strings.TrimSuffix(string(raw), "\n"), "\r"), JSON: object, number: number})
		if err != nil {
			return nil, err
		}
		documents = append(documents, more...)
	}
}

// split reads an object's kind and takes lists apart.
func split(d Document) ([]Document, error) {
	var object struct {
		Kind     string `json:"kind"`
		Metadata struct {
			Namespace string `json:"namespace"`
			Name      string `json:"name"`
		} `json:"metadata"`
		Items []json.RawMessage `json:"items"`
	}
	if err := json.Unmarshal(d.JSON, &object); err != nil {
		return nil, fmt.Errorf("document %d isn't an object that can be converted: %w", d.number, err)
	}
	d.Kind, d.Namespace, d.Name = object.Kind, object.Metadata.Namespace, object.Metadata.Name
	if !strings.HasSuffix(d.Kind, "List") {
		return []Document{d}, nil
	}
	var documents []Document
	for _, item := range object.Items {
		more, err := split(Document{Raw: string(item), JSON: item, number: d.number})
		if err != nil {
			return nil, err
		}
		documents = append(documents, more...)
	}
	return documents, nil
}
