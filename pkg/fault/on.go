//go:build faultpoints

package fault

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Enabled says whether this build has fault points.
const Enabled = true

var (
	mu     sync.Mutex
	passes = map[string]int{}
)

// At passes a fault point: it returns an error, sleeps or kills the process if
// LHSTORAGE_FAULT says so for point, and nil otherwise.
func At(point string) error {
	mu.Lock()
	passes[point]++
	pass := passes[point]
	mu.Unlock()
	trace(point)
	for entry := range strings.SplitSeq(os.Getenv("LHSTORAGE_FAULT"), ",") {
		where, action, ok := strings.Cut(entry, "=")
		if !ok {
			continue
		}
		name, nth, counted := strings.Cut(where, "#")
		if name != point {
			continue
		}
		if n, err := strconv.Atoi(nth); counted && (err != nil || n != pass) {
			continue
		}
		return act(point, action)
	}
	return nil
}

func act(point, action string) error {
	switch kind, arg, _ := strings.Cut(action, ":"); kind {
	case "error":
		return fmt.Errorf("injected fault at %s", point)
	case "kill":
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	case "sleep":
		if d, err := time.ParseDuration(arg); err == nil {
			time.Sleep(d)
		}
	}
	return nil
}

func trace(point string) {
	path := os.Getenv("LHSTORAGE_FAULT_TRACE")
	if path == "" {
		return
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600) //nolint:gosec // a test names the file
	if err != nil {
		return
	}
	_, _ = f.WriteString(point + "\n")
	_ = f.Close()
}
