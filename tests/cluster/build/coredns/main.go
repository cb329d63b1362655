// Command coredns is CoreDNS with only the plugins that a cluster's DNS is configured with here.
//
// Its own main package links those of every cloud provider too, and takes several times as long to build.
package main

import (
	"github.com/coredns/coredns/coremain"

	// A plugin registers itself by being imported; their order is CoreDNS's own.
	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/forward"
	_ "github.com/coredns/coredns/plugin/health"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/ready"
)

func main() {
	coremain.Run()
}
