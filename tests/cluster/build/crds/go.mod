// The resource definitions of the operators that deploy/k8s speaks to; no Go of these modules is built.
// go.sum holds the checksums: `build crds` compares what it downloads with them.
module headrace.test/crds

go 1.25.0

require (
	github.com/cert-manager/cert-manager v1.21.2
	github.com/kedacore/keda/v2 v2.21.0
	github.com/prometheus-operator/prometheus-operator v0.85.0
	sigs.k8s.io/gateway-api v1.6.3
)
