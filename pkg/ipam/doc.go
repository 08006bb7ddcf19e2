// Package ipam chooses addresses and keeps who has them.
//
// It has three parts that don't know each other's insides. [Parse] turns a NetConf with an ipam section
// as Whereabouts reads it, and what is ours besides, into a [Config]; it is pure. [Pool] is
// one range and says, without walking it, in which order its free addresses come; it is pure too. A [Store]
// holds claims: one claim per address, made by creating something that is named after the
// address, so that the name is the lock and no other lock is needed. [Allocator] puts them together.
//
// Package embedded is the store on one machine's disk.
package ipam
