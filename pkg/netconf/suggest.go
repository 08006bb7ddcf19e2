package netconf

import (
	"fmt"
	"strings"
)

// suggestion is the end of a message about an unknown key: the key that was most
// likely meant, here or in another section, or the keys there are.
func suggestion(path, key string, fields []field) string {
	var here []string
	for _, f := range fields {
		here = append(here, f.key)
	}
	if near := nearest(key, here); near != "" {
		return fmt.Sprintf("; did you mean %q?", near)
	}
	if elsewhere := findPath("", key, new(conf).fields()); elsewhere != "" {
		return fmt.Sprintf("; did you mean %q?", elsewhere)
	}
	if path == "" {
		return ""
	}
	return "; known here: " + strings.Join(here, ", ")
}

// findPath is the path of the first key of that name, depth first.
func findPath(path, key string, fields []field) string {
	for _, f := range fields {
		if strings.EqualFold(f.key, key) {
			return join(path, f.key)
		}
		if found := findPath(join(path, f.key), key, f.sub); found != "" {
			return found
		}
	}
	return ""
}

// nearest is the word with the fewest edits to s, if they are few enough for a
// slip of the keyboard: one in three letters, two at most.
func nearest(s string, words []string) string {
	if len(s) > 64 {
		return ""
	}
	best, least := "", min(2, max(1, len(s)/3))+1
	for _, w := range words {
		if d := distance(strings.ToLower(s), strings.ToLower(w)); d < least {
			best, least = w, d
		}
	}
	return best
}

// distance is the number of letters to insert, delete or change between a and b.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}
