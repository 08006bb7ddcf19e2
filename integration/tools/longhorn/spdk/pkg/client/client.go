// Package client is a client of a server that can't be had. An instance manager makes one even without the v2 engine, and asks it nothing.
package client

import (
	"errors"

	"github.com/longhorn/types/pkg/generated/spdkrpc"

	"github.com/longhorn/longhorn-spdk-engine/pkg/api"
)

var errNone = errors.New("this build has no v2 data engine")

type SPDKClient struct{}

func NewSPDKClient(string) (*SPDKClient, error) { return &SPDKClient{}, nil }

func (*SPDKClient) Close() error { return nil }

type BackupCreateRequest struct {
	BackupName, SnapshotName, VolumeName, EngineName, BackupTarget, StorageClassName string
	BackingImageName, BackingImageChecksum, CompressionMethod                        string
	ConcurrentLimit                                                                  int32
	Labels                                                                           []string
	Credential                                                                       map[string]string
}

type BackupRestoreRequest struct {
	BackupUrl, EngineName string
	Credential            map[string]string
	ConcurrentLimit       int32
}

// Metrics are a disk's or an engine's.
type Metrics struct {
	ReadThroughput, WriteThroughput, ReadLatency, WriteLatency, ReadIOPS, WriteIOPS uint64
}

// notifier is what a watch gives.
type notifier struct{}

func (notifier) Recv() (any, error) { return nil, errNone }

func (*SPDKClient) BackingImageCreate(...any) (*api.BackingImage, error)    { return nil, errNone }
func (*SPDKClient) BackingImageDelete(...any) error                         { return errNone }
func (*SPDKClient) BackingImageGet(...any) (*api.BackingImage, error)       { return nil, errNone }
func (*SPDKClient) BackingImageList() (map[string]*api.BackingImage, error) { return nil, errNone }
func (*SPDKClient) BackingImageWatch(...any) (notifier, error)              { return notifier{}, errNone }
func (*SPDKClient) DiskCreate(...any) (*spdkrpc.Disk, error)                { return nil, errNone }
func (*SPDKClient) DiskDelete(...any) error                                 { return errNone }
func (*SPDKClient) DiskGet(...any) (*spdkrpc.Disk, error)                   { return nil, errNone }
func (*SPDKClient) EngineBackupCreate(*BackupCreateRequest) (*spdkrpc.BackupCreateResponse, error) {
	return nil, errNone
}
func (*SPDKClient) EngineBackupRestore(*BackupRestoreRequest) error { return errNone }
func (*SPDKClient) EngineBackupStatus(...any) (*spdkrpc.BackupStatusResponse, error) {
	return nil, errNone
}
func (*SPDKClient) EngineCreate(...any) (*api.Engine, error)    { return nil, errNone }
func (*SPDKClient) EngineDelete(...any) error                   { return errNone }
func (*SPDKClient) EngineDeleteTarget(...any) error             { return errNone }
func (*SPDKClient) EngineExpand(...any) error                   { return errNone }
func (*SPDKClient) EngineGet(...any) (*api.Engine, error)       { return nil, errNone }
func (*SPDKClient) EngineList() (map[string]*api.Engine, error) { return nil, errNone }
func (*SPDKClient) EngineReplicaAdd(...any) error               { return errNone }
func (*SPDKClient) EngineReplicaDelete(...any) error            { return errNone }
func (*SPDKClient) EngineRestoreStatus(...any) (*spdkrpc.RestoreStatusResponse, error) {
	return nil, errNone
}
func (*SPDKClient) EngineResume(...any) error                   { return errNone }
func (*SPDKClient) EngineSnapshotClone(...any) error            { return errNone }
func (*SPDKClient) EngineSnapshotCreate(...any) (string, error) { return "", errNone }
func (*SPDKClient) EngineSnapshotDelete(...any) error           { return errNone }
func (*SPDKClient) EngineSnapshotHash(...any) error             { return errNone }
func (*SPDKClient) EngineSnapshotHashStatus(...any) (*spdkrpc.EngineSnapshotHashStatusResponse, error) {
	return nil, errNone
}
func (*SPDKClient) EngineSnapshotPurge(...any) error              { return errNone }
func (*SPDKClient) EngineSnapshotRevert(...any) error             { return errNone }
func (*SPDKClient) EngineSuspend(...any) error                    { return errNone }
func (*SPDKClient) EngineSwitchOverTarget(...any) error           { return errNone }
func (*SPDKClient) EngineWatch(...any) (notifier, error)          { return notifier{}, errNone }
func (*SPDKClient) LogGetFlags() (string, error)                  { return "", errNone }
func (*SPDKClient) LogSetFlags(...any) error                      { return errNone }
func (*SPDKClient) LogSetLevel(...any) error                      { return errNone }
func (*SPDKClient) MetricsGet(...any) (*Metrics, error)           { return nil, errNone }
func (*SPDKClient) ReplicaCreate(...any) (*api.Replica, error)    { return nil, errNone }
func (*SPDKClient) ReplicaDelete(...any) error                    { return errNone }
func (*SPDKClient) ReplicaGet(...any) (*api.Replica, error)       { return nil, errNone }
func (*SPDKClient) ReplicaList() (map[string]*api.Replica, error) { return nil, errNone }
func (*SPDKClient) ReplicaWatch(...any) (notifier, error)         { return notifier{}, errNone }
func (*SPDKClient) ReplicaRebuildingDstSetQosLimit(...any) error  { return errNone }
func (*SPDKClient) ReplicaRebuildingDstShallowCopyCheck(...any) (*spdkrpc.ReplicaRebuildingDstShallowCopyCheckResponse, error) {
	return nil, errNone
}
func (*SPDKClient) ReplicaSnapshotCloneDstStatusCheck(...any) (*spdkrpc.ReplicaSnapshotCloneDstStatusCheckResponse, error) {
	return nil, errNone
}
