//go:build tools

// Package keda only names what is built here, for `go mod tidy` to keep it.
package keda

import (
	_ "github.com/kedacore/keda/v2/cmd/adapter"
	_ "github.com/kedacore/keda/v2/cmd/operator"
)
