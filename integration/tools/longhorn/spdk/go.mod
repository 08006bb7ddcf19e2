// What the programs of this tools module import of longhorn-spdk-engine, which isn't to be had: Longhorn's v2 data engine. It is off, so nothing of this does anything.
module github.com/longhorn/longhorn-spdk-engine

go 1.24.0

require github.com/longhorn/types v0.0.0-20250915085125-0638a2eac534
