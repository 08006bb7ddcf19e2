// Package longhornmanager runs the real longhorn-manager, its instance managers and its engines, built from their Go modules, in a cluster of package cluster, and
// tests lhstoragectl on them. What the quick tests of package longhorn have instead, a double, must behave as what is here does.
//
// There is one image for all of Longhorn's programs. Its v2 engine is left out, for what that is made of can't be had: see integration/tools/longhorn/spdk.
package longhornmanager
