package report_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"html"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// ArtefactsEnv names a directory that screenshots are kept in; without it they go to the temporary directory, below lhstorage-report.
const artefactsEnv = "LHSTORAGE_ARTEFACTS"

// browser finds headless Chromium, as Debian packages it.
func browser(t *testing.T) string {
	t.Helper()
	for _, name := range []string{"chromium", "chromium-headless-shell", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	if os.Getenv("CI") != "" {
		t.Fatal("no chromium: hack/deps installs it")
	}
	t.Skip("no chromium: apt-get install chromium")
	return ""
}

func chromium(t *testing.T, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, browser(t), append([]string{
		"--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--no-first-run", "--disable-background-networking", "--user-data-dir=" + t.TempDir(),
	}, args...)...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.WaitDelay = 5 * time.Second
	require.NoError(t, cmd.Run(), "%s", &errs)
	return out.String()
}

// layout is what a page looks like in a frame of some width.
type layout struct {
	Overflow int      // pixels that the page is wider than its frame
	Wide     []string // elements that stand out of it, but for what scrolls by itself
	Height   int
	Headings []string
	Nameless int // pictures and regions without an accessible name
	Small    int // texts of the drawing that are smaller than 9 pixels
	Scripts  int
}

const look = `<script>addEventListener('load', () => {
  const f = document.querySelector('iframe'), d = f.contentDocument, r = d.documentElement, w = f.clientWidth, wide = [];
  for (const e of d.querySelectorAll('body *')) {
    const b = e.getBoundingClientRect();
    if (!e.closest('.scroll') && !e.closest('svg') && (b.right > w + 1 || b.left < -1)) wide.push(e.tagName + '.' + e.className);
  }
  const svg = d.querySelector('svg.topology'), box = svg.viewBox.baseVal, scale = svg.getBoundingClientRect().width / box.width;
  let outside = [];
  for (const t of svg.querySelectorAll('text')) { const b = t.getBBox(); if (b.x < 0 || b.y < 0 || b.x + b.width > box.width || b.y + b.height > box.height) outside.push('text ' + t.textContent); }
  const named = e => e.getAttribute('aria-label') || (e.getAttribute('aria-labelledby') || '').split(' ').filter(Boolean).every(i => d.getElementById(i)) && e.hasAttribute('aria-labelledby');
  document.title = 'done';
  document.body.dataset.layout = JSON.stringify({Overflow: Math.max(0, r.scrollWidth - w), Wide: wide.concat(outside), Height: r.scrollHeight,
    Headings: [...d.querySelectorAll('h2')].map(e => e.textContent),
    Nameless: [...d.querySelectorAll('[role=img],[role=region],section')].filter(e => !named(e)).length,
    Small: [...svg.querySelectorAll('text')].filter(e => parseFloat(f.contentWindow.getComputedStyle(e).fontSize) * scale < 9).length,
    Scripts: d.scripts.length});
})</script>`

var layoutOf = regexp.MustCompile(`data-layout="([^"]*)"`)

func measure(t *testing.T, page string, width int) layout {
	t.Helper()
	path := filepath.Join(t.TempDir(), "frame.html")
	frame := fmt.Sprintf(`<!DOCTYPE html><body style="margin:0"><iframe style="border:0;width:%dpx;height:900px" srcdoc="%s"></iframe>%s</body>`, width, html.EscapeString(page), look)
	require.NoError(t, os.WriteFile(path, []byte(frame), 0o600))
	dom := chromium(t, "--window-size=1600,1000", "--virtual-time-budget=3000", "--dump-dom", "file://"+path)
	match := layoutOf.FindStringSubmatch(dom)
	require.NotNil(t, match, "%.2000s", dom)
	var l layout
	require.NoError(t, json.Unmarshal([]byte(html.UnescapeString(match[1])), &l))
	return l
}

// A phone and a desk show the page without anything that stands out of it, and a picture of each is kept.
func TestInABrowser(t *testing.T) {
	browser(t)
	kept := os.Getenv(artefactsEnv)
	if kept == "" {
		kept = filepath.Join(os.TempDir(), "lhstorage-report")
	}
	require.NoError(t, os.MkdirAll(kept, 0o755))
	for name, page := range map[string]string{"healthy": pageOf(t, site(3), 12), "broken": pageOf(t, broken(), 180), "twelve": pageOf(t, site(12), 60)} {
		path := filepath.Join(kept, name+".html")
		require.NoError(t, os.WriteFile(path, []byte(page), 0o644))
		for _, width := range []int{390, 1280} {
			t.Run(fmt.Sprintf("%s at %d", name, width), func(t *testing.T) {
				l := measure(t, page, width)
				assert.Zero(t, l.Overflow, "the page scrolls sideways")
				assert.Empty(t, l.Wide)
				assert.Zero(t, l.Nameless)
				assert.Zero(t, l.Small)
				assert.Zero(t, l.Scripts)
				assert.Subset(t, l.Headings, []string{"Topology", "Who reaches whom", "Nodes", "Addresses"})
				assert.Equal(t, name == "broken", l.Headings[0] == "Findings")
				for scheme, setting := range map[string]string{"light": "1", "dark": "0"} {
					picture := filepath.Join(kept, fmt.Sprintf("%s-%d-%s.png", name, width, scheme))
					chromium(t, fmt.Sprintf("--window-size=%d,%d", width, l.Height), "--blink-settings=preferredColorScheme="+setting, "--screenshot="+picture, "file://"+path)
					info, err := os.Stat(picture)
					require.NoError(t, err)
					assert.Greater(t, info.Size(), int64(10_000))
				}
			})
		}
	}
	t.Logf("pages and pictures are in %s", kept)
}
