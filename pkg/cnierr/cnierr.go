// Package cnierr names the CNI error codes that lhstorage's plugins return.
//
// Inside the libraries errors are ordinary Go errors, wrapped with %w; a code
// is attached where the meaning is known and survives further wrapping. The
// edge (a plugin's main) turns whatever arrives into the CNI error object with
// [ToCNI].
//
// Codes 1 to 99 are those of the CNI specification 1.1, section "Error"; those
// from 100 on are ours.
package cnierr

import (
	"errors"
	"fmt"

	"github.com/containernetworking/cni/pkg/types"
)

// Code is a CNI error code.
type Code uint

// The codes of the specification.
const (
	IncompatibleVersion Code = 1
	UnsupportedField    Code = 2
	UnknownContainer    Code = 3 // the netns is missing on ADD; nothing was created
	InvalidEnvironment  Code = 4 // a CNI_* variable is missing or wrong; the text names it
	IO                  Code = 5
	Decode              Code = 6 // not JSON, or JSON of the wrong shape
	InvalidConfig       Code = 7
	HostNetns           Code = 8 // the sandbox is the host's own netns
	TryAgain            Code = 11
	NotAvailable        Code = 50 // STATUS: an ADD can't be served
	Limited             Code = 51 // STATUS: an ADD can't be served and running pods are impaired
)

// The codes of lhstorage.
const (
	DuplicateAddress   Code = 100 // another device holds the address
	IncompatibleParent Code = 101 // the parent exists, differs, and can't be changed while it has children
	MTUMismatch        Code = 102 // a child asks for more than its parent carries
	Exhausted          Code = 103 // no address is left in the range
	Kernel             Code = 104 // the kernel refused a change
	Unclassified       Code = 999 // what skel gives to an error without a code
)

// Error carries a code with an error.
type Error struct {
	Code Code
	Err  error
}

func (e *Error) Error() string { return e.Err.Error() }

// Unwrap gives the error below the code.
func (e *Error) Unwrap() error { return e.Err }

// New makes an error with a code; format and args are those of [fmt.Errorf].
func New(code Code, format string, args ...any) error {
	return &Error{Code: code, Err: fmt.Errorf(format, args...)}
}

// CodeOf returns the outermost code in err's chain, or Unclassified.
func CodeOf(err error) Code {
	var own *Error
	if errors.As(err, &own) {
		return own.Code
	}
	var cni *types.Error
	if errors.As(err, &cni) {
		return Code(cni.Code)
	}
	return Unclassified
}

// ToCNI makes the CNI error object for err; nil stays nil. Msg is the text up
// to the first line break, Details the rest.
func ToCNI(err error) *types.Error {
	if err == nil {
		return nil
	}
	msg, details := err.Error(), ""
	for i := range msg {
		if msg[i] == '\n' {
			msg, details = msg[:i], msg[i+1:]
			break
		}
	}
	return types.NewError(uint(CodeOf(err)), msg, details)
}
