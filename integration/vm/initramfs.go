package vm

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// file is a file of an initramfs, in its root.
type file struct {
	name string
	mode uint32
	data []byte
}

// writeInitramfs writes an archive that the kernel unpacks: cpio in the "newc"
// format (the kernel's Documentation/driver-api/early-userspace/buffer-format.rst).
func writeInitramfs(w io.Writer, files []file) error {
	const regular, trailer = 0o100000, "TRAILER!!!"
	var b bytes.Buffer
	align := func() { b.Write(make([]byte, -b.Len()&3)) }
	for i, f := range append(slices.Clone(files), file{name: trailer}) {
		mode := f.mode | regular
		if f.name == trailer {
			mode = 0
		}
		b.WriteString("070701")
		// inode, mode, uid, gid, links, mtime, size, 4 device numbers, length of the name, checksum
		for _, field := range []uint32{uint32(i + 1), mode, 0, 0, 1, 0, uint32(len(f.data)), 0, 0, 0, 0, uint32(len(f.name) + 1), 0} {
			fmt.Fprintf(&b, "%08X", field)
		}
		b.WriteString(f.name + "\x00")
		align()
		b.Write(f.data)
		align()
	}
	_, err := w.Write(b.Bytes())
	return err
}

// moduleFiles are the files, relative to modules, of the named kernel modules and
// all that they depend on, each after what it needs itself. modules is a directory
// that depmod has been through.
func moduleFiles(modules string, names ...string) ([]string, error) {
	deps, err := readDeps(filepath.Join(modules, "modules.dep"))
	if err != nil {
		return nil, err
	}
	builtin, err := os.ReadFile(filepath.Join(modules, "modules.builtin"))
	if err != nil {
		return nil, fmt.Errorf("read which modules are built into the kernel: %w", err)
	}
	var order []string
	var add func(file string)
	add = func(file string) {
		for _, need := range deps[file] {
			add(need)
		}
		if !slices.Contains(order, file) {
			order = append(order, file)
		}
	}
	for _, name := range names {
		tail := "/" + name + ".ko"
		found := ""
		for file := range deps {
			if strings.HasSuffix(file, tail) {
				found = file
			}
		}
		switch {
		case found != "":
			add(found)
		case !strings.Contains(string(builtin), tail):
			return nil, fmt.Errorf("the kernel in %s has no module %s", modules, name)
		}
	}
	return order, nil
}

// readDeps reads modules.dep: a file, a colon and the files that it needs.
func readDeps(path string) (map[string][]string, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read what the kernel's modules depend on: %w", err)
	}
	deps := map[string][]string{}
	for line := range strings.Lines(string(data)) {
		if file, needs, ok := strings.Cut(line, ":"); ok {
			deps[file] = strings.Fields(needs)
		}
	}
	return deps, nil
}
