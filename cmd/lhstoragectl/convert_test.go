package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lhstorage/lhstorage/pkg/convert"
)

const harvesterValue = `{"clusterNetwork":"storage","vlan":100,"range":"192.168.0.0/24","exclude":["192.168.0.1/32"]}`

func TestConvert(t *testing.T) {
	stdout, stderr, code := execute(t, harvesterValue+"\n", "convert")
	require.Zero(t, code, stderr)
	for _, want := range []string{"from: a value of Harvester's", "hash of the value as it is written: ", `"bridge":"storage-br"`, `"device": "storage-bo"`} {
		assert.Contains(t, stdout, want)
	}
	stdout, stderr, code = execute(t, harvesterValue, "convert", "--nad", "-", "-n", "mine", "--host-range", "192.168.0.64/28")
	require.Zero(t, code)
	assert.Contains(t, stderr, "note: ")
	d, p := netconfOf(t, stdout)
	assert.Equal(t, "mine", d.Metadata.Namespace)
	assert.Equal(t, "192.168.0.64/28", p.HostShim.Ranges[0].String())
	stdout, _, code = execute(t, harvesterValue, "convert", "--harvester-nad")
	require.Zero(t, code)
	assert.Contains(t, stdout, "generateName: storagenetwork-")
	assert.Contains(t, stdout, "namespace: harvester-system")

	file := filepath.Join(t.TempDir(), "nad.yaml")
	require.NoError(t, os.WriteFile(file, []byte(stdout), 0o600))
	stdout, _, code = execute(t, harvesterValue, "convert", file, "-", "-o", "json", "--name", "x")
	require.Zero(t, code)
	var results []convert.Result
	require.NoError(t, json.Unmarshal([]byte(stdout), &results))
	require.Len(t, results, 2)
	assert.NotNil(t, results[1].Theirs)
	_, stderr, code = execute(t, "", "convert", file, "--harvester-nad", "--name", "x")
	assert.Equal(t, exitFailed, code)
	assert.Contains(t, stderr, "isn't Harvester's")
}

func TestConvertFails(t *testing.T) {
	_, stderr, code := execute(t, strings.Replace(harvesterValue, "192.168.0.0/24", "192.168.0.0/29", 1), "convert", "--nodes", "3", "--disks", "3")
	assert.Equal(t, exitFailed, code)
	assert.Contains(t, stderr, "allocatable IP address range is < 12")
	_, stderr, code = execute(t, harvesterValue, "convert", "--host-range", "x", "--avoid", "y", "--nodes", "-1")
	assert.Equal(t, exitUsage, code)
	for _, want := range []string{"--host-range", "--avoid", "--nodes -1"} {
		assert.Contains(t, stderr, want)
	}
	_, _, code = execute(t, harvesterValue, "convert", "--nad", "--harvester-nad")
	assert.Equal(t, exitUsage, code)
	_, stderr, code = execute(t, "", "convert", "/no/such/file", "/nor/this")
	assert.Equal(t, exitBroken, code)
	assert.Contains(t, stderr, "/nor/this")
	_, _, code = execute(t, "a: [", "convert")
	assert.Equal(t, exitFailed, code)
}
