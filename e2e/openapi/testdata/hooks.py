# What schemathesis does differently here. It loads this file by SCHEMATHESIS_HOOKS.
import schemathesis


# An answer that goes on has no end to wait for: api_test.go looks at those.
@schemathesis.hook
def before_call(context, case, kwargs):
    if case.query and case.query.get("follow") == "true":
        del case.query["follow"]
