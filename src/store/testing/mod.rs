//! Checks that any backend must pass, and backends that fail on purpose.
