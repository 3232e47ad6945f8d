# syntax=docker/dockerfile:1
FROM python:3.11.14-slim-bookworm AS build
WORKDIR /build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# pip and the build back-end have an environment of their own. Every package is a wheel of a known hash, so none runs code to install itself.
RUN python -m venv /opt/build && python -m venv --without-pip /opt/wadm
COPY requirements.txt requirements-build.txt ./
RUN /opt/build/bin/pip install --require-hashes --only-binary :all: -r requirements-build.txt \
    && /opt/build/bin/pip --python /opt/wadm/bin/python install --require-hashes --only-binary :all: -r requirements.txt
COPY pyproject.toml README.md LICENSE ./
COPY wadm_mcp ./wadm_mcp
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /opt/build/dist . \
    && /opt/build/bin/pip --python /opt/wadm/bin/python install --no-deps --no-index /opt/build/dist/*.whl

FROM python:3.11.14-slim-bookworm
# No build tools stay behind: those of the base image go too.
RUN python -c "import shutil, site, pathlib, ensurepip; shutil.rmtree(pathlib.Path(ensurepip.__file__).parent); \
    [shutil.rmtree(path) if path.is_dir() else path.unlink() for folder in site.getsitepackages() \
    for name in ('pip*', 'setuptools*', 'wheel*', 'pkg_resources', '_distutils_hack', 'distutils-precedence.pth') \
    for path in pathlib.Path(folder).glob(name)]" && rm -f /usr/local/bin/pip* /usr/local/bin/wheel
RUN useradd --system --uid 8920 --home-dir /data --no-create-home --shell /usr/sbin/nologin wadm \
    && install -d -m 0700 -o wadm -g wadm /data
COPY --from=build /opt/wadm /opt/wadm
ENV PATH=/opt/wadm/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    ENVIRONMENT=production WADM_HOST=0.0.0.0 WADM_PORT=8920 WADM_DATA_DIR=/data
USER 8920
WORKDIR /data
VOLUME /data
EXPOSE 8920
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen(f\"http://127.0.0.1:{os.environ['WADM_PORT']}/health/live\", timeout=4)"]
ENTRYPOINT ["wadm-mcp"]
CMD ["serve"]
