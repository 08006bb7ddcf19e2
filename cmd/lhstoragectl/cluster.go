package main

import (
	"fmt"

	"github.com/spf13/cobra"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/lhstorage/lhstorage/pkg/kubeapi"
	"github.com/lhstorage/lhstorage/pkg/longhorn"
)

// clusterFlags say which cluster a command is about, as kubectl's flags do.
type clusterFlags struct {
	loading   *clientcmd.ClientConfigLoadingRules
	overrides clientcmd.ConfigOverrides
}

// add gives cmd the flags.
func (f *clusterFlags) add(cmd *cobra.Command) {
	f.loading = clientcmd.NewDefaultClientConfigLoadingRules()
	flags := cmd.Flags()
	flags.StringVar(&f.loading.ExplicitPath, "kubeconfig", "", "path of the kubeconfig (default $KUBECONFIG, else ~/.kube/config, else this pod's service account)")
	flags.StringVar(&f.overrides.CurrentContext, "context", "", "the kubeconfig's context to use")
	flags.StringVarP(&f.overrides.Context.Namespace, "namespace", "n", "", "namespace (default the context's)")
}

// config is what clients are made from, for programs that people wait for.
func (f *clusterFlags) config() (*rest.Config, error) {
	config, err := f.load().ClientConfig()
	if err != nil {
		return nil, broken(fmt.Errorf("find the cluster: %w; name a kubeconfig by --kubeconfig or $KUBECONFIG", err))
	}
	config.QPS, config.Burst = 100, 200
	return rest.AddUserAgent(config, "lhstoragectl/"+version), nil
}

// client calls the cluster's API server.
func (f *clusterFlags) client() (*kubeapi.Client, error) {
	config, err := f.config()
	if err != nil {
		return nil, err
	}
	api, err := kubeapi.New(config)
	return api, broken(err)
}

// longhornNamespace is the one of -n, else the context's, else Longhorn's own.
func (f *clusterFlags) longhornNamespace() string {
	if namespace, given, err := f.load().Namespace(); err == nil && (given || namespace != "default") {
		return namespace
	}
	return longhorn.DefaultNamespace
}

func (f *clusterFlags) load() clientcmd.ClientConfig {
	return clientcmd.NewNonInteractiveDeferredLoadingClientConfig(f.loading, &f.overrides)
}
