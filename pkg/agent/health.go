package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// health answers the probes. controller-runtime's own server withholds why something isn't ready, which is what people look for.
type health struct {
	mu       sync.Mutex
	troubles map[string]string // by part; "" for none
}

// partNode is the part that must have been through once before anything is ready.
const partNode = "node"

// set says what is amiss with a part of the agent's work; "" for nothing.
func (h *health) set(part, trouble string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.troubles == nil {
		h.troubles = map[string]string{}
	}
	h.troubles[part] = trouble
}

// ready says what is amiss.
func (h *health) ready() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, over := h.troubles[partNode]; !over {
		return errors.New("the first pass isn't over")
	}
	var words []string
	for _, part := range slices.Sorted(maps.Keys(h.troubles)) {
		if h.troubles[part] != "" {
			words = append(words, part+": "+h.troubles[part])
		}
	}
	if len(words) > 0 {
		return errors.New(strings.Join(words, "\n"))
	}
	return nil
}

func (h *health) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/readyz" {
		if err := h.ready(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
	} else if r.URL.Path != "/healthz" {
		http.NotFound(w, r)
		return
	}
	_, _ = fmt.Fprintln(w, "ok") // who asked may have gone
}

// serve answers at an address until ctx ends.
func (h *health) serve(ctx context.Context, address string) error {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("answer probes at %s (--health-address): %w", address, err)
	}
	server := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second}
	go func() {
		<-ctx.Done()
		_ = server.Close() // the process ends
	}()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("answer probes at %s: %w", address, err)
	}
	return nil
}
