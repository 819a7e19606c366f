"""Validates JSON lines from standard input against a schema: validate.py SCHEMA_FILE"""

import json
import sys

from jsonschema import Draft202012Validator

schema = json.load(open(sys.argv[1]))
Draft202012Validator.check_schema(schema)
validator = Draft202012Validator(schema)
count = 0
for line in sys.stdin:
    errors = [error.message for error in validator.iter_errors(json.loads(line))]
    if errors:
        sys.exit(f"{errors}: {line}")
    count += 1
print(count)
