"""Reads CWE's XML into entities: the text and the questions of each weakness. Knows no split and no file."""

from __future__ import annotations

from collections.abc import Iterable
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from entities import Entity, Passage, Question, Section, lead, listed, variant
from xmltext import code, flow, passages, plain

ANSWER_ITEMS = 4
ITEM_WORDS = 50


def weaknesses(xml: bytes) -> list[Entity]:
    """Return every weakness that is neither deprecated nor obsolete, by number."""
    root = ElementTree.fromstring(xml)
    for node in root.iter():
        node.tag = node.tag.rpartition("}")[2]
    nodes = sorted(root.iterfind("Weaknesses/Weakness"), key=lambda node: int(node.attrib["ID"]))
    names = {node.attrib["ID"]: plain(node.attrib["Name"]) for node in nodes}
    return [_entity(node, names) for node in nodes if node.get("Status") not in ("Deprecated", "Obsolete")]


def _entity(node: Element, names: dict[str, str]) -> Entity:
    """Return the entity of one weakness."""
    number = node.attrib["ID"]
    summary = flow(node.find("Description"))
    sections = (
        Section("", (Passage(summary), *map(Passage, passages(node.find("Extended_Description"))))),
        Section("", (Passage(_facts(node, names), mentions=True),)),
        Section("Background", tuple(map(Passage, _each(node, "Background_Details/Background_Detail")))),
        Section("Consequences", tuple(_consequences(node)), bullets=True),
        Section("Detection", tuple(_detections(node)), bullets=True),
        Section("Mitigations", tuple(_mitigations(node)), bullets=True),
        Section("Examples", tuple(_examples(node))),
        Section("Known vulnerabilities", tuple(_observed(node)), bullets=True),
    )
    questions = tuple(_questions(f"CWE-{number}", names[number], summary, node, names))
    kin = tuple(parent.partition(" ")[0] for parent in _relatives(node, "ChildOf", names))
    return Entity(f"CWE-{number}", names[number], tuple(s for s in sections if s.passages), questions, kin)


def _each(node: Element, path: str) -> list[str]:
    return [text for found in node.iterfind(path) if (text := flow(found))]


def _values(node: Element, tag: str) -> list[str]:
    """Return the distinct texts of a node's children with this tag, in order."""
    return list(dict.fromkeys(plain(child.text or "") for child in node.iterfind(tag)))


def _relatives(node: Element, nature: str, names: dict[str, str]) -> list[str]:
    """Return the weaknesses that this one relates to in the research view, as `CWE-74 (Injection)`."""
    path = f"Related_Weaknesses/Related_Weakness[@Nature='{nature}'][@View_ID='1000']"
    numbers = [found.attrib["CWE_ID"] for found in node.iterfind(path)]
    return [f"CWE-{number} ({names[number]})" for number in dict.fromkeys(numbers) if number in names]


def _facts(node: Element, names: dict[str, str]) -> str:
    """Return in whole sentences what the entry keeps in short fields: parents, platforms, phases, other names."""
    me = f"CWE-{node.attrib['ID']}"
    where = [found.get("Name") or found.get("Class") or "" for found in node.iterfind("Applicable_Platforms/*")]
    where = [place for place in dict.fromkeys(where) if place and not place.startswith("Not ")]
    phases = [phase.lower() for phase in _values(node, "Modes_Of_Introduction/Introduction/Phase")]
    terms = _values(node, "Alternate_Terms/Alternate_Term/Term")
    parents, next_ones = _relatives(node, "ChildOf", names), _relatives(node, "CanPrecede", names)
    likelihood = node.findtext("Likelihood_Of_Exploit", "").lower()
    sentences = [
        f"{me} is a kind of {listed(parents)}." if parents else f"{me} has no parent: it is one of CWE's roots.",
        f"It is also known as {listed(terms)}." if terms else "",
        f"It can lead to {listed(next_ones)}." if next_ones else "",
        f"It applies to: {', '.join(where)}." if where else "",
        f"It is introduced during {listed(phases)}." if phases else "",
        f"The likelihood of exploit is {likelihood}." if likelihood and likelihood != "unknown" else "",
    ]
    return " ".join(filter(None, sentences))


def _consequences(node: Element) -> Iterable[Passage]:
    for found in node.iterfind("Common_Consequences/Consequence"):
        impact = "; ".join(_values(found, "Impact"))
        said = " ".join(filter(None, [f"{impact}." if impact else "", flow(found.find("Note"))]))
        yield Passage(said, ", ".join(_values(found, "Scope")))


def _detections(node: Element) -> Iterable[Passage]:
    for found in node.iterfind("Detection_Methods/Detection_Method"):
        how = flow(found.find("Description"))
        if how and not how.startswith("According to SOAR"):  # a table of product kinds, the same for hundreds
            yield Passage(how, plain(found.findtext("Method", "")))


def _mitigations(node: Element) -> Iterable[Passage]:
    for found in node.iterfind("Potential_Mitigations/Mitigation"):
        label = ", ".join([*_values(found, "Phase"), *_values(found, "Strategy")])
        if how := flow(found.find("Description")):
            yield Passage(how, label)


def _examples(node: Element) -> Iterable[Passage]:
    """Yield each demonstrative example as one passage: its text with the listings between."""
    for found in node.iterfind("Demonstrative_Examples/Demonstrative_Example"):
        parts: list[str] = []
        for part in found:
            if part.tag == "Example_Code":
                language = part.get("Language", "").lower().replace("other", "")
                parts.append(f"```{language}\n{code(part)}\n```")
            elif part.tag in ("Intro_Text", "Body_Text"):
                parts.extend(passages(part))
        yield Passage("\n\n".join(parts))


def _observed(node: Element) -> Iterable[Passage]:
    for found in node.iterfind("Observed_Examples/Observed_Example"):
        if what := flow(found.find("Description")):
            yield Passage(what, plain(found.findtext("Reference", "")))


def _shortened(found: Iterable[Passage]) -> tuple[Passage, ...]:
    """Return the first few passages, each cut to its first sentences."""
    return tuple(Passage(lead(p.body, words=ITEM_WORDS), p.label) for p in list(found)[:ANSWER_ITEMS])


def _questions(me: str, name: str, summary: str, node: Element, names: dict[str, str]) -> Iterable[Question]:
    """Yield the questions that the entry's fields answer."""
    parents = _relatives(node, "ChildOf", names)
    full = f"{me} ({name})"
    kin = f"It is a kind of {listed(parents)}." if parents else ""
    ask = variant(me, "what", f"What is {me}?", f"Explain {me}.")
    yield Question("what", ask, f"{me} is {name}.", summary, closing=kin)
    yield Question("which", f"Which CWE describes this weakness? {summary}", "This is", f"{me}: {name}.")
    if consequences := _shortened(_consequences(node)):
        ask = variant(me, "consequences", f"What can {full} lead to?", f"What are the consequences of {full}?")
        yield Question("consequences", ask, f"The consequences of {me} can be:", passages=consequences, common=True)
    if detections := _shortened(_detections(node)):
        ask = f"How can {full} be detected?"
        yield Question("detection", ask, f"Ways to detect {me}:", passages=detections, common=True)
    if mitigations := _shortened(_mitigations(node)):
        ask = variant(me, "mitigation", f"How do I prevent {full}?", f"How is {full} mitigated?")
        yield Question("mitigation", ask, f"To mitigate {me}:", passages=mitigations)
    if observed := list(_observed(node))[:2]:
        ask = f"Which known vulnerabilities are examples of {full}?"
        yield Question("vulnerability", ask, f"Examples of {me} are:", passages=tuple(observed))
