// Command peakrss starts the program that its argument names and writes how much
// memory that, or the largest process that it started, had at most, in bytes, to
// the file that PEAKRSS_OUT names.
//
// It exists because the kernel counts to a process the memory of the one that
// forked it, until it execs. Started by the benchmark itself a plugin would seem
// never smaller than the benchmark. So this program imports little.
package main

import (
	"os"
	"strconv"
	"syscall"
)

func main() {
	process, err := os.StartProcess(os.Args[1], os.Args[1:], &os.ProcAttr{Files: []*os.File{os.Stdin, os.Stdout, os.Stderr}})
	if err != nil {
		fail(err)
	}
	state, err := process.Wait()
	if err != nil {
		fail(err)
	}
	if usage, ok := state.SysUsage().(*syscall.Rusage); ok {
		text := strconv.FormatInt(usage.Maxrss*1024, 10)
		if err := os.WriteFile(os.Getenv("PEAKRSS_OUT"), []byte(text), 0o600); err != nil {
			fail(err)
		}
	}
	os.Exit(state.ExitCode())
}

func fail(err error) {
	_, _ = os.Stderr.WriteString("peakrss: " + err.Error() + "\n")
	os.Exit(125)
}
