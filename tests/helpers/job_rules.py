"""What Kubernetes refuses of a Job beyond its schema: the rules of pkg/apis/batch/validation (v1.33), in sentences.

In: a Job as a dict, with the fields that a file of `deploy/` may use. Out: a sentence for each violated rule. They are
written anew from the rules, for the fields of our files; a Job that passes may still break a rule of another field.
"""

import re
from collections.abc import Iterator
from typing import Any

Json = dict[str, Any]
SOFT_LIMIT = 100_000  # completions beyond it need stricter bounds
LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")


def violations(job: Json) -> list[str]:
    """The rules that this Job breaks."""
    spec = job["spec"]
    return [*_name(job), *_counts(spec), *_indexes(spec), *_failure_policy(spec), *_pod(spec["template"]["spec"])]


def _name(job: Json) -> Iterator[str]:
    last = max(job["spec"].get("completions", 1) - 1, 0)
    longest = f"{job['metadata']['name']}-{last}"  # the host name of the last index
    if not LABEL.fullmatch(longest) or len(longest) > 63:
        yield f"metadata.name: {longest} is no label of at most 63 characters"


def _counts(spec: Json) -> Iterator[str]:
    names = ("parallelism", "completions", "backoffLimit", "backoffLimitPerIndex", "maxFailedIndexes")
    for name in (*names, "activeDeadlineSeconds", "ttlSecondsAfterFinished"):
        if spec.get(name, 0) < 0:
            yield f"{name}: below zero"
    if "maxFailedIndexes" in spec and "backoffLimitPerIndex" not in spec:
        yield "backoffLimitPerIndex: required where maxFailedIndexes is given"


def _indexes(spec: Json) -> Iterator[str]:
    if spec.get("completionMode", "NonIndexed") != "Indexed":
        for name in ("backoffLimitPerIndex", "maxFailedIndexes", "successPolicy"):
            if name in spec:
                yield f"{name}: only where completionMode is Indexed"
        return
    if "completions" not in spec:
        yield "completions: required where completionMode is Indexed"
        return
    completions, parallelism, failed = (
        spec["completions"],
        spec.get("parallelism", 1),
        spec.get("maxFailedIndexes"),
    )
    if parallelism > SOFT_LIMIT:
        yield f"parallelism: more than {SOFT_LIMIT}"
    if failed is not None and failed > completions:
        yield "maxFailedIndexes: more than completions"
    if "backoffLimitPerIndex" in spec and completions > SOFT_LIMIT:
        if failed is None:
            yield f"maxFailedIndexes: required for more than {SOFT_LIMIT} completions"
        if max(parallelism, failed or 0) > SOFT_LIMIT // 10:
            yield f"parallelism, maxFailedIndexes: more than {SOFT_LIMIT // 10} where completions are over {SOFT_LIMIT}"


def _failure_policy(spec: Json) -> Iterator[str]:
    policy, pod = spec.get("podFailurePolicy"), spec["template"]["spec"]
    if pod.get("restartPolicy") not in ("Never", "OnFailure"):
        yield "restartPolicy: neither Never nor OnFailure"
    if "backoffLimitPerIndex" in spec and pod.get("restartPolicy") != "Never":
        yield "restartPolicy: not Never where backoffLimitPerIndex is given"
    if policy is None:
        return
    if pod.get("restartPolicy") != "Never":
        yield "restartPolicy: not Never where podFailurePolicy is given"
    if spec.get("podReplacementPolicy", "Failed") != "Failed":
        yield "podReplacementPolicy: only Failed where podFailurePolicy is given"
    if len(policy["rules"]) > 20:
        yield "podFailurePolicy.rules: more than 20"
    for number, rule in enumerate(policy["rules"]):
        for problem in _rule(rule, spec):
            yield f"podFailurePolicy.rules[{number}].{problem}"


def _rule(rule: Json, spec: Json) -> Iterator[str]:
    if rule["action"] not in ("FailJob", "FailIndex", "Ignore", "Count"):
        yield "action: unknown"
    if rule["action"] == "FailIndex" and "backoffLimitPerIndex" not in spec:
        yield "action: FailIndex needs backoffLimitPerIndex"
    if ("onExitCodes" in rule) == ("onPodConditions" in rule):
        yield "onExitCodes, onPodConditions: not exactly one of them"
    for pattern in rule.get("onPodConditions", []):
        if pattern.get("status") not in ("True", "False", "Unknown"):
            yield "onPodConditions.status: neither True, False nor Unknown"
    if "onExitCodes" in rule:
        yield from _exit_codes(rule["onExitCodes"], spec["template"]["spec"])


def _exit_codes(codes: Json, pod: Json) -> Iterator[str]:
    names = [one["name"] for one in [*pod["containers"], *pod.get("initContainers", [])]]
    if codes.get("containerName", names[0]) not in names:
        yield "onExitCodes.containerName: no container has this name"
    if codes["operator"] not in ("In", "NotIn"):
        yield "onExitCodes.operator: neither In nor NotIn"
    if not 1 <= len(codes["values"]) <= 255:
        yield "onExitCodes.values: not 1 to 255 of them"
    if codes["values"] != sorted(set(codes["values"])):
        yield "onExitCodes.values: not ordered, or twice"
    if codes["operator"] == "In" and 0 in codes["values"]:
        yield "onExitCodes.values: 0 is no failure"


def _pod(pod: Json) -> Iterator[str]:
    for container in pod["containers"]:
        limits, requests = (container.get("resources", {}).get(name, {}) for name in ("limits", "requests"))
        for name in {name for name in limits | requests if "/" in name}:  # not of Kubernetes itself
            if name not in limits or requests.get(name, limits[name]) != limits[name]:
                yield f"resources: {name} is not limited to what is requested"
            elif not limits[name].isdigit():
                yield f"resources: {name} is not a whole number"
        for one in container.get("env", []):
            if "value" in one and "valueFrom" in one:
                yield f"env: {one['name']} has value and valueFrom"
    for one in pod.get("tolerations", []):
        if one.get("operator") == "Exists" and "value" in one:
            yield "tolerations: a value where the operator is Exists"
