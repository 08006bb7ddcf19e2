package agent

import (
	"fmt"
	"strings"
	"time"

	"github.com/lhstorage/lhstorage/pkg/node"
)

const (
	contestWindow = time.Minute
	contestCount  = 6 // the same repair so often in a window: somebody else wants it otherwise
	firstTruce    = 2 * time.Second
	longTruce     = time.Minute
)

// contest notices that something changes back what is put right again and again. To go on would be a fight that floods
// the network with announcements, so it is left alone for ever longer, and people are told.
type contest struct {
	repairs map[string][]time.Time // by what was done
	truce   time.Duration
	until   time.Time
	reason  string
}

// repaired takes note of repairs; true when that begins a truce.
func (c *contest) repaired(changes []node.Change, now time.Time) bool {
	if c.repairs == nil {
		c.repairs = map[string][]time.Time{}
	}
	var again []string
	for _, change := range changes {
		times := append(recent(c.repairs[change.Text], now), now)
		c.repairs[change.Text] = times
		if len(times) >= contestCount {
			again = append(again, change.Text)
		}
	}
	if len(again) == 0 {
		return false
	}
	c.truce = min(max(2*c.truce, firstTruce), longTruce)
	c.until = now.Add(c.truce)
	c.reason = fmt.Sprintf("something else on this node changes back what is put right, %d times in a minute: %s; look for NetworkManager, systemd-networkd or a script that manages these devices",
		contestCount, strings.Join(again, "; "))
	return true
}

// quiet takes note of a pass that found nothing to do: after a while of them the contest is over.
func (c *contest) quiet(now time.Time) {
	for text, times := range c.repairs {
		if times = recent(times, now); len(times) == 0 {
			delete(c.repairs, text)
		} else {
			c.repairs[text] = times
		}
	}
	if len(c.repairs) == 0 {
		*c = contest{}
	}
}

// holds says that there is a truce now.
func (c *contest) holds(now time.Time) bool { return now.Before(c.until) }

func recent(times []time.Time, now time.Time) []time.Time {
	for len(times) > 0 && now.Sub(times[0]) > contestWindow {
		times = times[1:]
	}
	return times
}
