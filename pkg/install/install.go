// Package install puts lhstorage's programs and a node's configuration onto a host, checks them, and removes them.
//
// A pod may be started at any moment meanwhile, by the programs that are there. So each file is replaced in one step (package
// atomicfile), one that is as it must be isn't touched, and what a file refers to is there before it: programs, kubeconfig, node file, and
// last the manifest, which says what the other steps did. All that can be known beforehand (is the directory writable? does the API server
// give a token?) is found out before anything is changed, and said at once.
package install

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/gofrs/flock"

	"github.com/lhstorage/lhstorage/pkg/atomicfile"
	"github.com/lhstorage/lhstorage/pkg/fault"
	"github.com/lhstorage/lhstorage/pkg/kubeconfig"
	"github.com/lhstorage/lhstorage/pkg/nodefile"
)

const (
	lockWait = 30 * time.Second // for another installer
	lockPoll = 100 * time.Millisecond
)

// Installer installs one release on one host.
type Installer struct {
	Host    Host
	Layout  Layout
	From    string // directory of the programs, here
	Release string
	Node    nodefile.File       // what the node file is to say; all fields are optional
	Access  *kubeconfig.Renewal // nil: without a cluster
	Log     *slog.Logger
}

func (i *Installer) nodeFile() string {
	return i.Layout.ConfDir + "/" + filepath.Base(nodefile.DefaultPath)
}
func (i *Installer) kubeconfig() string { return i.Layout.ConfDir + "/kubeconfig" }

// plan is what there is to do, as far as it can be known before it is done.
type plan struct {
	binDir, confDir string // as found from here
	programs        []Program
	access          kubeconfig.File
	node            nodefile.File
	manifest        Manifest
}

// Install installs. Where it fails, each file is the old one or the new one, and to call it again goes on.
func (i *Installer) Install(ctx context.Context) error {
	unlock, err := i.lock(ctx)
	if err == nil {
		defer unlock()
	}
	p, planErr := i.plan(ctx)
	if err := errors.Join(err, planErr); err != nil {
		return err
	}
	for _, step := range []func(*plan) error{i.sweep, i.placePrograms, i.placeAccess, i.placeNode, i.placeManifest} {
		if err := step(p); err != nil {
			return err
		}
	}
	return nil
}

// lock keeps other installers out: without that, what one of them is writing would be swept.
func (i *Installer) lock(ctx context.Context) (unlock func(), err error) {
	dir, err := i.Host.makeDir(i.Layout.ConfDir)
	if err != nil {
		return nil, err
	}
	lock := flock.New(dir, flock.SetFlag(0)) // the directory itself, read only: no file is left
	ctx, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	if got, err := lock.TryLockContext(ctx, lockPoll); !got {
		return nil, fmt.Errorf("wait for another installer that holds %s on the host: %w", i.Layout.ConfDir, err)
	}
	return func() { _ = lock.Close() }, nil
}

// plan finds out all that is to be done, and all that stands in the way. It makes directories, nothing else.
func (i *Installer) plan(ctx context.Context) (*plan, error) {
	p := &plan{}
	var faults []error
	note := func(err error) { faults = append(faults, err) }
	var err error
	p.confDir, err = i.Host.path(i.Layout.ConfDir) // made by lock
	note(err)
	p.binDir, err = i.Host.makeDir(i.Layout.BinDir)
	note(err)
	if err == nil {
		note(executable(p.binDir, i.Layout.BinDir))
	}
	for _, name := range Programs {
		program, err := readProgram(filepath.Join(i.From, name))
		if err != nil {
			note(fmt.Errorf("read the program to install: %w", err))
		}
		p.programs = append(p.programs, program)
	}
	before, _, err := readManifest(i.Host, i.Layout.ConfDir)
	note(err)
	if err == nil {
		p.node, err = i.wantNode(before.Node)
		note(err)
	}
	if i.Access != nil {
		token, err := i.Access.Request(ctx)
		note(err)
		p.access = i.Access.With(token)
	}
	if moved := before.BinDir; moved != "" && moved != i.Layout.BinDir {
		i.Log.Warn("the directory of CNI plugins has moved; the programs in the old one stay there", "old", moved, "new", i.Layout.BinDir)
	}
	p.manifest = Manifest{Version: ManifestVersion, Release: i.Release, BinDir: i.Layout.BinDir, Programs: p.programs, Node: i.ask()}
	return p, errors.Join(faults...)
}

// ask is what the installer wants in the node file.
func (i *Installer) ask() nodefile.File {
	want := i.Node
	if i.Access != nil {
		want.Kubeconfig = i.kubeconfig()
	}
	return want
}

// wantNode is what the node file must be: name and kubeconfig are the installer's, the rest is an admin's where it isn't what the
// installer wrote last.
func (i *Installer) wantNode(wrote nodefile.File) (nodefile.File, error) {
	ask := i.ask()
	data, err := i.Host.read(i.nodeFile())
	if errors.Is(err, fs.ErrNotExist) {
		return ask, nil
	}
	if err != nil {
		return nodefile.File{}, fmt.Errorf("read the node file: %w", err)
	}
	there, err := nodefile.ParseRaw(i.nodeFile(), data)
	if err != nil {
		return nodefile.File{}, fmt.Errorf("%w; it is left as it is: correct it, or remove it to have it written anew", err)
	}
	return nodefile.File{
		NodeName: ask.NodeName, Kubeconfig: ask.Kubeconfig,
		Index:    keep(there.Index, wrote.Index, ask.Index),
		StateDir: keep(there.StateDir, wrote.StateDir, ask.StateDir),
		RunDir:   keep(there.RunDir, wrote.RunDir, ask.RunDir),
		Record:   keep(there.Record, wrote.Record, ask.Record),
	}, nil
}

// keep keeps what is there if somebody else than the installer set it.
func keep[T comparable](there, wrote, ask T) T {
	var none T
	if there != none && there != wrote {
		return there
	}
	return ask
}

// sweep removes what killed installers left.
func (i *Installer) sweep(p *plan) error {
	var faults []error
	for _, program := range p.programs {
		faults = append(faults, atomicfile.Sweep(filepath.Join(p.binDir, program.Name)))
	}
	for _, path := range []string{i.kubeconfig(), i.nodeFile(), manifestFile} {
		faults = append(faults, atomicfile.Sweep(filepath.Join(p.confDir, filepath.Base(path))))
	}
	if err := errors.Join(faults...); err != nil {
		return explain(fmt.Errorf("remove what an installer that was killed left: %w", err))
	}
	return nil
}

// placePrograms goes on past a program that can't be placed: the others' faults are to be seen, too.
func (i *Installer) placePrograms(p *plan) error {
	var faults []error
	for _, program := range p.programs {
		path := filepath.Join(p.binDir, program.Name)
		log := i.Log.With("path", i.Layout.BinDir+"/"+program.Name, "release", i.Release, "sha256", program.SHA256)
		if program.same(path) {
			log.Info("the program is there already")
			continue
		}
		if err := program.install(filepath.Join(i.From, program.Name), path); err != nil {
			faults = append(faults, fmt.Errorf("install %s into %s on the host: %w", program.Name, i.Layout.BinDir, err))
			continue
		}
		log.Info("installed the program")
	}
	return errors.Join(faults...)
}

func (i *Installer) placeAccess(p *plan) error {
	if err := fault.At("install.kubeconfig"); err != nil || i.Access == nil {
		return err
	}
	if err := p.access.Write(filepath.Join(p.confDir, filepath.Base(i.kubeconfig()))); err != nil {
		return explain(err)
	}
	token, err := kubeconfig.ParseToken(p.access.Token)
	i.Log.Info("wrote the kubeconfig", "path", i.kubeconfig(), "server", p.access.Server, "account", i.Access.Account.String(), "expires", token.Expires)
	return err
}

func (i *Installer) placeNode(p *plan) error {
	if err := fault.At("install.node"); err != nil {
		return err
	}
	changed, err := writeJSON(filepath.Join(p.confDir, filepath.Base(i.nodeFile())), p.node)
	if err != nil {
		return fmt.Errorf("write the node file: %w", err)
	}
	i.Log.Info("the node file is as it must be", "path", i.nodeFile(), "changed", changed, "node", p.node.NodeName)
	return nil
}

func (i *Installer) placeManifest(p *plan) error {
	if err := fault.At("install.manifest"); err != nil {
		return err
	}
	if _, err := writeJSON(filepath.Join(p.confDir, manifestFile), p.manifest); err != nil {
		return fmt.Errorf("write what was installed: %w", err)
	}
	return nil
}
