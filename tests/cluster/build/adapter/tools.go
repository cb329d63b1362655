//go:build tools

// Package adapter only names what is built here, for `go mod tidy` to keep it.
package adapter

import _ "sigs.k8s.io/prometheus-adapter/cmd/adapter"
