// Package wire is what the machine that runs a VM and the VM's first process say to
// each other: a plan, which the VM finds in its initramfs, and events, which it
// sends as lines of JSON over a serial port that nothing else writes to. So no
// output of a test and no message of the kernel can be taken for an exit status.
package wire

// PlanFile is where the VM's first process finds its plan.
const PlanFile = "/plan.json"

// Port is the name of the virtio serial port that events are sent over.
const Port = "events"

// RootTag is the mount tag of the host's root.
const RootTag = "root"

// Plan is what a VM does.
type Plan struct {
	ModuleFiles []string // of what the root file system needs, in the initramfs, in the order of loading
	Modules     string   // all modules: a directory of the host, named after the kernel's release
	Env         []string // of all runs
	Runs        []Run
}

// Run is a program to run, in a directory. All paths are the host's.
type Run struct {
	Name string
	Dir  string
	Argv []string
}

// Event is one message from the VM. Exactly one of its fields is set.
type Event struct {
	Started  string  `json:"started,omitempty"` // a run
	Line     *string `json:"line,omitempty"`    // of the current run's output
	Ended    *Status `json:"ended,omitempty"`   // the current run
	Fault    string  `json:"fault,omitempty"`   // why the plan could not be carried out
	Finished bool    `json:"finished,omitempty"`
}

// Status is how a run ended.
type Status struct {
	Code  int    `json:"code"`            // the exit status; -1 without one
	Error string `json:"error,omitempty"` // empty: it ended by itself, with status 0
}
