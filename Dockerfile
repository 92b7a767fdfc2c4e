# For those who have a container engine; `cargo e2e images build` makes the same image without one.
FROM rust:1.95-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends cmake
WORKDIR /source
COPY . .
RUN cargo build --release -p cache-server \
 && mkdir -p /rootfs/data /rootfs/tmp \
 && cp target/*-linux-gnu/release/cache-server /rootfs/ \
 && chown 65532:65532 /rootfs/data \
 && chmod 1777 /rootfs/tmp

FROM scratch
COPY --from=build /rootfs/ /
USER 65532:65532
EXPOSE 5000
VOLUME /data
ENTRYPOINT ["/cache-server"]
CMD ["--listen", "0.0.0.0:5000", "--data", "/data"]
