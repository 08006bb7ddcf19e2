package firewall

import (
	"bytes"
	"encoding/binary"
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
	msgNewGen     = 15 // NFT_MSG_NEWGEN
	msgGetGen     = 16 // NFT_MSG_GETGEN
	attrGenID     = 1  // NFTA_GEN_ID, big endian
)

// generation counts the transactions that nftables has seen in the network namespace of the calling thread; 0 where the kernel doesn't say.
func generation() uint32 {
	req := nl.NewNetlinkRequest(subsystem<<8|msgGetGen, 0)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_UNSPEC, Version: nl.NFNETLINK_V0})
	answers, err := req.Execute(unix.NETLINK_NETFILTER, subsystem<<8|msgNewGen)
	if err != nil || len(answers) == 0 || len(answers[0]) < nl.SizeofNfgenmsg {
		return 0
	}
	attrs, err := nl.ParseRouteAttr(answers[0][nl.SizeofNfgenmsg:])
	if err != nil {
		return 0
	}
	for _, a := range attrs {
		if a.Attr.Type == attrGenID && len(a.Value) == 4 {
			return binary.BigEndian.Uint32(a.Value)
		}
	}
	return 0
}

// watch tells of changes to the nft backend's table in the network namespace of
// the calling thread. It tells of our own too, which their generation gives away.
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
