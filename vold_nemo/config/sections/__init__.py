"""The sections of the schema, by what they are about."""
