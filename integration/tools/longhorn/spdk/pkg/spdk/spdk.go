// Package spdk is a server that can't be had.
package spdk

import (
	"context"
	"errors"

	"github.com/longhorn/types/pkg/generated/spdkrpc"
)

type DiskState string

const DiskStateReady = DiskState("ready")

type Server struct {
	spdkrpc.UnimplementedSPDKServiceServer
}

func NewServer(context.Context, int32, int32) (*Server, error) {
	return nil, errors.New("this build has no v2 data engine")
}
