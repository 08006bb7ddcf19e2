package kube

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/pkg/api/v1alpha1"
	"github.com/lhstorage/lhstorage/pkg/cnierr"
)

// Whoever waits gets the head's place when it leaves, and reads what it left.
func TestLine(t *testing.T) {
	j := journal{dir: t.TempDir()}
	began := time.Now()
	head, waited, err := j.stand(t.Context(), "pool")
	require.NoError(t, err)
	assert.False(t, waited)
	assert.Empty(t, head.read())

	next := make(chan line)
	go func() {
		l, waited, err := j.stand(context.Background(), "pool")
		assert.NoError(t, err)
		assert.True(t, waited)
		next <- l
	}()
	select {
	case <-next:
		t.Fatal("it didn't wait")
	case <-time.After(50 * time.Millisecond):
	}
	head.write(recordedMark, notice{Version: "9", AsOf: 7, Except: []string{"10.0.0.3"}})
	head.leave()
	l := <-next
	defer l.leave()
	left := l.read()[recordedMark]
	assert.Equal(t, "9", left.Version)
	for _, c := range []struct {
		name, version string
		began         time.Time
		want          bool
	}{
		{"10.0.0.1", "7", began, true},
		{"10.0.0.1", "8", began, false},      // made after it was written
		{"10.0.0.3", "5", began, false},      // held by another
		{"10.0.0.1", "7", time.Now(), false}, // left before this one came: of another cluster perhaps
	} {
		claim := v1alpha1.AddressClaim{}
		claim.Name, claim.ResourceVersion = c.name, c.version
		assert.Equal(t, c.want, left.covers(claim, c.began), "%v", c)
	}
	assert.Empty(t, l.read()[removedMark], "each mark has its own")
	l.write(removedMark, notice{Version: "11", AsOf: 10})
	assert.Len(t, l.read(), 2)
}

// Who waits for a head that stays ends with its own time, and one that was killed while it wrote left nothing.
func TestLineThatStands(t *testing.T) {
	j := journal{dir: t.TempDir()}
	head, _, err := j.stand(t.Context(), "pool")
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, _, err = j.stand(ctx, "pool")
	assert.Equal(t, cnierr.TryAgain, cnierr.CodeOf(err), "%v", err)
	other, waited, err := j.stand(t.Context(), "another pool")
	require.NoError(t, err)
	assert.False(t, waited)
	other.leave()

	require.NoError(t, os.WriteFile(filepath.Join(j.dir, "line", "pool"), []byte(`{"lhstorage.io/rec`), 0o600))
	assert.Empty(t, head.read())
	head.write(recordedMark, notice{AsOf: 1})
	assert.Len(t, head.read(), 1)
	head.leave()

	none, waited, err := journal{}.stand(t.Context(), "pool") // the recorder has no directory
	require.NoError(t, err)
	assert.False(t, waited)
	none.write(recordedMark, notice{AsOf: 1})
	assert.Empty(t, none.read())
	none.leave()
}
