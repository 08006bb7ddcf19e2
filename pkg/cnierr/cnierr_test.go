package cnierr

import (
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestCodeOf(t *testing.T) {
	own := New(IncompatibleParent, "parent %s: %w", "vx", io.EOF)
	require.ErrorIs(t, own, io.EOF)
	for _, c := range []struct {
		err  error
		want Code
	}{
		{own, 101},
		{fmt.Errorf("ensure: %w", own), 101},
		{errors.Join(io.EOF, own), 101},
		{New(TryAgain, "later: %w", own), 11},
		{types.NewError(7, "delegate said so", ""), 7},
		{fmt.Errorf("delegate: %w", types.NewError(7, "said so", "")), 7},
		{New(IO, "delegate: %w", types.NewError(7, "said so", "")), 5},
		{io.EOF, Unclassified},
		{nil, Unclassified},
	} {
		assert.Equal(t, c.want, CodeOf(c.err), "%v", c.err)
	}
}

func TestToCNI(t *testing.T) {
	assert.Nil(t, ToCNI(nil))
	for _, c := range []struct {
		err  error
		want types.Error
	}{
		{New(InvalidConfig, "one line"), types.Error{Code: 7, Msg: "one line"}},
		{New(InvalidConfig, "two: %w", errors.Join(errors.New("a"), errors.New("b"), errors.New("c"))),
			types.Error{Code: 7, Msg: "two: a", Details: "b\nc"}},
		{io.EOF, types.Error{Code: 999, Msg: "EOF"}},
		{New(IO, "ends in a break\n"), types.Error{Code: 5, Msg: "ends in a break"}},
	} {
		assert.Equal(t, &c.want, ToCNI(c.err))
	}
}

// The specification keeps 0 to 99 for itself; runtimes act on 11.
func TestCodesOfOurOwnAreOutOfTheSpecificationsWay(t *testing.T) {
	for _, c := range []Code{DuplicateAddress, IncompatibleParent, MTUMismatch, Exhausted, Kernel} {
		assert.GreaterOrEqual(t, c, Code(100))
		assert.NotEqual(t, Unclassified, c)
	}
	assert.Equal(t, types.ErrTryAgainLater, uint(TryAgain))
	assert.Equal(t, types.ErrDecodingFailure, uint(Decode))
	assert.Equal(t, types.ErrInvalidNetworkConfig, uint(InvalidConfig))
	assert.Equal(t, types.ErrIOFailure, uint(IO))
	assert.Equal(t, types.ErrUnknownContainer, uint(UnknownContainer))
	assert.Equal(t, types.ErrInvalidEnvironmentVariables, uint(InvalidEnvironment))
	assert.Equal(t, types.ErrUnsupportedField, uint(UnsupportedField))
	assert.Equal(t, types.ErrIncompatibleCNIVersion, uint(IncompatibleVersion))
}
