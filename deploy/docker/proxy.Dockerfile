# syntax=docker/dockerfile:1
# docker build -f deploy/docker/proxy.Dockerfile -t leno/proxy:0.1.0 .
#
# Linked to glibc, as the allocator and the resolver of names are used. The image has the program, the libraries that it is
# linked to, and whom the world trusts; nothing else, and no shell.
FROM rust:1.95-bookworm AS build
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --locked --profile dist -p leno-proxy --bin leno-proxy \
    && mkdir -p /image/usr/local/bin /image/etc/ssl/certs \
    && cp target/dist/leno-proxy /image/usr/local/bin/ \
    && ldd target/dist/leno-proxy | grep -o '/[^ ]*' \
       | xargs cp --parents --dereference --target-directory=/image \
    && cp /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/

FROM scratch
COPY --from=build /image /
USER 1337:1337
ENTRYPOINT ["/usr/local/bin/leno-proxy"]
