package kube

import (
	"net/netip"

	"github.com/lhstorage/lhstorage/pkg/ipam"
)

// EntryAddress is the address that a key of a pool's IPPool stands for; false for a key that is none of the pool's family.
func EntryAddress(pool ipam.Pool, key string) (netip.Addr, bool) {
	return addressAt(pool.Kept().Addr(), key)
}
