FROM rust:1-slim-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked --bin faregate

FROM debian:bookworm-slim
# Certificate authorities are compiled in; nothing else is needed.
RUN useradd --system --uid 10001 --home-dir /var/lib/faregate --no-create-home --shell /usr/sbin/nologin faregate \
 && install -d -o faregate -g faregate -m 0700 /var/lib/faregate
COPY --from=build /src/target/release/faregate /usr/local/bin/faregate
COPY --from=build /src/LICENSE /usr/share/doc/faregate/LICENSE
USER 10001
ENV FAREGATE_DATA_DIR=/var/lib/faregate FAREGATE_LISTEN=0.0.0.0:8080
VOLUME /var/lib/faregate
EXPOSE 8080
# The admin listener stays on loopback, where the check reaches it.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s --retries=3 CMD ["faregate", "health"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["faregate"]
CMD ["serve"]
