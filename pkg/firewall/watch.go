package firewall

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Of linux/netfilter/nfnetlink.h and nf_tables.h.
const (
	groupNFTables = 7  // NFNLGRP_NFTABLES
	subsystem     = 10 // NFNL_SUBSYS_NFTABLES
	msgDelTable   = 2  // NFT_MSG_DELTABLE
)

// watch tells of changes to the nft backend's table in the network namespace of
// the calling thread. It tells of our own too; looking once more costs little.
func watch() (changed <-chan struct{}, stop func(), err error) {
	socket, err := nl.Subscribe(unix.NETLINK_NETFILTER, groupNFTables)
	if err != nil {
		return nil, func() {}, fmt.Errorf("listen for nftables' events: %w", err)
	}
	// A timeout, because closing a netlink socket doesn't wake its reader.
	if err := socket.SetReceiveTimeout(&unix.Timeval{Usec: 250_000}); err != nil {
		socket.Close()
		return nil, func() {}, fmt.Errorf("listen for nftables' events: %w", err)
	}
	out, done := make(chan struct{}, 1), make(chan struct{})
	var reading sync.WaitGroup
	reading.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			if concerns(socket.Receive()) {
				select {
				case out <- struct{}{}:
				default: // one is waiting to be seen
				}
			}
		}
	})
	return out, func() { close(done); reading.Wait(); socket.Close() }, nil
}

// concerns says whether what was received may be a change of our table. Events
// that were too many to be kept (ENOBUFS) may.
func concerns(messages []syscall.NetlinkMessage, _ *unix.SockaddrNetlink, err error) bool {
	switch {
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
		return false
	case err != nil:
		time.Sleep(settle) // a broken socket mustn't be read in a tight loop
		return true
	}
	for _, m := range messages {
		kind := m.Header.Type
		if kind>>8 == subsystem && (kind&0xff == msgDelTable || bytes.Contains(m.Data, []byte(Table+"\x00"))) {
			return true
		}
	}
	return false
}
