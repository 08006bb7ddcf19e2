package main

import (
	"fmt"
	"os"
	"time"
)

// progressEvery is how often progress is told to what isn't a terminal.
const progressEvery = 10 * time.Second

// progress says on stderr what is being done: on a terminal in one line that is
// overwritten, else in a line now and then.
type progress struct {
	terminal    bool
	start, last time.Time
}

func newProgress() *progress {
	info, err := os.Stderr.Stat()
	return &progress{terminal: err == nil && info.Mode()&os.ModeCharDevice != 0, start: time.Now()}
}

func (p *progress) say(format string, args ...any) {
	elapsed, what := time.Since(p.start).Truncate(time.Second), fmt.Sprintf(format, args...)
	switch {
	case p.terminal:
		fmt.Fprintf(os.Stderr, "\r\033[K%5s  %s", elapsed, what)
	case time.Since(p.last) >= progressEvery:
		p.last = time.Now()
		fmt.Fprintf(os.Stderr, "bench: %5s  %s\n", elapsed, what)
	}
}

// done makes room for what comes next on a terminal.
func (p *progress) done() {
	if p.terminal {
		fmt.Fprint(os.Stderr, "\r\033[K")
	}
}
