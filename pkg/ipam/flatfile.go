package ipam

import (
	"encoding/json"
	"slices"
)

// flatPaths are where Whereabouts looks for its flat file.
var flatPaths = []string{
	"/etc/kubernetes/cni/net.d/whereabouts.d/whereabouts.conf",
	"/etc/cni/net.d/whereabouts.d/whereabouts.conf",
	"/host/etc/cni/net.d/whereabouts.d/whereabouts.conf",
}

// FlatPaths is where the flat file of a NetConf may be; the first that exists counts, and
// it is no error if none does. A NetConf that can't be read names no file of its own: Parse says
// what is wrong with it.
func FlatPaths(netConf []byte) []string {
	if path := configurationPath(netConf); path != "" {
		return append([]string{path}, flatPaths...)
	}
	return flatPaths
}

// NodeNamePath is the file in which Whereabouts looks for the node's name when it is about node slices; empty
// when neither the NetConf nor the flat file (nil: none) names a place for it. In the flat file
// configuration_path is the directory of that file, in a NetConf it is the flat file's path as well.
func NodeNamePath(netConf, flat []byte) string {
	path := configurationPath(netConf)
	if path == "" {
		path = configurationPath(slices.Concat([]byte(`{"ipam": `), flat, []byte("}")))
	}
	if path == "" {
		return ""
	}
	return path + "/nodename"
}

func configurationPath(netConf []byte) string {
	var conf struct {
		IPAM struct {
			Path string `json:"configuration_path"`
		} `json:"ipam"`
	}
	if json.Unmarshal(netConf, &conf) != nil {
		return ""
	}
	return conf.IPAM.Path
}
