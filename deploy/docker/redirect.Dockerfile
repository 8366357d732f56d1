# syntax=docker/dockerfile:1
# docker build -f deploy/docker/redirect.Dockerfile -t leno/redirect:0.1.0 .
#
# Writes a pod's rules once and ends. `leno-cni`, which does the same for a node's container runtime, is in it to be copied from
# there. The program has no need of libraries; the tools that it runs have.
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --locked --profile dist -p leno-redirect --bin leno-redirect --bin leno-cni \
    && cp target/dist/leno-redirect target/dist/leno-cni /

FROM debian:bookworm-slim
# Whatever is the newest of this release: they are the kernel's counterpart, and security fixes are wanted.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends iptables nftables \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /leno-redirect /leno-cni /usr/local/bin/
# What writes rules is root, with NET_ADMIN and NET_RAW and no other capability: the pod says so.
# hadolint ignore=DL3002
USER 0:0
ENTRYPOINT ["/usr/local/bin/leno-redirect"]
