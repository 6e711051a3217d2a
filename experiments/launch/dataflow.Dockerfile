# The image of the machines that dataflow_build.sh uses, built in the repository's folder. Its Python and its Apache Beam
# must be those of the environment that starts the build:
#   docker build --file experiments/launch/dataflow.Dockerfile --tag IMAGE . && docker push IMAGE
FROM apache/beam_python3.12_sdk:2.77.0
WORKDIR /stgt
COPY requirements.txt pyproject.toml README.md LICENSE ./
COPY stgt_jax stgt_jax
COPY data_pipeline data_pipeline
COPY experiments experiments
RUN pip install --no-cache-dir --editable ".[beam,gcs]"
