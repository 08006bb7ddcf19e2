package leak

import (
	"context"

	"github.com/lhstorage/lhstorage/pkg/kubeapi"
)

// Read reads what a pass judges, in the order that the rule needs.
func Read(ctx context.Context, api *kubeapi.Client) (*Cluster, error) {
	return (&Collector{API: api}).read(ctx)
}
