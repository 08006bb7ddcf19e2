package ipam

import (
	"math/big"
	"net/netip"

	"go4.org/netipx"
)

// Usage says how full a pool is. Numbers are as exact as a metric: a float64 is, up to 2⁵³.
type Usage struct {
	Addresses float64 // that it can give: the window without what is excluded
	Allocated float64 // of these, those that are taken, quarantined ones, too
}

// Usage is how full the pool is when these addresses are taken, each named once or more often.
func (p Pool) Usage(taken []netip.Addr) Usage {
	all := size(p.free(nil))
	return Usage{Addresses: all, Allocated: all - size(p.free(taken))}
}

// size counts the addresses of ranges.
func size(ranges []netipx.IPRange) float64 {
	var sum float64
	for _, r := range ranges {
		n := new(big.Int).Sub(new(big.Int).SetBytes(r.To().AsSlice()), new(big.Int).SetBytes(r.From().AsSlice()))
		count, _ := new(big.Float).SetInt(n).Float64()
		sum += count + 1
	}
	return sum
}
