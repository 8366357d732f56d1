"""Checks what `leno install` prints and what is in this folder with other people's tools.

Usage: verify.py LENO, where LENO is the program. Needs the packages in requirements.txt, which hold Helm itself as a
library, the schemas of Kubernetes, and the linter for Dockerfiles.

- The chart, rendered by Helm, gives the objects that `leno install` prints, with the same settings.
- Each is what Kubernetes' own schema says of its kind, and has no field that it does not know.
- Helm finds nothing wrong with the chart, and its schema refuses what `leno install` refuses.
- The linter finds nothing wrong with the Dockerfiles.
"""

import glob
import json
import os
import subprocess
import sys

import kubernetes_validate
import yaml
from helm_python import HelmError
from helm_python.chart import Chart, lint

FOLDER = os.path.dirname(os.path.abspath(__file__))
CHART = os.path.join(FOLDER, "helm", "leno")
# The version of Kubernetes that `leno install` needs at least, and the newest there are schemas for.
VERSIONS = ["1.30", "1.34"]
SETTINGS = [
    {},
    {"gatewayApi.install": True, "storage.className": "fast", "sidecar.native": False},
    {"ca.secret": "mesh-ca", "replicas": 3, "image.prefix": "r.example/a", "image.tag": "v1"},
    {"crds.install": False, "webhook.failurePolicy": "Ignore", "trustDomain": "shop.example"},
]
WRONG = [
    ("replicas", 0),
    ("replicas", 3),
    ("webhook.failurePolicy", "Maybe"),
    ("image.tags", "v1"),
    ("trustDomain", "Shop Mesh"),
]


def nested(settings):
    values = {}
    for path, value in settings.items():
        *folders, name = path.split(".")
        place = values
        for folder in folders:
            place = place.setdefault(folder, {})
        place[name] = value
    return values


def printed(leno, settings):
    flags = [f"--set={path}={json.dumps(value).strip(chr(34))}" for path, value in settings.items()]
    return subprocess.run([leno, "install", "-o", "json", *flags], capture_output=True, text=True)


def rendered(settings):
    with Chart.load(CHART) as chart:
        chart.validate_schema(nested(settings))
        files = chart.render(nested(settings), name="leno", namespace="leno-system")
    texts = [text for name, text in files.items() if name.endswith(".yaml")]
    return [found for text in texts for found in yaml.safe_load_all(text) if found]


def name(manifest):
    return (manifest["kind"], manifest["metadata"]["name"])


def without_null(value):
    if isinstance(value, dict):
        return {key: without_null(field) for key, field in value.items() if field is not None}
    return [without_null(item) for item in value] if isinstance(value, list) else value


def compare(leno, settings):
    said = printed(leno, settings)
    assert said.returncode == 0, said.stderr
    ours = {name(manifest): manifest for manifest in json.loads(said.stdout)["items"]}
    # Helm makes the namespace itself: --create-namespace.
    del ours["Namespace", "leno-system"]
    helms = {name(manifest): without_null(manifest) for manifest in rendered(settings)}
    assert ours.keys() == helms.keys(), f"{settings}: {ours.keys() ^ helms.keys()}"
    for key, manifest in ours.items():
        assert manifest == helms[key], f"{settings}: {key}:\n{manifest}\n{helms[key]}"
        for version in VERSIONS:
            kubernetes_validate.validate(manifest, version, strict=True)
    return len(ours)


def main():
    leno = sys.argv[1]
    for settings in SETTINGS:
        print(compare(leno, settings), "objects are the same, and valid, with", settings)
    for path, value in WRONG:
        assert printed(leno, {path: value}).returncode != 0, (path, value)
        try:
            rendered({path: value})
        except HelmError:
            continue
        raise AssertionError(f"Helm takes {path}={value}")
    print("both refuse", [f"{path}={value}" for path, value in WRONG])
    found = lint(CHART, namespace="leno-system", strict=True)
    worse = [message for message in found["messages"] if message["severity"] > 1]
    assert not worse and not found["errors"], found
    print("Helm finds nothing wrong with the chart")
    files = sorted(glob.glob(os.path.join(FOLDER, "docker", "*.Dockerfile")))
    assert files
    hadolint = os.path.join(os.path.dirname(sys.executable), "hadolint")
    subprocess.run([hadolint, *files], check=True)
    print("the linter finds nothing wrong with", [os.path.basename(file) for file in files])


if __name__ == "__main__":
    main()
