//go:build tools

// Package kwok only names what is built here, for `go mod tidy` to keep it.
package kwok

import _ "sigs.k8s.io/kwok/cmd/kwok"
