# Two images of one file:
#   docker build --target cpu  -t cme-bench:cpu .
#   docker build --target cuda -t cme-bench:cuda .     (run with --gpus all)
FROM python:3.11-slim AS base
RUN apt-get update && apt-get install -y --no-install-recommends git g++ && rm -rf /var/lib/apt/lists/*
RUN pip install --no-cache-dir uv
ENV UV_SYSTEM_PYTHON=1 UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy CME_BENCH_CACHE=/cache
WORKDIR /src
COPY . .
RUN uv build --wheel --out-dir /wheels

FROM base AS cpu
RUN uv pip install --no-cache --torch-backend cpu "$(ls /wheels/*.whl)[all]"
WORKDIR /work
VOLUME /cache
ENTRYPOINT ["cme-bench"]
CMD ["--help"]

# torch's and vLLM's wheels bring CUDA's libraries; the driver is the host's.
FROM base AS cuda
RUN uv pip install --no-cache --torch-backend auto "$(ls /wheels/*.whl)[all,vllm]"
WORKDIR /work
VOLUME /cache
ENTRYPOINT ["cme-bench"]
CMD ["--help"]
