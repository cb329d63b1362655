//go:build tools

// Package etcd only names what is built here, for `go mod tidy` to keep it.
package etcd

import _ "go.etcd.io/etcd/server/v3"
