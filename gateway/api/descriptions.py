"""What each schema and field of the OpenAPI document means. A test holds that none is missing and none is left over.

Rule: parameters are described in `params`; a field that is a schema of its own is described there.
"""

from __future__ import annotations

_FIGURES = {
    "calls": "How many calls.",
    "connected": "How many of them somebody answered.",
    "uniqueCallers": "From how many different numbers.",
    "newCallers": "How many of these numbers called for the first time within the window.",
    "durationSeconds": "How long the calls took, all together.",
    "talkTimeSeconds": "How long was talked, all together.",
    "meanTalkTimeSeconds": "Mean of the calls that say how long was talked; null if none does.",
}

SCHEMAS = {
    "Address": "Where the caller's telephone is registered.",
    "Call": "One call detail record, known by `id` within its client.",
    "CallPage": "A page of calls.",
    "CallSummary": "Figures by bucket of time and group, the oldest first, and of all calls of the window.",
    "Certainty": "How sure the instant of a call is. US clocks repeat an hour in autumn: there `inferred` by the order "
    "of the server's reply, else `assumed`; in the hour that spring skips `assumed`; everywhere else `exact`.",
    "ClientFigures": "A client, and how many calls it had in the window.",
    "ClientList": "The clients that had calls in the window, by code.",
    "Fault": "A parameter at fault.",
    "Meta": "What the answer covers, and how fresh it is.",
    "PageLinks": "Where the list goes on.",
    "PhoneType": "The type of phone that the caller used.",
    "Problem": "Why there is no answer (RFC 9457).",
    "Result": "What became of a call. The server's own words for `other` are in `extra`.",
    "Row": "The figures of one bucket of time and one group.",
    "SalesStatus": "What somebody set by hand. The server's own words for `other` are in `extra`.",
    "SingleCall": "One call.",
    "Status": "What people said of a call afterwards.",
    "Totals": "Figures of calls.",
}

FIELDS = {
    "Address": {
        "firstName": "May include a prefix.",
        "middleInitial": "Middle name or initial.",
        "lastName": "May include a suffix.",
        "street": "Street and number.",
        "secondary": "Apartment and the like.",
        "city": "City.",
        "state": "Two letters of a US state or Canadian province.",
        "zip": "US ZIP code, leading zeros kept, or Canadian postal code.",
        "zip4": "The four digits after a ZIP code.",
    },
    "Call": {
        "id": "Known by this within its client. A string: leading zeros count.",
        "clientCode": "The client that was called.",
        "startTime": "When the caller dialled, in UTC.",
        "campaign": "Id of the campaign.",
        "did": "The tracking number that was called.",
        "ani": "The caller's number, if it is known.",
        "otherData": "Whatever the client had put there.",
        "target": "The number to which the call went on.",
        "durationSeconds": "From dialling to the end; null if it cannot be read, with the text in `extra`.",
        "talkTimeSeconds": "From picking up to the end; null likewise.",
        "indexNumber": "As spoken at the end of the call to the target.",
        "dtmf": "The keys that the caller pressed.",
        "recordingUrl": "A link to the recording, good until the end of the next hour, for whoever has it; null if "
        "there is none, or without the scope `recordings`.",
        "address": "Where the caller's telephone is registered, if that is known.",
        "status": "What people said of it afterwards; null unless `include=status`, or if the server does not tell.",
        "extra": "Elements of the server's reply that the protocol does not know, as strings by dotted name.",
    },
    "CallPage": {"data": "The calls, in order."},
    "CallSummary": {"data": "The figures, empty buckets included."},
    "ClientFigures": {"clientCode": "The client's code.", "calls": "How many calls it had."},
    "ClientList": {"data": "The clients."},
    "Fault": {"parameter": "Its name.", "detail": "What is wrong with it."},
    "Meta": {
        "start": "Beginning of the window, included.",
        "end": "End of the window, excluded.",
        "asOf": "When the newest point of the window was fetched.",
        "oldestFetch": "The oldest fetch that the answer rests on.",
        "stale": "Whether something in it is older than the freshness rule allows, since the server failed.",
        "unreadable": "Calls left out because they cannot be read.",
    },
    "PageLinks": {
        "limit": "The most calls of a page.",
        "nextCursor": "What to give as `cursor` for the next page; null alone is the end.",
    },
    "Problem": {
        "type": "The kind of problem, and the path of a page that explains it.",
        "title": "The kind in words.",
        "status": "The HTTP status.",
        "detail": "What happened here, and what to do.",
        "instance": "The path that was asked for.",
        "requestId": "The id of the request, also in the log.",
        "errors": "The parameters at fault, every one.",
    },
    "Row": {
        "bucketStart": "When the bucket begins.",
        "group": "The value of `groupBy`; null without it, and of calls that have no such value.",
        **_FIGURES,
    },
    "Status": {
        "reviewed": "Whether somebody has listened to the recording.",
        "journal": "Notes, as people wrote them.",
    },
    "Totals": _FIGURES,
}
