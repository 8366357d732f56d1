#!/usr/bin/env bash
# Builds a real kube-apiserver from Debian's source package, for tests/e2e/kubernetes/real.rs: no package has the program
# itself. Takes about ten minutes of a core and 2 GB; not a part of .ci/run for that. Usage: tests/kube-apiserver.sh FOLDER
set -euo pipefail
folder=$(realpath -m "${1:?usage: $0 FOLDER}")
mkdir -p "$folder"

apt-get install -y -qq dpkg-dev golang-1.19-go etcd-server
sources=/etc/apt/sources.list.d/leno-kubernetes-source.sources
sed 's/^Types: deb$/Types: deb-src/' /etc/apt/sources.list.d/debian.sources >"$sources"
apt-get update -qq
(cd "$folder" && apt-get source -qq --download-only kubernetes)
rm "$sources"

# Modules of that age do not build with this Go; as a GOPATH, with everything vendored, they do.
export GOPATH="$folder/go" GO111MODULE=off GOPROXY=off CGO_ENABLED=0 PATH="/usr/lib/go-1.19/bin:$PATH"
source="$GOPATH/src/k8s.io/kubernetes"
mkdir -p "$source"
tar xzf "$folder"/kubernetes_*.orig.tar.gz -C "$source" --strip-components=1
cd "$source"

# What its own build generates first: the types that server-side apply goes by.
go build -o "$folder/openapi-gen" ./vendor/k8s.io/kube-openapi/cmd/openapi-gen
packages=$(grep -rlE --include=*.go '^// \+k8s:openapi-gen=' staging/src/k8s.io/*/pkg staging/src/k8s.io/api pkg vendor/k8s.io/utils |
  xargs -n1 dirname | sort -u | grep -vE 'code-generator|sample-|/testdata' |
  sed -E 's#^staging/src/#k8s.io/kubernetes/vendor/#; s#^(pkg|vendor)/#k8s.io/kubernetes/\1/#' | paste -sd,)
"$folder/openapi-gen" -i "$packages" -p k8s.io/kubernetes/pkg/generated/openapi -O zz_generated.openapi \
  --go-header-file hack/boilerplate/boilerplate.generatego.txt -r "$folder/violations" --output-base "$folder/generated"
cp "$folder"/generated/k8s.io/kubernetes/pkg/generated/openapi/zz_generated.openapi.go pkg/generated/openapi/

go build -trimpath -ldflags '-s -w' -o "$folder/kube-apiserver" ./cmd/kube-apiserver
echo "LENO_KUBE_APISERVER=$folder/kube-apiserver cargo test -p leno-tests --test e2e real_api_server"
