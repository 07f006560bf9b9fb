"""What ``--cluster`` may say, and the jobs that a batch system gets from it."""

import ast
import re
import shlex

import pytest

from sslmedsam2.errors import UsageError
from sslmedsam2.execution.dask_cluster import AddressSpec, LocalSpec, QueueSpec, parse_cluster

SLURM = """
queue: slurm
jobs: 4
gpus: 1
options:
  cores: 8
  memory: 32GB
  walltime: "04:00:00"
  queue: gpu
  job_extra_directives: ["--gres=gpu:1"]
  job_script_prologue: ["module load apptainer"]
  python: apptainer exec --nv image.sif python
"""


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("none", None),
        ("local", LocalSpec(None)),
        ("local:4", LocalSpec(4)),
        ("tcp://node1:8786", AddressSpec("tcp://node1:8786")),
        ("tls://node1:8786", AddressSpec("tls://node1:8786")),
    ],
)
def test_each_form_is_understood(text, spec):
    assert parse_cluster(text) == spec


@pytest.mark.parametrize("text", ["local:", "local:0", "local:x", "node1:8786", "cluster.txt", ""])
def test_anything_else_is_a_usage_error(text):
    with pytest.raises(UsageError, match="--cluster"):
        parse_cluster(text)


@pytest.fixture
def written(tmp_path):
    """Write a file and return the text of ``--cluster`` for it."""
    pytest.importorskip("yaml")

    def write(content):
        path = tmp_path / "cluster.yaml"
        path.write_text(content)
        return str(path)

    return write


def test_a_file_names_the_batch_system_and_its_options(written):
    spec = parse_cluster(written(SLURM))
    assert isinstance(spec, QueueSpec)
    assert (spec.queue, spec.jobs, spec.gpus) == ("slurm", 4, 1)
    assert spec.options["walltime"] == "04:00:00"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("queue: [", "cannot be read"),
        ("- slurm", "holds no table"),
        ("queue: sge\noptions: {cores: 1, memory: 1GB}", "not one of slurm, pbs, lsf"),
        ("queue: slurm\noption: {}", "'option' is not known"),
        ("queue: slurm\noptions: {cores: 1}", "'cores' and 'memory'"),
        ("queue: slurm\njobs: many\noptions: {cores: 1, memory: 1GB}", "whole numbers"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_what_is_wrong(written, content, reason):
    with pytest.raises(UsageError, match=reason):
        parse_cluster(written(content))


def test_a_file_that_is_not_there_is_a_usage_error(tmp_path):
    pytest.importorskip("yaml")
    with pytest.raises(UsageError, match="cannot be read"):
        parse_cluster(str(tmp_path / "cluster.yaml"))


def script_of(spec):
    pytest.importorskip("dask_jobqueue")
    from sslmedsam2.execution.dask_cluster import queue_cluster

    with queue_cluster(spec) as cluster:
        return cluster.job_script()


def test_a_slurm_job_asks_for_what_a_worker_needs(written):
    script = script_of(parse_cluster(written(SLURM)))

    directives = re.findall(r"^#SBATCH (.*)$", script, re.MULTILINE)
    assert "--gres=gpu:1" in directives
    assert "-p gpu" in directives
    assert "--cpus-per-task=8" in directives
    assert "--mem=30G" in directives
    assert "-t 04:00:00" in directives
    command = shlex.split(script.splitlines()[-1])
    assert command[:6] == ["apptainer", "exec", "--nv", "image.sif", "python", "-m"]
    assert option(command, "--resources") == "GPU=1"
    # Of several the last counts: one computes, one is read, one is written.
    assert option(command, "--nthreads") == "3"
    assert "--no-nanny" not in command
    prologue = re.findall(r"^export (\w+)=(.*)$", script, re.MULTILINE)
    exported = {name: shlex.split(value)[0] for name, value in prologue}
    threads = ast.literal_eval(exported["DASK_DISTRIBUTED__NANNY__ENVIRON"])
    assert threads["OMP_NUM_THREADS"] == "8"
    assert exported["DASK_DISTRIBUTED__WORKER__DAEMON"] == "False"
    assert script.index("module load apptainer") < script.index("apptainer exec")


def option(command, name):
    places = [place for place, word in enumerate(command) if word == name]
    return command[places[-1] + 1]


@pytest.mark.parametrize(("queue", "directive"), [("pbs", "#PBS -l"), ("lsf", "#BSUB -n 4")])
def test_other_batch_systems_get_their_own_directives(queue, directive):
    options = {"cores": 4, "memory": "16GB"}
    script = script_of(QueueSpec(queue, jobs=1, gpus=0, options=options))
    assert directive in script
    assert "--resources" not in script.splitlines()[-1]


def test_options_that_the_batch_system_does_not_know_are_a_usage_error():
    options = {"cores": 4, "memory": "16GB", "colour": "red"}
    with pytest.raises(UsageError, match="dask-jobqueue does not take them"):
        script_of(QueueSpec("slurm", jobs=1, gpus=0, options=options))
