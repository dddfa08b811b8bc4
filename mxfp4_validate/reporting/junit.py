"""The judgement as JUnit XML: a test case a gate, and one for every kernel item that failed."""

from __future__ import annotations

from xml.etree import ElementTree as ET

from mxfp4_validate.reporting.clean import clean
from mxfp4_validate.reporting.gates import GO_ON, Gate, Judgement
from mxfp4_validate.reporting.inputs import Inputs

#: What a reader of JUnit sees of each outcome; undecided is skipped, and so is GO ON, so that they are never green.
_ELEMENTS = {"FAIL": "failure", "INVALID": "error", "INCOMPLETE": "error", "INCONCLUSIVE": "skipped", GO_ON: "skipped"}


def render(inputs: Inputs, judgement: Judgement) -> str:
    """An XML document with one suite."""
    suite = ET.Element("testsuite", name="mxfp4-validate")
    cases = [_case(suite, f"mxfp4.{gate.wing}", gate) for gate in judgement.gates]
    items = [r for record in inputs.kernels for r in record.results if r.outcome not in ("passed", "unavailable")]
    for result in items:
        case = ET.SubElement(
            suite, "testcase", classname=f"mxfp4.{clean(result.backend)}", name=clean(result.item_id), time=f"{result.seconds:.3f}"
        )
        ET.SubElement(case, "failure", message=clean(result.message.splitlines()[0] if result.message else result.outcome)).text = clean(
            result.message
        )
    counts = {kind: sum(case.find(kind) is not None for case in cases) for kind in ("failure", "error", "skipped")}
    suite.set("tests", str(len(suite)))
    suite.set("failures", str(counts["failure"] + len(items)))
    suite.set("errors", str(counts["error"]))
    suite.set("skipped", str(counts["skipped"]))
    root = ET.Element("testsuites")
    ET.SubElement(root, "properties").append(ET.Element("property", name="sentence", value=clean(judgement.sentence)))
    root.append(suite)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _case(suite: ET.Element, classname: str, gate: Gate) -> ET.Element:
    case = ET.SubElement(suite, "testcase", classname=classname, name=clean(gate.name))
    rows = {"outcome": gate.outcome, "measured": gate.measured, "lower": gate.lower, "upper": gate.upper, "limit": gate.limit}
    properties = ET.SubElement(case, "properties")
    for name, value in rows.items():
        ET.SubElement(properties, "property", name=name, value=clean(value))
    if gate.outcome in _ELEMENTS:
        text = clean("\n".join(gate.reasons) or gate.needs)
        ET.SubElement(case, _ELEMENTS[gate.outcome], message=clean(f"{gate.outcome}: {gate.measured}; {gate.needs}")).text = text
    return case
