# wsbouncer in a container: one binary, no shell, not root.
#
#   docker build -t wsbouncer .
#   docker run --rm -p 8080:8080 -v "$PWD/rules:/etc/wsbouncer:ro" wsbouncer
#
# Mount the directory, not the file: a mounted file keeps showing its old content when an editor or Kubernetes replaces it.

FROM docker.io/library/rust:1.95-slim-bookworm AS builder
WORKDIR /build
# --build-arg FEATURES=otlp exports spans (docs/traces.md).
ARG FEATURES=""
# What the compiler knows of the way that execution takes (tests/bench/pgo/train): handshakes cost a tenth less. It is for
# this compiler; any other builds the same program without it.
COPY tests/bench/pgo/wsbouncer.profdata /profile/
ENV RUSTFLAGS="-Cprofile-use=/profile/wsbouncer.profdata"

# The dependencies alone, with an empty program: this layer is built again only when Cargo.toml or Cargo.lock change.
COPY Cargo.toml Cargo.lock ./
RUN mkdir src && echo 'fn main() {}' > src/main.rs && touch src/lib.rs \
    && cargo build --release --locked --features "$FEATURES" && rm -r src

COPY src src
COPY config/reference.yaml config/reference.yaml
# Newer than the empty program's, whatever the checkout says.
RUN find src -name '*.rs' -exec touch {} + && cargo build --release --locked --features "$FEATURES"

# What went into it: CycloneDX, for those who look for known vulnerabilities.
COPY tests/supply/sbom tests/supply/sbom
RUN sh tests/supply/sbom "$FEATURES" > wsbouncer.cdx.json

# Has glibc, its resolver and nothing that could be run. "nonroot" is user 65532.
FROM gcr.io/distroless/cc-debian12:nonroot
LABEL org.opencontainers.image.title="wsbouncer" \
      org.opencontainers.image.description="A reverse proxy that authenticates WebSocket upgrades" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0"
COPY LICENSE-MIT LICENSE-APACHE /usr/share/doc/wsbouncer/
COPY --from=builder /build/wsbouncer.cdx.json /usr/share/doc/wsbouncer/wsbouncer.cdx.json
COPY --from=builder /build/target/release/wsbouncer /wsbouncer
# A number, so that Kubernetes can see that it is not root.
USER 65532:65532
ENV WSBOUNCER_LOG_FORMAT=json
EXPOSE 8080
STOPSIGNAL SIGTERM
# Asks /readyz on the admin address, 127.0.0.1:9901 as long as the configuration does not say otherwise.
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s CMD ["/wsbouncer", "probe"]
ENTRYPOINT ["/wsbouncer"]
CMD ["serve", "--config", "/etc/wsbouncer/wsbouncer.yaml"]
