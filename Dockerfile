# Three images from one file, each with only its own dependencies:
#
#   docker build --target runtime  -t octavo-runtime  .    one replica: octavo serve
#   docker build --target router   -t octavo-router   .    the router; no torch
#   docker build --target operator -t octavo-operator .    the operator; no torch
#
# They run as user 65532 and need no writable root file system: models go to /cache (mount a volume
# there), everything else that is written goes to /tmp.

ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/octavo
ENV PATH=/opt/octavo/bin:$PATH
WORKDIR /src
COPY constraints.txt ./

# Before the sources: torch is most of the image and changes least.
FROM build AS build-torch
RUN pip install torch -c constraints.txt

FROM build-torch AS build-runtime
COPY . .
RUN pip install '.[runtime,sources,otel]' -c constraints.txt

FROM build AS build-router
COPY . .
RUN pip install '.[router,sources,otel]' -c constraints.txt

FROM build AS build-operator
COPY . .
RUN pip install '.[operator]' -c constraints.txt

FROM python:${PYTHON}-slim AS base
RUN install -d -o 65532 -g 65532 /cache
# USER: who runs has no line in /etc/passwd, where libraries look otherwise.
ENV PATH=/opt/octavo/bin:$PATH \
    HOME=/tmp \
    USER=octavo \
    OCTAVO_CACHE=/cache \
    HF_HOME=/cache/huggingface \
    NUMBA_CACHE_DIR=/tmp/numba \
    TRITON_CACHE_DIR=/tmp/triton \
    TORCHINDUCTOR_CACHE_DIR=/tmp/inductor \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    OCTAVO_HOST=0.0.0.0
WORKDIR /tmp
USER 65532:65532
ENTRYPOINT ["octavo"]

FROM base AS runtime
# Triton compiles the launcher of each GPU kernel when it is first used.
USER root
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
USER 65532:65532
COPY --from=build-runtime /opt/octavo /opt/octavo
VOLUME ["/cache"]
EXPOSE 8000
CMD ["serve", "--help"]

FROM base AS router
COPY --from=build-router /opt/octavo /opt/octavo
EXPOSE 8000
CMD ["router"]

FROM base AS operator
COPY --from=build-operator /opt/octavo /opt/octavo
EXPOSE 8080
CMD ["operator"]
