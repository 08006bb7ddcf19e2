package v1alpha1

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
)

const (
	maxLabelValue = 63 // of Kubernetes
	keptOfLong    = 40 // of a value that is too long, for people
)

// LabelValue makes a label value of any text: the text itself where it is a legal one, else
// the legal part of its beginning and a digest of the whole.
func LabelValue(text string) string {
	if text == "" || len(text) <= maxLabelValue && legalLabel(text) {
		return text
	}
	sum := sha256.Sum256([]byte(text))
	digest := hex.EncodeToString(sum[:8])
	kept := strings.Map(func(r rune) rune {
		if r < 0x80 && labelByte(byte(r)) {
			return r
		}
		return '_'
	}, text)
	kept = strings.Trim(kept[:min(len(kept), keptOfLong)], "-_.")
	if kept == "" {
		return digest
	}
	return kept + "-" + digest
}

func legalLabel(text string) bool {
	for i := range len(text) {
		if !labelByte(text[i]) {
			return false
		}
	}
	return !strings.ContainsRune("-_.", rune(text[0])) && !strings.ContainsRune("-_.", rune(text[len(text)-1]))
}

func labelByte(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.'
}
