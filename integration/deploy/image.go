package deploy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/lhstorage/lhstorage/integration/image"
)

// programDir is where lhstorage's programs lie in its image. The installer installs what lies beside itself.
const programDir = "opt/lhstorage/"

// programs are those of the image.
var programs = []string{"lhstorage", "lhstorage-ipam", "install-cni", "lhstorage-agent", "lhstoragectl"}

// backends of iptables: a host uses one of them, and rules of the other are a firewall beside its own.
var backends = map[string]string{"nft": "xtables-nft-multi", "legacy": "xtables-legacy-multi"}

// Image is lhstorage's image: its programs from a directory, and Debian's iptables with all its extensions, for nftables (which `iptables` is) and
// legacy. Nothing else is in it: no shell, no package manager. It isn't made with ko, which would want a base image from a registry and
// build the programs a second time, in another way than they are tested.
func Image(ctx context.Context, name, dir string) (image.Image, error) {
	i := image.Image{
		Name: name, Entrypoint: []string{"/" + programDir + "lhstorage-agent"},
		Files: map[string]string{}, Links: map[string]string{"var/run": "/run", programDir + "kubectl-lhstorage": "lhstoragectl"},
		Content: map[string][]byte{"etc/passwd": []byte("root:x:0:0:root:/:/nonexistent\n"), "etc/group": []byte("root:x:0:\n")},
	}
	for _, program := range programs {
		path := filepath.Join(dir, program)
		if _, err := os.Stat(path); err != nil {
			return i, fmt.Errorf("image %s: %w: `make build` builds it", name, err)
		}
		i.Files[programDir+program] = path
	}
	return i, addIptables(ctx, i)
}

// addIptables adds both backends under all their names, and the licences of what they are made of.
func addIptables(ctx context.Context, i image.Image) error {
	for backend, program := range backends {
		path, err := image.FindProgram(program)
		if err != nil {
			return err
		}
		if err := i.AddProgram(ctx, "usr/sbin/"+program, path); err != nil {
			return err
		}
		for _, family := range []string{"iptables", "ip6tables"} {
			for _, suffix := range []string{"", "-save", "-restore"} {
				i.Links["usr/sbin/"+family+"-"+backend+suffix] = program
				if backend == "nft" {
					i.Links["usr/sbin/"+family+suffix] = program
				}
			}
		}
	}
	extensions, err := filepath.Glob("/usr/lib/*/xtables/*.so")
	if err != nil || len(extensions) == 0 {
		return fmt.Errorf("find the extensions of iptables below /usr/lib/*/xtables: %w", errors.Join(err, fs.ErrNotExist))
	}
	for _, path := range extensions {
		if err := i.AddProgram(ctx, path[1:], path); err != nil {
			return err
		}
	}
	for _, name := range []string{"iptables", "libxtables12", "libip4tc2", "libip6tc2", "libmnl0", "libnetfilter-conntrack3", "libnfnetlink0", "libnftnl11", "libc6"} {
		path := "/usr/share/doc/" + name + "/copyright"
		if _, err := os.Stat(path); err == nil {
			i.Files[path[1:]] = path
		}
	}
	return nil
}
