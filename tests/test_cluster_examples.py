"""The files for clusters: their syntax, the names in them, and the commands that they run."""

from __future__ import annotations

import itertools
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import typer
import yaml

from pocketclip.cli.main import build

FOLDER = Path(__file__).parents[1] / "examples" / "cluster"
SCRIPTS = sorted(FOLDER.glob("*.sbatch"))
MANIFESTS = sorted(FOLDER.glob("*.yaml"))
API_VERSIONS = {
    "Service": "v1",
    "PersistentVolumeClaim": "v1",
    "Job": "batch/v1",
    "RayJob": "ray.io/v1",
}
START = re.compile(r"(?:-m pocketclip\.train|(?<![\w./-])pocketclip (?=[a-z]))(.*)")


def documents(path):
    return list(yaml.safe_load_all(path.read_text("utf-8")))


def texts(node):
    """Yield all texts of a manifest."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, (dict, list)):
        for value in node.values() if isinstance(node, dict) else node:
            yield from texts(value)


def commands(path):
    """Return the arguments of each pocketclip command in a file, verb first."""
    whole = path.read_text("utf-8")
    parts = [whole] if path.suffix == ".sbatch" else [t for d in documents(path) for t in texts(d)]
    if path.suffix == ".yaml":  # also those in comments
        parts.append("\n".join(line[1:] for line in whole.splitlines() if line.startswith("#")))
    found = []
    for part in parts:
        code = part if part != whole else re.sub(r"^\s*#.*$", "", part, flags=re.MULTILINE)
        for line in code.replace("\\\n", " ").splitlines():
            if match := START.search(line):
                words = shlex.split(match[1].removesuffix("&"), comments=True)
                found.append(["train", *words] if "pocketclip.train" in match[0] else words)
    return found


@pytest.mark.parametrize("path", [*SCRIPTS, *MANIFESTS], ids=lambda path: path.name)
def test_the_command_line_accepts_every_command(path):
    app = typer.main.get_command(build())
    found = commands(path)
    assert found
    for verb, *words in found:
        context = app.commands[verb].make_context(verb, list(words))  # parses, and runs nothing
        assert context.params["out"] is not None
        if verb != "train":
            assert context.params["ray"] == "auto"


def test_each_verb_that_goes_onto_a_cluster_is_there():
    assert {words[0] for path in (*SCRIPTS, *MANIFESTS) for words in commands(path)} == {
        "train", "reinforce", "embed",
    }  # fmt: skip


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_the_scripts_are_bash(path):
    done = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    if shutil.which("shellcheck"):
        checked = subprocess.run(
            ["shellcheck", "--shell=bash", str(path)], capture_output=True, text=True, check=False
        )
        assert checked.returncode == 0, checked.stdout
    text = path.read_text("utf-8")
    # Slurm reads options up to the first command only.
    first = re.search(r"^[^#\n]", text, re.MULTILINE)
    assert first is not None
    assert "#SBATCH" not in text[first.start() :]
    assert {"requeue", "nodes", "time"} <= set(re.findall(r"^#SBATCH --([\w-]+)", text, re.M))


def test_a_stopped_training_is_queued_again(tmp_path):
    """The script itself, with stand-ins for Slurm's programs."""
    for name, body in {
        "scontrol": 'echo "scontrol $*" >> told; [ "$1" = show ] && echo node-1 || true',
        "srun": 'echo "srun $*" >> told; trap "echo stopped >> told; exit 130" TERM; '
        "touch running; while :; do sleep 0.05; done",
    }.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environ = {
        "PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_NODELIST": "node-[1-2]",
    }  # fmt: skip
    process = subprocess.Popen(["bash", str(FOLDER / "train.sbatch")], cwd=tmp_path, env=environ)
    try:
        while not (tmp_path / "running").exists():
            assert process.poll() is None
        process.terminate()
        assert process.wait(60) == 0
    finally:
        process.kill()
    told = (tmp_path / "told").read_text().splitlines()
    assert "--rdzv-endpoint node-1:29400" in told[1]
    assert told[2:] == ["stopped", "scontrol requeue 7"]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_the_manifests_have_the_form_of_their_kinds(path):
    names = set()
    for document in documents(path):
        assert API_VERSIONS[document["kind"]] == document["apiVersion"]
        assert document.keys() <= {"apiVersion", "kind", "metadata", "spec"}
        name = document["metadata"]["name"]
        assert re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", name)
        assert (document["kind"], name) not in names
        names.add((document["kind"], name))
    for pod in pods(path):
        assert pod["containers"]
        volumes = {volume["name"] for volume in pod.get("volumes", ())}
        for container in pod["containers"]:
            assert {"name", "image", "resources"} <= container.keys()
            mounted = {mount["name"] for mount in container.get("volumeMounts", ())}
            assert mounted <= volumes
            for entry in container.get("env", ()):
                # Kubernetes refuses a number where a text belongs.
                assert isinstance(entry.get("value", ""), str)


def pods(path):
    """Return the specs of all pods of a manifest."""
    found = []
    for document in documents(path):
        spec = document["spec"]
        if document["kind"] == "Job":
            found.append(spec["template"]["spec"])
        elif document["kind"] == "RayJob":
            cluster = spec["rayClusterSpec"]
            groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
            found += [group["template"]["spec"] for group in groups]
    return found


def test_the_names_in_the_training_refer_to_each_other():
    by_kind = {one["kind"]: one for one in documents(FOLDER / "train.yaml")}
    service, job = by_kind["Service"], by_kind["Job"]
    template = job["spec"]["template"]
    pod, labels = template["spec"], template["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    assert service["spec"]["clusterIP"] == "None"
    assert pod["subdomain"] == service["metadata"]["name"]
    [port] = service["spec"]["ports"]
    [container] = pod["containers"]
    assert {"containerPort": port["port"]} in container["ports"]
    # Pod 0 of an Indexed Job is named so in its subdomain.
    host = f"{job['metadata']['name']}-0.{service['metadata']['name']}:{port['port']}"
    words = shlex.split(container["args"][0].replace("\\\n", " "))
    options = dict(itertools.pairwise(words))
    assert options["--rdzv-endpoint"] == host
    spec = job["spec"]
    assert int(options["--nnodes"]) == spec["completions"] == spec["parallelism"]
    assert int(options["--nproc-per-node"]) == container["resources"]["limits"]["nvidia.com/gpu"]
    assert spec["completionMode"] == "Indexed"
    assert pod["restartPolicy"] == "Never"  # podFailurePolicy asks for it
    claims = {
        volume["persistentVolumeClaim"]["claimName"]
        for volume in pod["volumes"]
        if "persistentVolumeClaim" in volume
    }
    assert claims == {by_kind["PersistentVolumeClaim"]["metadata"]["name"]}


def test_the_actors_of_the_cluster_fit_its_nodes():
    [job] = documents(FOLDER / "reinforce.yaml")
    [group] = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    app = typer.main.get_command(build())
    for verb, *words in commands(FOLDER / "reinforce.yaml"):
        asked = app.commands[verb].make_context(verb, list(words)).params
        per_node = min(
            int(limits["cpu"]) // asked["cpus_per_actor"],
            limits["nvidia.com/gpu"] // asked["gpus_per_actor"],
        )
        assert asked["max_actors"] == per_node * group["maxReplicas"]
    assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
