package ipam

import "encoding/json"

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
	var conf struct {
		IPAM struct {
			Path string `json:"configuration_path"`
		} `json:"ipam"`
	}
	if json.Unmarshal(netConf, &conf) != nil || conf.IPAM.Path == "" {
		return flatPaths
	}
	return append([]string{conf.IPAM.Path}, flatPaths...)
}
