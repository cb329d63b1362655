// Command kubernetes is a control plane, what runs on a node, and the client for both in one binary: one program is
// linked instead of six.
//
// Which of them it is, is told by the name that it is called by (links are the usual way) or by its first argument.
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/component-base/cli"
	kubectl "k8s.io/kubectl/pkg/cmd"
	"k8s.io/kubectl/pkg/cmd/util"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllers "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"

	// The programs' own main packages register these by importing them.
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
)

// program makes the command of one program; making it has side effects, so only the one that runs is made.
type program struct {
	name string
	make func() *cobra.Command
}

var programs = []program{
	{"kube-apiserver", apiserver.NewAPIServerCommand},
	{"kube-controller-manager", controllers.NewControllerManagerCommand},
	{"kube-scheduler", func() *cobra.Command { return scheduler.NewSchedulerCommand() }},
	{"kubelet", func() *cobra.Command { return kubelet.NewKubeletCommand(context.Background()) }},
	{"kube-proxy", proxy.NewProxyCommand},
	{"kubectl", kubectl.NewDefaultKubectlCommand},
}

func find(name string) int {
	return slices.IndexFunc(programs, func(p program) bool { return p.name == name })
}

func main() {
	chosen := find(filepath.Base(os.Args[0]))
	if chosen < 0 && len(os.Args) > 1 {
		os.Args = os.Args[1:]
		chosen = find(os.Args[0])
	}
	if chosen < 0 {
		var names []string
		for _, p := range programs {
			names = append(names, p.name)
		}
		fmt.Fprintf(os.Stderr, "usage: %s --flags...\n", strings.Join(names, "|"))
		os.Exit(2)
	}
	command := programs[chosen].make()
	if programs[chosen].name == "kubectl" {
		// It has a way of its own to say what went wrong, with an exit status for each case.
		util.CheckErr(cli.RunNoErrOutput(command))
		return
	}
	os.Exit(cli.Run(command))
}
