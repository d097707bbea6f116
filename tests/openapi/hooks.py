"""What a schema cannot say of the data that is made from it."""

import schemathesis


@schemathesis.hook
def map_body(context, body):
    """Amounts have six decimals at most, which a float's digits often pass."""
    if isinstance(body, dict):
        amount = body.get("amount")
        if isinstance(amount, float) and 0 < amount < 9e9:
            body["amount"] = max(round(amount, 6), 0.000001)
    return body


@schemathesis.hook
def map_query(context, query):
    """A cursor is what the page before gave, and nothing that can be made up; tests/it/api pages through every list."""
    if isinstance(query, dict):
        query.pop("cursor", None)
    return query
