// Package fault marks the places in the code where a test can make a call fail
// or kill the process.
//
// A point is one line: `if err := fault.At("add.child"); err != nil { … }`. In
// an ordinary build At is an empty function that the compiler removes. Built with
// the tag `faultpoints` it reads LHSTORAGE_FAULT, a comma-separated list of
// `point=error`, `point=kill` (SIGKILL to this process) and `point=sleep:50ms`;
// a prefix `point#2=…` acts on the second pass only. LHSTORAGE_FAULT_TRACE names a
// file to which each passed point is appended, so that a table of faults can
// prove that it covers every point.
package fault
