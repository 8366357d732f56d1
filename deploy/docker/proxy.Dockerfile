# syntax=docker/dockerfile:1
# docker build -f deploy/docker/proxy.Dockerfile -t leno/proxy:0.1.0 .
#
# Linked to glibc, as the allocator and the resolver of names are used: a base with nothing else in it, no shell either.
FROM docker.io/library/rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --locked --profile dist -p leno-proxy --bin leno-proxy \
    && cp target/dist/leno-proxy /leno-proxy

FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /leno-proxy /usr/local/bin/leno-proxy
USER 1337:1337
ENTRYPOINT ["/usr/local/bin/leno-proxy"]
