// Package types has the words for a replica's mode.
package types

type Mode string

const (
	ModeWO  = Mode("WO")
	ModeRW  = Mode("RW")
	ModeERR = Mode("ERR")

	ProgressStateInProgress = "in_progress"
)
