FROM python:3.11-slim AS build
WORKDIR /src
RUN python -m venv --without-pip /opt/gateway
# OpenTelemetry is in it, 13 MB that nothing loads until OTEL_EXPORTER_OTLP_ENDPOINT is set.
COPY requirements.lock requirements-build.lock ./
RUN python -m pip --python /opt/gateway/bin/python install --no-cache-dir --require-hashes -r requirements.lock \
    && python -m venv /opt/build && /opt/build/bin/pip install --no-cache-dir --require-hashes -r requirements-build.lock
COPY pyproject.toml README.md LICENSE ./
COPY gateway/ gateway/
# What makes the wheel stays in this stage; the wheel alone goes into the environment. Litestar brings Faker, whose other
# locales are 20 MB.
RUN /opt/build/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /tmp/wheels . \
    && python -m pip --python /opt/gateway/bin/python install --no-cache-dir --no-deps /tmp/wheels/*.whl \
    && /opt/gateway/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/gateway/lib \
    && find /opt/gateway -name tests -type d -prune -exec rm -rf {} + \
    && find /opt/gateway -path '*/faker/providers/*/??_*' -type d -not -name 'en_*' -prune -exec rm -rf {} +

FROM python:3.11-slim
ARG VERSION=unknown
ARG REVISION=unknown
ARG SOURCE=unknown
LABEL org.opencontainers.image.title="callbutton-gateway" \
      org.opencontainers.image.description="A REST/JSON gateway in front of the Callbutton XML services of 2009" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}"
# The base brings pip; what runs needs none. It brings no bytecode either, and a read-only root cannot keep any.
RUN python -c "import importlib.util as u, shutil; [shutil.rmtree(found.submodule_search_locations[0]) for name in ('pip', 'setuptools', 'wheel', 'ensurepip') if (found := u.find_spec(name))]" \
    && rm -f /usr/local/bin/pip* /usr/bin/pip* \
    && python -c "import compileall as c, re, sysconfig; raise SystemExit(not c.compile_dir(sysconfig.get_path('stdlib'), quiet=1, workers=0, rx=re.compile(r'/(tests?|lib2to3|site-packages|dist-packages)/')))"
COPY --from=build /opt/gateway /opt/gateway
ENV PATH=/opt/gateway/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    GATEWAY_HOST=0.0.0.0
USER 65532:65532
EXPOSE 8080
# 5 s: a busy machine takes a second to start Python.
HEALTHCHECK --interval=10s --timeout=5s --start-period=5s CMD ["callbutton-gateway", "healthy"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["callbutton-gateway"]
CMD ["serve"]
