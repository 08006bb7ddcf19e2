// Package api has the fields that are read of an engine's, a replica's and an image's state.
package api

import "github.com/longhorn/longhorn-spdk-engine/pkg/types"

type Replica struct {
	Name, UUID, LvsName, LvsUUID, State, ErrorMsg string
	SpecSize, ActualSize                          uint64
	PortStart, PortEnd                            int32
}

type Engine struct {
	Name, UUID, State, ErrorMsg, Endpoint, Frontend string
	SpecSize                                        uint64
	Port, TargetPort, StandbyTargetPort, UblkID     int32
	ReplicaAddressMap                               map[string]string
	ReplicaModeMap                                  map[string]types.Mode
	Snapshots                                       map[string]*Lvol
	Head                                            *Lvol
}

type Lvol struct {
	Name, Parent, CreationTime, SnapshotTimestamp string
	Children                                      map[string]bool
	UserCreated                                   bool
	ActualSize                                    uint64
}

type BackingImage struct {
	Name, BackingImageUUID, LvsUUID, ExpectedChecksum, CurrentChecksum, State, ErrorMsg string
	Size                                                                                uint64
	Progress                                                                            int32
}
