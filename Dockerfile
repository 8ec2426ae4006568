# The image of both roles: one static program and nothing else. docs/CONTAINERS.md says how to run it.
#
#	docker build -t reverser .
#	docker build -t reverser:v1.2.3 --build-arg VERSION=v1.2.3 .
#
# podman keeps the health check with --format docker only.

FROM --platform=$BUILDPLATFORM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG TARGETOS
ARG TARGETARCH
ARG VERSION
RUN CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH \
	go build -trimpath -ldflags "-s -w -X main.release=$VERSION" -o /image/usr/bin/reverser ./cmd/reverser
# Any user may run the program, as OpenShift wants it, so any user may make its state directory here, which only that user can read.
RUN mkdir -p /image/var/lib/reverser && chmod 1777 /image/var/lib/reverser

FROM scratch
COPY --from=build /image /
# The directory of the states: proxy or bridge below it.
ENV STATE_DIRECTORY=/var/lib/reverser
VOLUME /var/lib/reverser
# Nobody in particular. A number, so that Kubernetes can see that it is not root.
USER 65532:65532
EXPOSE 3010
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 CMD ["/usr/bin/reverser", "status", "--check"]
ENTRYPOINT ["/usr/bin/reverser"]
CMD ["--help"]
