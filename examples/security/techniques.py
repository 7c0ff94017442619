"""Reads MITRE ATT&CK out of the MISP galaxy into entities: techniques and mitigations. Knows no split and no file."""

from __future__ import annotations

import html
import json
import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from entities import Entity, Passage, Question, Section, collapse, lead, listed, variant

_CITATION = re.compile(r"\(Citation:[^()]*(?:\([^()]*\)[^()]*)*\)")
_LINK = re.compile(r"\[([^\]]+)\]\((?:https?:)?/[^)\s]*\)")
_TAG = re.compile(r"</?(?:code|br)\s*/?>")

TECHNIQUES = 12  # how many of a mitigation's techniques are named: some counter a hundred

Links = dict[str, list[str]]  # from a technique's uuid, or a mitigation's, to names of what it is linked with


def techniques(patterns: bytes, mitigations: bytes, components: bytes) -> list[Entity]:
    """Return ATT&CK's techniques, then its mitigations, by id, from the galaxy's three cluster files."""
    live = {value["uuid"]: value for value in _values(patterns) if _is_live(value)}
    measures = {v["uuid"]: v for v in _values(mitigations) if v["meta"]["external_id"].startswith("M")}
    signs = {value["uuid"]: value for value in _values(components)}
    stopped_by, stops = _links(measures, "mitigates", live)
    seen_by, _ = _links(signs, "detects", live)
    found = [_technique(v, live, stopped_by[u], [n.partition(" (")[0] for n in seen_by[u]]) for u, v in live.items()]
    found += [_mitigation(value, stops[uuid]) for uuid, value in measures.items()]
    return sorted(found, key=lambda entity: (entity.id[0] == "M", entity.id))


def clean(description: str) -> list[str]:
    """Return a description's paragraphs without citations, link targets and tags; list items stay on their lines."""
    text = html.unescape(_TAG.sub("", _LINK.sub(r"\1", _CITATION.sub(" ", description))))
    text = text.replace(".This mitigation", ". This mitigation")  # a space that dozens of entries lack
    found: list[str] = []
    for block in re.split(r"\n\s*\n", text.replace("\r", "")):
        lines = [line for line in map(collapse, block.split("\n")) if line]
        is_list = bool(lines) and lines[0].startswith("- ")
        if is_list and found:
            found[-1] += "\n" + "\n".join(lines)
        elif lines:
            found.append("\n".join(lines))
    return list(dict.fromkeys(found))  # some entries say a paragraph twice


def _values(cluster: bytes) -> list[dict[str, Any]]:
    values: list[dict[str, Any]] = json.loads(cluster)["values"]
    return values


def _is_live(value: dict[str, Any]) -> bool:
    revoked = any(link["type"] == "revoked-by" for link in value.get("related", []))
    return not revoked and "deprecated" not in value["description"][:200].lower()


def _name(value: dict[str, Any]) -> str:
    """Return `PowerShell` of `PowerShell - T1059.001`."""
    name: str = value["value"]
    return name.removesuffix(f" - {value['meta'].get('external_id')}")


def _title(value: dict[str, Any]) -> str:
    return f"{_name(value)} ({value['meta'].get('external_id', '')})"


def _links(
    origins: dict[str, dict[str, Any]], kind: str, targets: dict[str, dict[str, Any]]
) -> tuple[defaultdict[str, list[str]], defaultdict[str, list[str]]]:
    """Return titles of the origins by target and titles of the targets by origin, over links of one kind, sorted."""
    to, back = defaultdict[str, set[str]](set), defaultdict[str, set[str]](set)
    for uuid, value in origins.items():
        for link in value.get("related", []):
            if link["type"] == kind and link["dest-uuid"] in targets:
                to[link["dest-uuid"]].add(_title(value))
                back[uuid].add(_title(targets[link["dest-uuid"]]))
    return _sorted(to), _sorted(back)


def _sorted(sets: dict[str, set[str]]) -> defaultdict[str, list[str]]:
    return defaultdict(list, {key: sorted(values) for key, values in sets.items()})


def _tactics(value: dict[str, Any]) -> list[str]:
    """Return `Defense Evasion` of `attack-Windows:defense-evasion`, each once."""
    phases = [phase.partition(":")[2].replace("-", " ").title() for phase in value["meta"].get("kill_chain", [])]
    return [phase.replace(" And ", " and ") for phase in dict.fromkeys(phases)]


def _technique(
    value: dict[str, Any], live: dict[str, dict[str, Any]], mitigations: list[str], signs: list[str]
) -> Entity:
    """Return the entity of one technique."""
    me, name = value["meta"]["external_id"], _name(value)
    body = clean(value["description"])
    parents = [live[link["dest-uuid"]] for link in value.get("related", []) if link["dest-uuid"] in live]
    parents = [parent for parent in parents if "." in me]
    tactics = _tactics(value)
    intro = f"{name} ({me}) is " + (f"a sub-technique of {_title(parents[0])}" if parents else "a technique")
    intro += f" in MITRE ATT&CK. An adversary uses it for {listed(tactics)}." if tactics else " in MITRE ATT&CK."
    if platforms := [platform for platform in value["meta"].get("mitre_platforms", []) if platform != "PRE"]:
        intro += f" It applies to {listed(platforms)}."
    shows, stops = f"Signs of {me} show in: {', '.join(signs)}.", f"{me} is mitigated by {listed(mitigations)}."
    sections = (
        Section("", (Passage(intro, mentions=True), *map(Passage, body))),
        Section("Detection", (Passage(shows, mentions=True),) if signs else ()),
        Section("Mitigations", (Passage(stops, mentions=True),) if mitigations else ()),
    )
    what = lead(body[0], words=80)
    questions = _technique_questions(me, name, what, intro, tactics, mitigations, signs)
    area = "mobile " if any(phase.startswith("mobile") for phase in value["meta"].get("kill_chain", [])) else ""
    kin = (*(area + tactic for tactic in tactics), *(parent["meta"]["external_id"] for parent in parents))
    return Entity(me, name, tuple(s for s in sections if s.passages), tuple(questions), kin)


def _technique_questions(
    me: str, name: str, what: str, intro: str, tactics: list[str], mitigations: list[str], signs: list[str]
) -> Iterable[Question]:
    """Yield the questions that the technique's fields answer."""
    ask = variant(me, "what", f"Explain the ATT&CK technique {me} ({name}).", f"What is {me} in MITRE ATT&CK?")
    yield Question("what", ask, intro, what)
    yield Question("which", f"Which ATT&CK technique is this? {what}", "This is", f"{me}: {name}.")
    if tactics:
        ask = f"Which tactics does the ATT&CK technique {me} ({name}) serve?"
        opening, served = f"Adversaries use {me} ({name}) for", tuple(tactics)
        yield Question("tactic", ask, opening, f"{listed(tactics)}.", items=served, common=True)
    if mitigations:
        ask = variant(me, "mitigation", f"How do defenders mitigate {me} ({name})?", f"What mitigates {me} ({name})?")
        tell = f"{listed(mitigations)}."
        yield Question("mitigation", ask, f"ATT&CK lists for {me}:", tell, items=tuple(mitigations))
    if signs:
        ask = f"Which data helps to detect {me} ({name})?"
        yield Question("detection", ask, f"Watch for signs of {me} in:", f"{', '.join(signs)}.", items=tuple(signs))


def _mitigation(value: dict[str, Any], stops: list[str]) -> Entity:
    """Return the entity of one mitigation."""
    me, name = value["meta"]["external_id"], _name(value)
    body = clean(value["description"])
    opening = f"{name} ({me}) counters"
    against = f"{len(stops)} techniques, among them {listed(stops[:TECHNIQUES])}."
    sections = [Section("", tuple(map(Passage, body)))]
    what = lead(body[0], words=80)
    ask = variant(me, "what", f"What is the ATT&CK mitigation {me}?", f"Explain the ATT&CK mitigation {name} ({me}).")
    questions = [
        Question("what", ask, f"{me} is {name}.", what),
        Question("which", f"Which ATT&CK mitigation is this? {what}", "This is", f"{me}: {name}."),
    ]
    if stops:
        sections.append(Section("Techniques addressed", (Passage(f"{opening} {against}", mentions=True),)))
        ask = f"Which techniques does {me} ({name}) counter?"
        questions.append(Question("counters", ask, opening, against, items=tuple(stops)))
    return Entity(me, name, tuple(sections), tuple(questions), ("ATT&CK's mitigations",))
