# The command line as an image. Build, then plan a file of the current folder:
#   docker build --tag eplb .
#   docker run --rm --volume "$PWD:/data" --user "$(id -u):$(id -g)" eplb compare load.parquet --ranks 32 --nodes 4
FROM python:3.12-slim AS wheel
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY eplb ./eplb
COPY traces ./traces
COPY cli ./cli
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /dist .

FROM python:3.12-slim
COPY --from=wheel /dist /dist
RUN python -m pip install --no-cache-dir "$(echo /dist/*.whl)[trace,ilp,report,html]" && rm -r /dist
# The kernels are compiled here, not by the first plan of every container.
RUN eplb cache build
RUN useradd --create-home eplb
USER eplb
WORKDIR /data
ENTRYPOINT ["eplb"]
CMD ["--help"]
