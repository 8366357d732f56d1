# syntax=docker/dockerfile:1
# docker build -f deploy/docker/control-plane.Dockerfile -t leno/control-plane:0.1.0 .
#
# Linked to glibc, as the allocator and the resolver of names are used: a base with nothing else in it, no shell either.
FROM docker.io/library/rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --locked --profile dist -p leno-control-plane --bin leno-control-plane \
    && cp target/dist/leno-control-plane /leno-control-plane

FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /leno-control-plane /usr/local/bin/leno-control-plane
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/leno-control-plane"]
