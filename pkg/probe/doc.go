// Package probe measures what a storage network carries: reachability and
// round-trip time (Ping), a bulk transfer (Stream), the bytes that each link
// carried (Counters) and a block read over iSCSI (ISCSIRead).
//
// All sockets are opened on the calling goroutine, before any other goroutine
// takes part. A caller that has locked its OS thread into a network namespace
// therefore measures from that namespace, and its sockets stay there.
package probe
