"""What deploy/ says, as far as it can be checked without running it. Prints, for each place that starts a gateway, its
environment and its settings, which scripts/test-deploy.sh gives to `faregate check`.

    check.py FOLDER         checks, and writes what each place starts with into FOLDER
    check.py --queries      the queries of the dashboards, one a line
"""

import json
import re
import sys
from pathlib import Path

import kubernetes_validate
import yaml

DEPLOY = Path("deploy")
# What stands in a secret's place.
SECRETS = {"ledger-url": "redis://127.0.0.1:6379", "store-url": "postgres://faregate@127.0.0.1:5432/faregate"}
OPTIONAL = {"UPSTREAM_API_KEY": "k", "STRIPE_SECRET_KEY": "sk_test_1", "STRIPE_WEBHOOK_SECRETS": "whsec_1"}


def check(fact, what):
    if not fact:
        sys.exit(f"{what}")


def compose(folder):
    path = DEPLOY / "compose.yaml"
    text = path.read_text()
    head = "".join(line for line in text.splitlines(True) if line.startswith("#"))
    for name in set(re.findall(r"\$\{(\w+)", text)):
        check(name in head, f"{path}: {name} is not told of in its head")
    made = yaml.safe_load(text)
    for name, service in made["services"].items():
        where = f"{path}: {name}"
        for other in service.get("depends_on", []):
            check(other in made["services"], f"{where} waits for {other}")
            condition = service["depends_on"][other]["condition"]
            check(condition != "service_healthy" or "healthcheck" in made["services"][other], f"{where}: {other} has no check")
        for network in service.get("networks", []):
            check(network in made["networks"], f"{where} is in {network}")
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            there = (DEPLOY / source).exists() if source.startswith(".") else source in made["volumes"]
            check(there, f"{where} mounts {source}")
        for port in service.get("ports", []):
            check(port.startswith("127.0.0.1:"), f"{where} is open to others: {port}")
        check("image" in service and not service["image"].endswith(":latest"), f"{where}: which image?")
    fill = lambda value: re.sub(r"\$\{(\w+)[^}]*\}", lambda one: OPTIONAL.get(one[1], "http://127.0.0.1:9" if "URL" in one[1] else "s" * 32), value)
    write(folder, "compose", {name: fill(value) for name, value in made["services"]["gateway"]["environment"].items()}, "")
    prometheus = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
    target = prometheus["scrape_configs"][0]["static_configs"][0]["targets"][0]
    check(target.split(":")[0] in made["services"], f"Prometheus asks {target}")
    source = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"][0]
    check(source["url"].split("//")[1].split(":")[0] in made["services"], f"Grafana asks {source['url']}")
    board = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/faregate.yml").read_text())["providers"][0]
    mounts = [volume.split(":")[1] for volume in made["services"]["grafana"]["volumes"]]
    check(board["options"]["path"] in mounts, "Grafana's dashboards are mounted elsewhere")


def kubernetes(folder):
    path = DEPLOY / "kubernetes/sidecar.yaml"
    objects = [one for one in yaml.safe_load_all(path.read_text()) if one]
    for one in objects:
        kubernetes_validate.validate(one, kubernetes_validate.latest_version(), strict=True)
    kinds = {one["kind"]: one for one in objects}
    pod = kinds["Deployment"]["spec"]["template"]
    gateway = next(one for one in pod["spec"]["containers"] if one["name"] == "faregate")
    ports = {port["name"] for port in gateway["ports"]}
    for probe in ("readinessProbe", "livenessProbe", "startupProbe"):
        check(gateway[probe]["httpGet"]["port"] in ports, f"{path}: {probe} asks a port that is none")
    check(kinds["Service"]["spec"]["ports"][0]["targetPort"] in ports, f"{path}: the service leads nowhere")
    labels = pod["metadata"]["labels"].items()
    for kind, selector in [("Service", "selector"), ("PodDisruptionBudget", "selector"), ("NetworkPolicy", "podSelector")]:
        wanted = kinds[kind]["spec"][selector]
        check((wanted.get("matchLabels") or wanted).items() <= labels, f"{path}: {kind} selects other pods")
    volumes = {volume["name"] for volume in pod["spec"]["volumes"]}
    check({mount["name"] for mount in gateway["volumeMounts"]} <= volumes, f"{path}: a mount without its volume")
    environment, created = {}, "".join(line for line in path.read_text().splitlines(True) if line.startswith("#"))
    for one in gateway["env"]:
        key = one["valueFrom"]["secretKeyRef"]["key"]
        check(f"--from-literal={key}=" in created, f"{path}: nothing tells to make the secret {key}")
        environment[one["name"]] = SECRETS.get(key, "whsec_1" if "webhook" in key else "sk_test_1" if "stripe" in key else "s" * 32)
    write(folder, "kubernetes", environment, kinds["ConfigMap"]["data"]["faregate.toml"])
    drain = int(re.search(r"drain_timeout_ms = (\d+)", kinds["ConfigMap"]["data"]["faregate.toml"])[1]) / 1000
    stop = int(gateway["lifecycle"]["preStop"]["exec"]["command"][1])
    check(pod["spec"]["terminationGracePeriodSeconds"] > drain + stop + 10, f"{path}: it is killed before it has drained")


def write(folder, name, environment, settings):
    place = Path(folder) / name
    place.mkdir()
    (place / "env").write_text("".join(f"{key}={value}\n" for key, value in environment.items()))
    (place / "settings.toml").write_text(settings)


def queries():
    for path in sorted((DEPLOY / "grafana/dashboards").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", []):
                print(target["expr"].replace("$__rate_interval", "1m"))


if sys.argv[1] == "--queries":
    queries()
else:
    compose(sys.argv[1])
    kubernetes(sys.argv[1])
