"""The body of a request: client codes and wall times to XML. Pure; the source is the protocol document of 2009.

`ClientCode` comes first, each followed by its status flag if status is asked, then `StartDate` and `EndDate`.
"""

from __future__ import annotations

from collections.abc import Sequence

import xmltodict

from gateway.callbutton.central_time import WallRange
from gateway.model import CLIENT_CODE, EVERY_CLIENT

DECLARATION = '<?xml version="1.0"?>\n'  # as printed in the document, without an encoding


def render_request(
    codes: Sequence[str], wall_range: WallRange | None, *, status: bool = False, flag_element: str = "StatusFlag"
) -> bytes:
    """Render the body of a POST for the calls of `codes` in a range of wall times; None is all. Raises ValueError."""
    elements: list[tuple[str, str | None]] = []
    for code in codes:
        if code != EVERY_CLIENT and CLIENT_CODE.fullmatch(code) is None:
            raise ValueError("a client code has invalid characters")
        elements.append(("ClientCode", code))
        if status:
            elements.append((flag_element, "true"))
    elements += [("StartDate", wall_range and wall_range.start), ("EndDate", wall_range and wall_range.end)]
    # xmltodict writes all elements of one name together. Numbered names keep their order; the preprocessor removes
    # the number when the element is written.
    numbered = {f"{name} {number}": value for number, (name, value) in enumerate(elements)}
    document = {"Callbutton": {"@version": "B", "CallbuttonService": {"GetCallDetailsRequest": numbered}}}
    text = xmltodict.unparse(
        document, full_document=False, preprocessor=lambda name, value: (name.partition(" ")[0], value)
    )
    return f"{DECLARATION}{text}\n".encode("ascii")
